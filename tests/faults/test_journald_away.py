# SPDX-License-Identifier: GPL-2.0-or-later
"""journald down, or not reading: findings wait in the kernel, guardd goes on."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial

import pytest

from guard import abi
from tests.faults.site import Guardd, Site, policy
from tests.journald import CONFIG

ADDRESS = "198.51.100.7"  # RFC 5737


def take_away(site: Site, how: str) -> Callable[[], None]:
    """Make journald useless; gives what makes it useful again."""
    if how == "slow":
        site.journald.pause()
        return site.journald.resume
    site.journald.stop()
    if how == "gone":
        site.journald.socket.unlink(missing_ok=True)
    return site.journald.start


def in_trouble(site: Site, guardd: Guardd) -> int:
    """Connect until guardd says that journald takes nothing; gives how often."""
    denied = site.connect(500).denied  # more than a socket's queue holds
    assert denied == 500
    guardd.until(lambda: "does not take findings" in guardd.status, "the trouble")
    return denied


@pytest.mark.parametrize("how", ["down", "gone", "slow"])
def test_findings_wait_and_guardd_goes_on(site: Site, how: str) -> None:
    # in a network namespace of its own, so that an address can be added to it
    guardd = site.start(netns=True)
    bring_back = take_away(site, how)
    denied = in_trouble(site, guardd)

    site.write_policy(policy(site.port, allow="user = 0"))
    guardd.reload()
    assert site.connect(5).passed == 5, "a reload waits for journald"
    site.write_policy(policy(site.port))
    guardd.reload()
    assert site.connect(5).denied == 5

    key = abi.pack_address(ADDRESS)
    assert not site.guard.map("hosts").get(key)
    inside = ["nsenter", "-t", str(guardd.process.pid), "--net", "ip"]
    # an address of a link that is down is not the host's own
    subprocess.run([*inside, "link", "set", "lo", "up"], check=True)
    subprocess.run(
        [*inside, "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True
    )
    guardd.until(lambda: site.guard.map("hosts").get(key), "the new address")

    bring_back()
    ledger = site.settled(guardd)
    assert len(ledger.findings) == ledger.judged == denied + 10
    assert ledger.doubles == ledger.lost == 0
    guardd.until(lambda: "does not take" not in guardd.status, "the end of trouble")
    guardd.until(lambda: site.ledger().kinds["policy-loaded"] == 3, "all notices")


@pytest.mark.parametrize("how", ["gone", "slow"])
def test_a_new_executable_is_followed_meanwhile(site: Site, how: str) -> None:
    program = site.folder / "mta" / "smtp"
    site.write_policy(policy(site.port, allow=f'exe = "{program}"'))
    guardd = site.start()
    bring_back = take_away(site, how)
    in_trouble(site, guardd)
    site.install(program)
    guardd.until(lambda: site.connect(1, program).passed == 1, "the new program")
    assert site.connect(1).denied == 1
    bring_back()
    assert site.settled(guardd).doubles == 0


@pytest.mark.parametrize("how", ["down", "slow"])
def test_sigterm_while_journald_hangs_ends_and_loses_nothing(
    site: Site, how: str
) -> None:
    guardd = site.start()
    bring_back = take_away(site, how)
    in_trouble(site, guardd)
    began = time.monotonic()
    assert guardd.end() == 0
    assert time.monotonic() - began < 7
    assert "findings stay queued" in guardd.said()
    assert "Traceback" not in guardd.said()
    assert site.connect(100).denied == 100  # nobody reads the ring
    bring_back()
    ledger = site.settled(site.start())
    assert len(ledger.findings) == ledger.judged == 600
    assert ledger.doubles == ledger.lost == 0


def test_killed_while_journald_hangs_loses_nothing(site: Site) -> None:
    guardd = site.start()
    site.journald.pause()
    in_trouble(site, guardd)
    guardd.process.kill()
    guardd.process.wait()
    site.journald.resume()
    ledger = site.settled(site.start())
    assert len(ledger.findings) == ledger.judged == 500
    assert ledger.doubles == ledger.lost == 0


def test_starting_without_journald_enforces(site: Site) -> None:
    site.journald.stop()
    guardd = site.start()
    assert site.connect(10).denied == 10
    site.journald.start()
    assert len(site.settled(guardd).findings) == 10
    assert site.ledger().kinds["loaded"] == 1


def test_a_reader_of_standard_output_that_went_away_costs_no_finding(
    site: Site,
) -> None:
    guardd = site.start(output="closed pipe")
    assert site.connect(100).denied == 100
    ledger = site.settled(guardd)
    assert len(ledger.findings) == 100
    assert guardd.end() == 0


def test_levels_that_journald_leaves_out_are_no_loss_and_others_are(
    site: Site,
) -> None:
    """Nothing is written again for them, or waits; what it is to keep is written again
    where it was killed with that in its hand, from the first entry on.
    """
    site.journald.stop()
    site.journald.keep_socket()
    site.journald.config += "MaxLevelStore=warning\n"
    site.journald.start()
    lawful = site.folder / "mta" / "smtp"
    site.install(lawful)
    site.write_policy(policy(site.port, allow=f'exe = "{lawful}"'))
    guardd = site.start()

    def found(kind: str, connects: int) -> bool:
        return len({one["CONNECTION"] for one in site.entries(kind)}) == connects

    for turn in range(1, 5):
        assert site.connect(10, lawful).passed == 10
        assert site.connect(100).denied == 100
        site.journald.stop(signal.SIGKILL)
        site.journald.start()
        guardd.until(partial(found, "denied", 100 * turn), "all that was denied")
    assert site.guard.about()["kept_level"] == 4
    assert not site.entries("local"), "kept all the same: no control"
    guardd.until(lambda: "keeps nothing" not in guardd.status, "no trouble")

    site.journald.stop()
    site.journald.config = CONFIG
    site.journald.start()
    assert site.connect(1, lawful).passed == 1
    guardd.until(partial(found, "local", 41), "what was left out is kept now")
    assert site.guard.about()["kept_level"] == 6
