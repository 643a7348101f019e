# SPDX-License-Identifier: GPL-2.0-or-later
"""What opens the guard is put back within seconds; with "report" it stays open."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guard import abi
from guard.kernel import Guard
from tests.faults.site import Site
from tests.tamper import others as act
from tests.tamper.acts import SHUT, all_good, begin, rounds, text, told, verify
from tests.verbs.conftest import run

Tamperer = Callable[[Guard], object]
# What opens the guard, and the WHAT of its finding.
OPENERS: dict[str, tuple[str, Tamperer]] = {
    "a link detached": ("links", act.detach_link),
    "the other slot in force": ("control", act.set_control(act.other_slot)),
    "no port guarded": ("control", act.set_control(act.every_port)),
    "observe": ("settings", act.observe),
    "a rule that allows": ("rows", act.allow_root),
    "a row that satisfies every rule": ("rows", act.every_rule_for_root),
    "maps full of rows": ("rows", act.fill),
}


@contextlib.contextmanager
def tampered(site: Site, name: str, others: Path) -> Iterator[str]:
    """Have it done, and give the WHAT of the finding."""
    guard = site.guard
    if name == "another program of the same name":
        act.replace_program(others)(guard)
        yield "programs"
    elif name == "a program that comes after":
        with (
            act.loaded(others, "take_back") as program,
            act.linked(program, site.cgroup),
        ):
            yield "order"
    else:
        what, tamperer = OPENERS[name]
        tamperer(guard)
        yield what


WAYS = [*OPENERS, "another program of the same name", "a program that comes after"]


@pytest.mark.parametrize("way", WAYS)
def test_it_is_put_back(site: Site, others: Path, way: str) -> None:
    guardd = begin(site, "repair")
    with tampered(site, way, others) as what:
        guardd.until(lambda: told(site, what), "a finding", 40)
        assert site.connect(3).denied == 3
        rounds(guardd)
        assert site.connect(3).denied == 3
        assert told(site) == [(what, "changed", "1")]
        assert all_good(site)
    assert "Traceback" not in guardd.said()
    assert guardd.end() == 0


@pytest.mark.parametrize("way", WAYS)
def test_with_report_it_is_told_and_left(site: Site, others: Path, way: str) -> None:
    """The control of the test above: it is open when nobody puts it back."""
    guardd = begin(site, "report")
    with tampered(site, way, others) as what:
        guardd.until(lambda: told(site, what), "a finding", 40)
        rounds(guardd)
        assert site.connect(3).passed == 3
        assert told(site) == [(what, "changed", "0")]
        guardd.until(lambda: what in guardd.status or "NOT IN" in guardd.status, "it")
        states = verify(site)
        # and by guardctl, which knows the policy file and the installed object
        assert states["watch"] == "fail"
        if way == "the other slot in force":  # to it, a policy that was not applied
            assert states["policy"] == "warn"
        else:
            named = {"control": "rows", "settings": "rows"}.get(what, what)
            assert states[named] == "fail"
        status = run("--pin-dir", str(site.pin_dir), "verify").status
        assert status == 1
        doctor = run("--pin-dir", str(site.pin_dir), "doctor", "--json").rows()
        assert {r["name"]: r["state"] for r in doctor}["watch"] == "fail"
        shown = run("--pin-dir", str(site.pin_dir), "status").text
        assert f"CHANGED   by somebody: {what}" in shown
    # the policy put in force again by the admin, and allowed to repair
    site.write_policy(text(site, SHUT, "repair"))
    guardd.reload()
    guardd.until(lambda: (what, "good", "1") in told(site), "the end", 40)
    assert told(site) == [(what, "changed", "0"), (what, "good", "1")]
    assert site.connect(3).denied == 3
    assert "Traceback" not in guardd.said()


def test_again_and_again_is_one_incident(site: Site) -> None:
    guardd = begin(site, "repair")
    for _ in range(4):
        act.observe(site.guard)
        guardd.until(lambda: site.guard.mode is abi.Mode.ENFORCE, "enforce", 40)
    rounds(guardd)
    assert told(site) == [("settings", "changed", "1")]


def test_nothing_slips_through_while_rows_are_put_back(site: Site) -> None:
    """The whole policy goes in by one switch; what is wrong here denies nothing."""
    guardd = begin(site, "repair")
    load = site.load(pause_us=20)
    for number in range(3):
        guard = site.guard
        key = abi.NumberKey(guard.slot, abi.Dimension.UID, 5000 + number)
        guard.map("numbers").put(bytes(key), bytes(abi.Mask()))
        guardd.until(
            lambda: guard.map("numbers").get(bytes(key)) is None,  # noqa: B023
            "the row's end",
            40,
        )
        rounds(guardd, 1)  # the switch to the other slot comes after that
    tally = site.tally(load)
    assert tally.passed == 0 and tally.denied > 1000


def test_an_address_that_is_not_this_host_s(site: Site) -> None:
    guardd = begin(site, "repair")
    table = site.guard.map("hosts")
    table.put(abi.pack_address("203.0.113.9"), struct.pack("=I", 1))
    guardd.until(lambda: told(site), "a finding", 40)
    assert told(site) == [("addresses", "changed", "1")]
    [entry] = site.entries("tampered")
    assert "added 203.0.113.9" in entry["MESSAGE"]
    assert abi.pack_address("203.0.113.9") not in set(table.keys())
    table.delete(abi.pack_address("127.0.0.1"))
    guardd.until(
        lambda: abi.pack_address("127.0.0.1") in set(table.keys()), "127.0.0.1", 40
    )


@pytest.mark.parametrize("damage", [b"{", b'{"pid": 1}'])
def test_the_record_is_put_back(site: Site, damage: bytes) -> None:
    """guardctl finds guardd by it, and whom guardd was told to guard."""
    guardd = begin(site, "report")
    rounds(guardd, 1)
    about = site.guard.about()
    about.pop("mail", None)  # what is counted there goes on
    table = site.guard.map("about")
    table.put(bytes(4), damage.ljust(table.value_size, b"\0"))
    guardd.until(lambda: told(site), "a finding", 40)
    assert told(site) == [("record", "changed", "1")]
    after = site.guard.about()
    after.pop("mail", None)
    assert after == about
