# SPDX-License-Identifier: GPL-2.0-or-later
"""A figure that was measured, and how the kernel times its programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guard import libbpf

STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    what: str
    target: str  # "at most 2.0"; "" is told, not judged
    measured: str
    good: bool | None  # None: there is no target
    detail: str = ""  # what the ratio is made of

    @classmethod
    def at_most(
        cls, what: str, limit: float, value: float, unit: str = "", detail: str = ""
    ) -> Figure:
        """Judge a value that may not be above limit."""
        return cls(
            what,
            f"<= {limit:g}{unit}",
            f"{value:.2f}{unit}",
            value <= limit,
            detail,
        )

    @classmethod
    def at_least(
        cls, what: str, limit: float, value: float, unit: str = "", detail: str = ""
    ) -> Figure:
        """Judge a value that may not be below limit."""
        return cls(
            what, f">= {limit:g}{unit}", f"{value:.2f}{unit}", value >= limit, detail
        )

    @classmethod
    def told(cls, what: str, measured: str, detail: str = "") -> Figure:
        """Tell a value nobody set a target for."""
        return cls(what, "", measured, None, detail)


@contextlib.contextmanager
def bpf_stats() -> Iterator[None]:
    """Have the kernel time every program; bpf_stats_enabled is put back."""
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


@dataclass
class Meter:
    """The run time of one program between two looks, by the kernel's own clock.

    run_time_ns and run_cnt of struct bpf_prog_info; reading the clock twice is
    part of each run, for every program alike.
    """

    program: int  # an open file descriptor
    runs: int = 0
    spent_ns: int = 0

    def __post_init__(self) -> None:
        """Begin here."""
        self.lap()

    def lap(self) -> float:
        """Give ns a run since the last lap; 0 when it did not run."""
        info = libbpf.info(self.program, libbpf.ProgramInfo)
        runs, spent = info.run_cnt - self.runs, info.run_time_ns - self.spent_ns
        self.runs, self.spent_ns = info.run_cnt, info.run_time_ns
        return float(spent / runs) if runs else 0.0
