# SPDX-License-Identifier: GPL-2.0-or-later
"""One fault under load: who connects meanwhile, and what the sums are afterwards.

Throughout a trial a rogue connects, which must be denied each time, and a lawful
program, which must pass each time. In the end the kernel's counters must add up, and
the journal must know of every connect that was judged. The figures are kept, for the
table of docs/faults.md.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from guard.abi import Counter
from tests.faults.site import Guardd, Ledger, Site, Tally, policy, summary
from tests.faults.test_notify import resident_kb

CONTROL = 20  # connects of each program, unguarded, before a trial


@dataclass
class Figure:
    """A row of the table."""

    fault: str
    times: int  # how often it was done
    tried: int  # connects
    leaked: int  # of those that had to be denied
    lawful_denied: int  # of those that had to pass
    judged: int  # as the kernel counted
    accounted: int  # as the journal knows
    lost: int  # of those: counted, and told, but no more than that
    doubles: int  # entries beyond the first of a connection or summary
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Size:
    """How much of everything: a few for each change, all for `make soak`."""

    full: bool

    def __call__(self, few: int, all_: int) -> int:
        """Choose."""
        return all_ if self.full else few


class Trial:
    """A guardd at work in a site, with both programs connecting."""

    def __init__(
        self,
        site: Site,
        figures: list[Figure],
        fault: str,
        *options: str,
        window: str = "1s",
        rule: str = "",
        memory: Path | None = None,
    ) -> None:
        """Begin a trial; options are guardd's.

        window is the policy's for folding; rule (lines) says who is lawful
        besides the lawful program; memory is guardd's cgroup of that controller.
        """
        self.site, self.fault, self._figures = site, fault, figures
        self.lawful = site.folder / "mta" / "lawful"
        self._options, self.memory = options, memory
        site.install(self.lawful)
        self.policy = policy(
            site.port, allow=f'exe = "{self.lawful}"', window=window
        ).replace("[fold]", f"{rule}[fold]")
        site.write_policy(self.policy)
        self._loads: list[tuple[bool, subprocess.Popen[str]]] = []
        self._tallies: list[tuple[bool, Tally]] = []
        self.times = 0
        self.note = ""
        self.guardd: Guardd

    def __enter__(self) -> Self:
        # the control of all that follows: unguarded, both pass
        for program in (None, self.lawful):
            tally = self.site.connect(CONTROL, program, cgroup="-")
            assert tally.passed == CONTROL, "unguarded it does not pass either"
        self.guardd = self.start(*self._options)
        self._began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass  # the site ends all that runs

    def start(self, *options: str) -> Guardd:
        """Start guardd and wait until it is in force."""
        return self.starting(*options).ready()

    def starting(self, *options: str) -> Guardd:
        """Start guardd."""
        if self.memory:
            self.guardd = Guardd(self.site, *options, memory=str(self.memory))
        else:
            self.guardd = Guardd(self.site, *options)
        return self.guardd

    def connecting(self, pause_us: int) -> None:
        """Have both connect until the end of the trial, with so long a pause."""
        for program in (None, self.lawful):
            load = self.site.load(pause_us=pause_us, program=program)
            self._loads.append((bool(program), load))
        self.guardd.until(
            lambda: self.site.count(Counter.DENIED), "the first denial of a trial"
        )

    def add(self, lawful: bool, tally: Tally) -> Tally:
        """Count connects that were made besides."""
        self._tallies.append((lawful, tally))
        return tally

    def turns(self, times: int) -> Iterator[int]:
        """Do it so often."""
        for turn in range(times):
            yield turn
            self.times += 1

    def tell(self, note: str) -> None:
        """Add to the note of the figures that settled() has kept."""
        self._figures[-1].note += f", {note}"

    def settled(self, limit: float = 120) -> Ledger:
        """End the connects, check all sums, and keep the figures."""
        for lawful, load in self._loads:
            self.add(lawful, self.site.tally(load))
        self._loads.clear()
        ledger = self.site.settled(self.guardd, limit)
        rogue, lawful_ = (
            [tally for lawful, tally in self._tallies if lawful is which]
            for which in (False, True)
        )
        figure = Figure(
            fault=self.fault,
            times=self.times,
            tried=sum(tally.tried for tally in rogue + lawful_),
            leaked=sum(tally.tried - tally.denied for tally in rogue),
            lawful_denied=sum(tally.tried - tally.passed for tally in lawful_),
            judged=ledger.judged,
            accounted=ledger.accounted,
            lost=ledger.lost,
            doubles=ledger.doubles,
            seconds=round(time.monotonic() - self._began, 1),
            note=self.note,
        )
        self._figures.append(figure)
        print(json.dumps(asdict(figure)))
        print(summary([ledger]))
        assert figure.leaked == 0, "a connect leaked"
        assert figure.lawful_denied == 0, "a lawful connect was denied"
        assert figure.judged == figure.tried, "a connect was not judged"
        ledger.check()
        assert "Traceback" not in self.guardd.said()
        return ledger


def memory_mb(guardd: Guardd) -> float:
    """Give guardd's resident memory."""
    return resident_kb(guardd.process.pid) / 1024
