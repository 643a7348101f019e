# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd killed with -9 under load: nothing opens, nothing is lost unsaid."""

from __future__ import annotations

import random
import signal
import time

import pytest

from guard.abi import Counter
from tests.faults.site import Site, Tally, policy, summary

KILLS = 6


def kill_under_load(site: Site, *options: str, pause_us: int) -> tuple[Tally, int]:
    """Kill and restart guardd at random moments; give the load's count and dead."""
    chance = random.Random(9)
    guardd = site.start(*options)
    load = site.load(pause_us=pause_us)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.4))
        guardd.end(signal.SIGKILL)
        time.sleep(chance.uniform(0, 0.3))
        guardd = site.start()
    load.send_signal(signal.SIGTERM)
    tally = Tally.of(load)
    ledger = site.settled(guardd)
    print(summary([ledger]))
    assert tally.passed == tally.other == 0, "a kill opened the port"
    assert ledger.judged == tally.tried == tally.denied > KILLS
    assert ledger.accounted == ledger.judged, summary([ledger])
    assert ledger.lost == ledger.kernel_lost
    assert ledger.doubles <= KILLS, "more than the one event in hand was repeated"
    assert guardd.end() == 0
    assert "Traceback" not in guardd.said()
    return tally, ledger.kernel_lost


def test_no_event_is_lost_that_the_ring_could_hold(site: Site) -> None:
    _, lost = kill_under_load(site, pause_us=300)
    assert lost == 0


def test_what_the_ring_could_not_hold_is_counted_and_journalled(site: Site) -> None:
    _, lost = kill_under_load(site, "--ring-bytes", "65536", pause_us=100)
    assert lost > 0, "the ring was never full: the test showed nothing"


def test_folded_repeats_survive_kills(site: Site) -> None:
    site.write_policy(policy(site.port, window="1s"))
    _, lost = kill_under_load(site, pause_us=100)
    assert lost == 0
    assert site.count(Counter.FOLDED) > 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_opens_while_no_guardd_runs(site: Site, how: signal.Signals) -> None:
    guardd = site.start()
    guardd.end(how)
    tally = site.connect(200)
    assert tally.denied == 200
    ledger = site.settled(site.start())
    assert len(ledger.findings) == 200
    assert ledger.lost == ledger.doubles == 0
