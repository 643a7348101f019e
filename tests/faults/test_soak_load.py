# SPDX-License-Identifier: GPL-2.0-or-later
"""Much at once, and what comes and goes: units, programs, connections, floods."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from guard.abi import Counter
from tests.faults.memory import map_bytes
from tests.faults.site import Site, Tally
from tests.faults.trial import Size, Trial, memory_mb
from tests.journald import until

Trials = Callable[..., Trial]

RATE = 50_000  # connects a second, of a denied flood
BURST = 5  # findings at once, of an identity in a window; see policy() in site.py
WINDOW = 5  # seconds, as policies/default.toml has it
MEMORY_MB = 60  # what guardd may use; it has 25 when it starts
MAPS_MB = 64 + 52 + 52 + 7 + 10  # ring, owners, folds when full, departed, the rest


def test_units_come_and_go(site: Site, trial: Trials, size: Size) -> None:
    """A unit is known by its path: lawful whenever it is made anew."""
    unit = f"/{site.cgroup.name}/mail.service"
    rule = f'[[local.rule]]\nname = "unit"\nverdict = "allow"\nunit = "{unit}"\n'
    with trial("cgroups made, connected from, removed", rule=rule) as t:
        t.connecting(500)
        for turn in t.turns(size(30, 1000)):
            for lawful, name in ((False, f"rogue-{turn}.service"), (True, unit)):
                cgroup = site.cgroup / Path(name).name
                cgroup.mkdir()
                t.add(lawful, site.connect(20, cgroup=cgroup))
                cgroup.rmdir()
        t.settled()


def test_allowed_programs_replaced(site: Site, trial: Trials, size: Size) -> None:
    """As dpkg does, by a rename: what ran before and what starts now both may."""
    tallies: list[Tally] = []
    enough = threading.Event()

    def started(times: int) -> bool:
        return len(tallies) >= times

    def starts() -> None:
        while not enough.is_set():
            tallies.append(site.connect(5, t.lawful))

    with trial("the allowed program replaced by a rename") as t:
        t.connecting(100)
        starter = threading.Thread(target=starts)
        starter.start()
        try:
            for turn in t.turns(size(200, 5000)):
                site.install(t.lawful)
                if turn % 100 == 0:
                    until(partial(started, len(tallies) + 1), "a start")
        finally:
            enough.set()
            starter.join()
        t.note = f"started {len(tallies)} times meanwhile"
        for tally in tallies:
            t.add(True, tally)
        t.settled()


def test_10000_at_once(site: Site, trial: Trials, hold: Path) -> None:
    """All open at the same time, each known to the kernel with its owner."""
    count = 10_000
    holder = site.folder / "mta" / "hold"
    rule = f'[[local.rule]]\nname = "hold"\nverdict = "allow"\nexe = "{holder}"\n'
    with trial("10,000 connections open at once", rule=rule, window="0s") as t:
        site.install(holder, hold)
        t.connecting(2000)
        with subprocess.Popen(
            [holder, site.cgroup, str(site.port), str(count)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            try:
                for _ in t.turns(1):
                    tally = t.add(True, Tally(**json.loads(process.stdout.readline())))
                    assert tally.passed == count
                    # beside those that the other program has in hand
                    owned = len(list(site.guard.map("owners").keys()))
                    assert count <= owned <= count + 2
                    t.add(False, site.connect(1000))
                process.terminate()
                assert process.stdout.readline() == "closed\n"
            finally:
                process.kill()
        ledger = t.settled()
    assert ledger.lost == ledger.doubles == 0
    assert ledger.kinds["closed"] == ledger.kinds["local"] > count
    assert site.count(Counter.NO_OWNER) == site.count(Counter.NO_STORAGE) == 0


@dataclass
class Peak(threading.Thread):
    """Looks at guardd's memory, and at the maps', until told to stop."""

    trial: Trial

    def __post_init__(self) -> None:
        threading.Thread.__init__(self)
        self._enough = threading.Event()
        self.guardd_mb = self.maps_mb = 0.0

    def run(self) -> None:
        while not self._enough.wait(0.2):
            self.guardd_mb = max(self.guardd_mb, memory_mb(self.trial.guardd))
            self.maps_mb = max(self.maps_mb, map_bytes(self.trial.site.guard) / 2**20)

    def stop(self) -> None:
        self._enough.set()
        self.join()

    __hash__ = threading.Thread.__hash__


@pytest.mark.parametrize("identities", [1, 5000])
def test_a_flood(
    site: Site, trial: Trials, size: Size, flood: Path, identities: int
) -> None:
    """Denied, and no more of it in the journal than a few entries an identity."""
    seconds = size(2, 20)
    processes, uids = (1, 0) if identities == 1 else (5, 1000)
    name = f"a denied flood of {RATE} connects/s from {identities} identities"
    with trial(name.replace(" 1 identities", " one identity"), window="5s") as t:
        t.connecting(5000)
        peak = Peak(t)
        peak.start()
        try:
            for _ in t.turns(1):
                done = subprocess.run(
                    [
                        str(flood),
                        str(site.cgroup),
                        str(site.port),
                        str(seconds),
                        str(RATE),
                    ]
                    + [str(processes), str(uids)],
                    stdout=subprocess.PIPE,
                    check=True,
                )
                tally = t.add(False, Tally(**json.loads(done.stdout)))
                t.note = f"{tally.tried / tally.ns * 1e9:.0f} connects/s"
            ledger = t.settled()
        finally:
            peak.stop()
        entries = sum(ledger.kinds.values())
    # those two of connecting() are identities as well, and one has ends to tell
    windows = seconds // WINDOW + 3  # on a machine that is slow with the others
    most = (identities + 3) * windows * (BURST + 1)
    t.tell(
        f"{entries:,} entries (at most {most:,}), guardd {peak.guardd_mb:.0f} MB, "
        f"maps {peak.maps_mb:.0f} MB at most"
    )
    assert entries <= most
    assert peak.guardd_mb < MEMORY_MB
    assert peak.maps_mb < MAPS_MB
    assert ledger.doubles == 0
