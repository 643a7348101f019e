# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy that changes, or is bad, while mail flows: never a moment without one."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.faults.site import Guardd, Site, policy
from tests.journald import until

# What the policy check says of each is tests/policy's matter.
BAD = {
    "not TOML": "mode = enforce",
    "an unknown key": 'mode = "enforce"\nprots = [25]\n',
    "an unknown user": 'mode = "enforce"\n[[rule]]\nname = "x"\nverdict = "allow"\n'
    'user = "nobody-of-that-name"\n',
    "a missing include": 'mode = "enforce"\ninclude = ["no-such-policy"]\n',
    "empty": "",
}


def rows(site: Site) -> dict[str, object]:
    """Read all that decides: the live slot of every map of rows."""
    guard = site.guard
    slot = guard.slot
    return {
        "slot": slot,
        "policy": bytes(guard.policy()),
        "control": bytes(guard.control()),
        **{
            name: dict(guard.map(name).items())
            for name in ("rules", "exes", "numbers", "units", "prefixes")
        },
    }


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_bad_policy_leaves_the_old_one_in_force(site: Site, text: str) -> None:
    lawful = site.folder / "lawful"
    site.install(lawful)
    site.write_policy(policy(site.port, allow=f'exe = "{lawful}"'))
    guardd = site.start()
    before = rows(site)
    site.write_policy(text)
    guardd.reload()
    assert rows(site) == before
    assert site.connect(1).denied == site.connect(1, lawful).passed == 1
    assert str(site.policy_file) in str(site.guard.about()["refused"])
    guardd.until(lambda: "new policy refused" in guardd.status, "STATUS")
    guardd.until(lambda: site.ledger().kinds["policy-refused"] == 1, "the finding")

    site.write_policy(policy(site.port))
    guardd.reload()
    assert site.connect(1, lawful).denied == 1
    assert "refused" not in site.guard.about()
    guardd.until(lambda: "refused" not in guardd.status, "STATUS")
    assert "Traceback" not in guardd.said()


def test_a_long_refusal_that_is_not_ascii_fits_into_the_record(site: Site) -> None:
    folder = site.folder.joinpath(*["é" * 120] * 3)  # said with every error
    folder.mkdir(parents=True)
    site.policy_file = folder / "policy.toml"
    site.write_policy(policy(site.port))
    guardd = site.start()
    site.write_policy(f'mode = "enforce"\n[[rule]]\nverdict = "{"é" * 3000}"\n')
    guardd.reload()
    assert str(site.guard.about()["refused"]).isascii()
    guardd.end()
    guardd = site.start()
    guardd.until(lambda: "new policy refused" in guardd.status, "STATUS")
    assert site.connect(1).denied == 1


def test_a_missing_policy_leaves_the_old_one_in_force(site: Site) -> None:
    guardd = site.start()
    before = rows(site)
    site.policy_file.unlink()
    guardd.reload()
    assert rows(site) == before
    guardd.until(lambda: site.ledger().kinds["policy-refused"] == 1, "the finding")


def test_a_bad_policy_at_the_first_start_attaches_nothing(site: Site) -> None:
    site.write_policy("nonsense")
    guardd = Guardd(site)
    assert guardd.process.wait(20) == 78  # EX_CONFIG
    assert str(site.policy_file) in guardd.said()
    assert "Traceback" not in guardd.said()
    assert not list(site.pin_dir.glob("*"))
    assert site.connect(3).passed == 3


def test_a_bad_policy_at_a_later_start_keeps_the_old_rows(site: Site) -> None:
    site.start().end()
    before = rows(site)
    site.write_policy("nonsense")
    guardd = site.start()
    assert rows(site) == before
    assert site.connect(3).denied == 3
    guardd.until(lambda: "new policy refused" in guardd.status, "STATUS")
    guardd.until(lambda: site.ledger().kinds["policy-refused"] == 1, "the finding")


def test_a_first_start_that_was_killed_half_way_is_no_guard(site: Site) -> None:
    """Maps without a policy would deny every connection of the host."""
    site.start().end()
    home = next(site.pin_dir.glob("v*"))
    for link in site.pin_dir.glob("link-*"):
        link.unlink()
    (home / "judge").unlink()  # the last pin that is made
    site.write_policy("nonsense")
    guardd = Guardd(site)
    assert guardd.process.wait(20) == 78
    assert site.connect(3).passed == 3


def test_100_reloads_deny_no_lawful_connect_and_pass_no_rogue(site: Site) -> None:
    """Alternating policies, both of which allow the one and deny the other."""
    lawful = site.folder / "lawful"
    site.install(lawful)
    by_exe = policy(site.port, allow=f'exe = "{lawful}"\nuser = 0')
    by_port = policy(site.port, allow=f'exe = "{lawful}"\nports = {site.port}')
    by_port += f'[[rule]]\nname = "x"\nverdict = "deny"\nports = {site.port + 1}\n'
    wide = by_port.replace(f"ports = [{site.port}]", f"ports = [25, {site.port}]")
    site.write_policy(by_exe)
    guardd = site.start()
    loads = [site.load(program=lawful), site.load()]
    for turn in range(100):
        site.write_policy((by_port, wide, by_exe, "nonsense")[turn % 4])
        guardd.reload()
    passed, denied = (site.tally(load) for load in loads)
    assert passed.tried == passed.passed > 1000, passed
    assert denied.tried == denied.denied > 1000, denied
    ledger = site.settled(guardd)
    assert ledger.accounted == ledger.judged == passed.tried + denied.tried


def test_a_restart_under_load_denies_no_lawful_connect(site: Site) -> None:
    """Adopting: programs and rows are swapped under connects."""
    lawful = site.folder / "lawful"
    site.install(lawful)
    site.write_policy(policy(site.port, allow=f'exe = "{lawful}"'))
    guardd = site.start()
    loads = [site.load(0, 50, lawful), site.load(0, 50)]
    for turn in range(8):
        guardd.end() if turn % 2 else guardd.process.kill()
        guardd.process.wait()
        guardd = site.start()
    passed, denied = (site.tally(load) for load in loads)
    assert passed.tried == passed.passed > 1000, passed
    assert denied.tried == denied.denied > 1000, denied


def test_a_connection_keeps_its_rule_over_many_reloads(site: Site) -> None:
    """guardd remembers the rules of its last 64 policies; the same rules again, as
    after each new answer of a name server, are no further one."""
    site.write_policy(policy(site.port, allow="user = 0"))
    guardd = site.start()
    server = socket.create_server(("127.0.0.1", site.port))
    with (
        server,
        subprocess.Popen(
            ["sh", "-ec", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(site.cgroup)]
            + [sys.executable, "-c", _HOLD, str(site.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as held,
    ):
        assert held.stdout and held.stdout.readline() == b"connected\n"
        for _ in range(70):
            guardd.reload()
    until(lambda: site.entries("closed"), "its end")
    [closed] = site.entries("closed")
    assert closed["RULE"] == "lawful"


_HOLD = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))):
    print("connected", flush=True)
    sys.stdin.read()
"""
