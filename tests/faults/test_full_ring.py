# SPDX-License-Identifier: GPL-2.0-or-later
"""A ring with no room left: what does not fit is counted, and the count is told."""

from __future__ import annotations

from guard.abi import Counter
from tests.faults.site import Site, policy, summary


def test_a_full_ring_is_counted_and_told(site: Site) -> None:
    guardd = site.start("--ring-bytes", "65536")
    for _ in range(2):  # the second loss is told apart from the first
        with guardd.paused():
            assert site.connect(1000).denied == 1000
        ledger = site.settled(guardd)
    print(summary([ledger]))
    assert ledger.judged == 2000
    assert 1000 < ledger.lost == ledger.kernel_lost < 2000
    assert ledger.kinds["lost"] == 2
    assert ledger.doubles == 0
    guardd.until(lambda: f"{ledger.lost} lost" in guardd.status, "STATUS of the loss")


def test_nothing_is_lost_that_fits(site: Site) -> None:
    """The control of the tests here: the same, with room enough."""
    guardd = site.start()
    with guardd.paused():
        assert site.connect(1000).denied == 1000
    ledger = site.settled(guardd)
    assert len(ledger.findings) == ledger.judged == 1000
    assert ledger.kernel_lost == ledger.doubles == 0
    assert "lost" not in ledger.kinds


def test_lost_ends_of_connections_are_told(site: Site) -> None:
    site.write_policy(policy(site.port, allow="user = 0"))
    guardd = site.start("--ring-bytes", "65536")
    with guardd.paused():
        assert site.connect(1000).passed == 1000
    ledger = site.settled(guardd)
    assert len(ledger.findings) + ledger.lost == 1000
    assert site.count(Counter.LOST_CLOSED) > 100
    closed = len(site.entries("closed"))
    # the end of a connection whose beginning was lost is told all the same
    assert closed + site.count(Counter.LOST_CLOSED) == 1000
    [lost] = site.entries("lost")
    assert "ends of connections" in lost["MESSAGE"]


def test_a_flood_does_not_keep_guardd_from_telling_or_ending(site: Site) -> None:
    """More than can be written, without end: a reader that empties the ring first
    never returns; losses, notices and SIGTERM would wait behind endless events."""
    guardd = site.start()
    load = site.load()
    guardd.until(lambda: site.entries("lost"), "a LOST finding during the flood")
    site.write_policy("nonsense")
    guardd.reload()
    guardd.until(lambda: site.entries("policy-refused"), "a notice during the flood")
    assert guardd.end() == 0  # a reader that never returns is waited for in vain
    assert "stay queued" not in guardd.said()
    tally = site.tally(load)
    assert tally.denied == tally.tried > 10_000
