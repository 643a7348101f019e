# SPDX-License-Identifier: GPL-2.0-or-later
"""The way from the kernel to the journal, full or interrupted, under connects."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

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
    if how is signal.SIGTERM:
        assert ledger.lost == ledger.doubles == 0
    # one that was killed late in writing an entry: its name is not in the file yet
    assert ledger.doubles <= t.times


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    """Have journald's files on a small file system of their own."""
    folder = site.journald.directory
    site.journald.stop()
    options = ["-t", "tmpfs", "-o", "size=512M", "smtp-guard-faults"]
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        site.journald.start()
        yield folder
        site.journald.stop()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file: Path) -> None:
    """Write until there is no room."""
    with file.open("wb") as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1 << 20))
            filler.flush()


def test_an_entry_on_its_way_when_guardd_is_killed_is_not_counted_as_lost(
    site: Site, trial: Trials, small_disk: Path
) -> None:
    """journald still had it to read, and by then there was room for it."""

    def waits() -> bool:
        sockets = subprocess.run(
            ["ss", "-xapH"], capture_output=True, text=True, check=True
        ).stdout
        mine = (line.split() for line in sockets.splitlines())
        return any(
            int(words[2]) and words[4].endswith("/journal/socket")
            for words in mine
            if f"pid={site.journald.pid}," in words[-1]
        )

    filler = small_disk / "filler"
    with trial("guardd killed with an entry on its way", window="0s") as t:
        # none that is let pass: of an end of a connection no connect is lost
        rogue = site.load(pause_us=2000)
        t.guardd.until(lambda: site.entries("denied"), "what came first is written")
        for _ in range(20):  # till more than the one that it tries again is at stake
            fill(filler)
            t.guardd.until(lambda: "keeps nothing" in t.guardd.status, "the trouble")
            if site.guard.about()["unkept"] > 1:
                break
            filler.unlink()
            t.guardd.until(lambda: "keeps nothing" not in t.guardd.status, "its end")
        os.kill(site.journald.pid, signal.SIGSTOP)
        t.guardd.until(waits, "an entry that waits for journald")
        assert site.guard.about()["unkept_tried"]
        t.guardd.end(signal.SIGKILL)
        filler.unlink()
        os.kill(site.journald.pid, signal.SIGCONT)
        t.start()
        t.add(False, site.tally(rogue))
        ledger = t.settled()
    assert ledger.lost == ledger.unkept > 0, "nothing was lost: no control"


def test_disk_full(site: Site, trial: Trials, size: Size, small_disk: Path) -> None:
    """journald takes entries and drops them: guardd notices, and waits with the rest.

    In every third turn guardd is killed, or ended, while the disk is full.
    """
    filler = small_disk / "filler"
    with trial("disk full under the journal", window="0s") as t:
        t.connecting(2000)
        for turn in t.turns(size(2, 10)):
            site.ledger()  # journald may delete what it has now
            fill(filler)
            t.guardd.until(lambda: "keeps nothing" in t.guardd.status, "the trouble")
            if turn % 3 == 0:
                t.guardd.end((signal.SIGKILL, signal.SIGTERM)[turn % 2])
                t.start()
                t.guardd.until(lambda: "keeps nothing" in t.guardd.status, "trouble")
            filler.unlink()
            t.guardd.until(lambda: "keeps" not in t.guardd.status, "the end of it")
        ledger = t.settled()
    # only what a guardd had in hand that was ended while nothing was kept
    assert ledger.kernel_lost == 0
    assert ledger.lost == ledger.unkept
