# SPDX-License-Identifier: GPL-2.0-or-later
"""The way from the kernel to the journal, full or interrupted, under connects."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from guard.abi import Counter
from tests.faults.site import Site
from tests.faults.trial import Size, Trial

Trials = Callable[..., Trial]


def test_ring_full(site: Site, trial: Trials, size: Size) -> None:
    def full(enough: int) -> bool:
        return site.count(Counter.LOST_RING) >= enough

    def told(enough: int) -> bool:
        return int(site.guard.about().get("told", {}).get("LOST_RING", 0)) >= enough

    ring = ["--ring-bytes", "65536"]
    with trial("ring of 64 KiB full", *ring, window="0s") as t:
        t.connecting(100)
        for _ in t.turns(size(4, 150)):
            enough = site.count(Counter.LOST_RING) + 100
            t.guardd.send(signal.SIGSTOP)
            t.guardd.until(partial(full, enough), "a full ring")
            t.guardd.send(signal.SIGCONT)
            t.guardd.until(partial(told, enough), "the loss is told")
        ledger = t.settled()
    assert ledger.lost >= 100 * t.times
    assert ledger.doubles == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_journald_restarted(
    site: Site, trial: Trials, size: Size, how: signal.Signals
) -> None:
    """Connects that nobody can write down wait in the ring, and are all written."""
    chance = random.Random(4)
    site.journald.stop()
    site.journald.keep_socket()
    site.journald.start()
    name = f"journald stopped ({how.name}) and started, its socket kept by systemd"
    with trial(name, window="0s") as t:
        t.connecting(1000)
        for _ in t.turns(size(4, 60)):
            site.journald.stop(how)
            time.sleep(chance.uniform(0, 1.5))
            site.journald.start()
            time.sleep(chance.uniform(0.05, 0.5))
        ledger = t.settled()
    assert ledger.lost == ledger.doubles == 0
