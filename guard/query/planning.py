# SPDX-License-Identifier: GPL-2.0-or-later
"""Who was or would be denied, one Candidate for an identity a rule can name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from guard.finding import Finding
from guard.origin import session_slice

# As in groups.py: a process can invent identities without end.
MOST = 10_000
# So many values of a kind are kept with a candidate: examples, not a record.
EXAMPLES = 20


@dataclass(slots=True)
class Candidate:
    """What one identity (unit, executable, user, direction) tried."""

    finding: Finding  # the last of them
    count: int = 0
    first_us: int = 0  # CLOCK_REALTIME
    last_us: int = 0
    ports: set[int] = field(default_factory=set)
    to: set[str] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    more_to: bool = False  # than EXAMPLES


def place(finding: Finding) -> str | None:
    """Give the unit that a rule would name; None: it would name none."""
    return session_slice(finding.cgroup) or finding.unit


def candidates(found: Iterable[Finding]) -> tuple[list[Candidate], int]:
    """Group findings by who a rule would name; the most denied is first.

    The second value counts the connections of identities beyond the first MOST.
    """
    made: dict[tuple[object, ...], Candidate] = {}
    beyond = 0
    for finding in found:
        key = (
            place(finding),
            finding.container,
            finding.exe,
            finding.exe_nlink == 0,
            finding.uid,
            finding.direction,
            finding.lock,
            _forwarded(finding),
        )
        candidate = made.get(key)
        if candidate is None:
            if len(made) >= MOST:
                beyond += finding.count
                continue
            candidate = made[key] = Candidate(finding, first_us=finding.time_us)
        _add(candidate, finding)
    return sorted(made.values(), key=lambda c: (-c.count, -c.last_us)), beyond


def _forwarded(finding: Finding) -> str | None:
    """Give whom a forwarded packet came from: that is what can be allowed."""
    forwarded = (finding.lock or "").endswith("-forward")
    return finding.src[0] if forwarded and finding.src else None


def _add(candidate: Candidate, finding: Finding) -> None:
    candidate.count += finding.count
    last = max(finding.last_us, finding.time_us)
    if last >= candidate.last_us:
        candidate.last_us, candidate.finding = last, finding
    candidate.first_us = min(candidate.first_us, finding.time_us)
    candidate.ports.add(finding.dst[1])
    if len(candidate.directories) < EXAMPLES:
        candidate.directories.add(finding.cwd)
    if len(candidate.to) < EXAMPLES:
        candidate.to.add(finding.dst[0])
    elif finding.dst[0] not in candidate.to:
        candidate.more_to = True
    if finding.destinations == "many":
        candidate.more_to = True
