# SPDX-License-Identifier: GPL-2.0-or-later
"""verify: every kind of tampering is seen, and an untouched guard is all good."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from guard import abi, libbpf
from guard.kernel import HOOKS, Guard
from guard.tables import KEY0
from tests.verbs.conftest import ENFORCE, Site

POLICY = f"""\
{ENFORCE}
[[rule]]
name = "mailer"
unit = "mailer@*.service"
exe = "/usr/bin/true"
user = "root"
to = ["192.0.2.0/24", "2001:db8::/32"]
ports = [25]
verdict = "allow"
"""


def zero(name: str) -> Callable[[Guard], None]:
    """Make a tamperer that zeroes the first row of a map."""

    def tamper(guard: Guard) -> None:
        table = guard.map(name)
        table.put(next(table.keys()), bytes(table.value_size))

    return tamper


def drop(name: str) -> Callable[[Guard], None]:
    """Make a tamperer that deletes the first row of a map."""

    def tamper(guard: Guard) -> None:
        assert guard.map(name).delete(next(guard.map(name).keys()))

    return tamper


def unpin(guard: Guard) -> None:
    guard.link_path("guard_connect4").unlink()


def swap_pins(guard: Guard) -> None:
    """Pin another of the programs where the one that denies was pinned."""
    (guard.home / "guard_connect6").rename(guard.home / "guard_connect4")
    program = libbpf.get_pinned(guard.home / "guard_connect4")
    libbpf.pin(program, guard.home / "guard_connect6")
    os.close(program)


def let_others_in(guard: Guard) -> None:
    guard.home.chmod(0o711)


def open_a_port(guard: Guard) -> None:
    control = guard.control()
    control.unguarded[guard.slot][0] |= 1 << 25
    guard.map("control").put(KEY0, bytes(control))


def deny_first(guard: Guard) -> None:
    key = (guard.slot * abi.MAX_ROWS).to_bytes(4, "little")
    guard.map("rules").put(key, bytes(abi.Rule()))


def observe(guard: Guard) -> None:
    policy = guard.policy()
    policy.mode = abi.Mode.OBSERVE
    guard.map("policies").put(guard.slot.to_bytes(4, "little"), bytes(policy))


def swap_program(guard: Guard) -> None:
    """Hang the wrong program of the right type on a link."""
    source = "int main(void *ctx) { return 1; }"
    folder = Path(os.environ["PYTEST_TMP"])
    (folder / "pass.bpf.c").write_text(
        "#define SEC(n) __attribute__((section(n), used))\n"
        f'SEC("cgroup/connect4") {source.replace("main", "guard_pass")}\n'
        'char LICENSE[] SEC("license") = "GPL";\n'
    )
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-c", "pass.bpf.c", "-o", "pass.o"],
        cwd=folder,
        check=True,
    )
    with libbpf.Object(folder / "pass.o") as obj:
        obj.load()
        link = libbpf.get_pinned(guard.link_path("guard_connect4"))
        libbpf.swap(link, obj.program("guard_pass"))
        os.close(link)


TAMPERERS = {
    "links": unpin,
    "programs": swap_program,
    "pins": swap_pins,
    "pins: others than root": let_others_in,
    "addresses": drop("hosts"),
    "rows: rules": deny_first,
    "rows: exes": drop("exes"),
    "rows: numbers": zero("numbers"),
    "rows: units": drop("units"),
    "rows: prefixes": zero("prefixes"),
    "rows: ports": open_a_port,
    "rows: policies": observe,
}


def test_an_untouched_guard_is_all_good(site: Site) -> None:
    site.policy.write_text(POLICY)
    site.load()
    answer = site.ctl("verify")
    assert answer.status == 0, answer.text
    states = site.states()
    assert states.pop("lsm") in ("ok", "note")  # many kernels refuse LSM programs
    assert {*states.values()} == {"ok"}
    assert max(map(len, answer.text.splitlines())) < 80


@pytest.mark.parametrize("what", TAMPERERS)
def test_tampering_is_seen(
    site: Site, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))
    site.policy.write_text(POLICY)
    site.load()
    guard = Guard(site.world.pin_dir)
    TAMPERERS[what](guard)
    check, _, detail = what.partition(": ")
    row = next(
        row for row in site.ctl("verify", "--json").rows() if row["name"] == check
    )
    assert row["state"] == ("warn" if check == "addresses" else "fail")
    assert detail in row["detail"]
    assert row["remedy"]
    assert site.ctl("verify").status == (0 if check == "addresses" else 1)


def test_a_policy_file_that_was_not_applied_is_told(site: Site) -> None:
    site.load()
    site.policy.write_text(POLICY)
    assert site.states()["policy"] == "warn"
    assert site.ctl("verify").status == 0
    site.policy.write_text("mode = 7\n")
    assert site.states()["policy"] == "warn"


def test_a_loaded_guard_has_every_hook(site: Site) -> None:
    site.load()
    names = {link.name for link in Guard(site.world.pin_dir).attachments()}
    assert names == set(HOOKS)


def test_doctor_has_an_answer_to_everything(site: Site) -> None:
    before = {row["name"]: row for row in site.ctl("doctor", "--json").rows()}
    assert before["guard"]["state"] == "fail"
    site.load()
    answer = site.ctl("doctor", "--json")
    rows = {row["name"]: row for row in answer.rows()}
    for name in ("kernel", "BTF", "libbpf", "cgroup2", "links", "programs", "mode"):
        assert rows[name]["state"] == "ok", rows[name]
    assert rows["guardd"]["state"] == "warn"
    assert {"journald", "firewalls", "postfix"} <= rows.keys()
    for row in rows.values():
        assert row["remedy"] or row["state"] in ("ok", "note"), row
    assert max(map(len, site.ctl("doctor").text.splitlines())) < 80
