# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections counted by what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from guard.finding import Finding

# What a process can choose it can choose anew each time. So many groups are
# kept, some 100 MB of the longest; the rest is counted as OTHERS.
MOST = 50_000
OTHERS = "(others)"
MANY = "(many)"  # destinations, of which a sum tells

FIELDS: dict[str, Callable[[Finding], Any]] = {
    "user": lambda f: f.user,
    "uid": lambda f: f.uid,
    "group": lambda f: f.group,
    "gid": lambda f: f.gid,
    "loginuid": lambda f: f.loginuid,
    "pid": lambda f: f.pid,
    "comm": lambda f: f.comm,
    "exe": lambda f: f.exe,
    "args": lambda f: " ".join(f.args),
    "cwd": lambda f: f.cwd,
    "script": lambda f: f.script,
    "pool": lambda f: f.pool,
    "unit": lambda f: f.unit,
    "cgroup": lambda f: f.cgroup,
    "container": lambda f: f.container,
    "to": lambda f: MANY if f.destinations == "many" else f.dst[0],
    "port": lambda f: f.dst[1],
    "rule": lambda f: f.rule,
    "verdict": lambda f: f.verdict,
    "direction": lambda f: f.direction,
    "kind": lambda f: f.kind.value,
    "outcome": lambda f: f.outcome,
}


@dataclass(slots=True)
class Group:
    """Connections that have one value in common."""

    value: Any  # None: not known
    count: int = 0
    denied: int = 0  # of these, or would have been
    last_us: int = 0  # CLOCK_REALTIME of the last


def groups(found: Iterable[Finding], field: str) -> list[Group]:
    """Count connections by one of FIELDS; the biggest group is first.

    A summary counts as many as it stands for.
    """
    value_of = FIELDS[field]
    made: dict[Any, Group] = {}
    for finding in found:
        value = value_of(finding)
        group = made.get(value)
        if group is None:
            if len(made) >= MOST:
                value = OTHERS
            group = made.setdefault(value, Group(value))
        group.count += finding.count
        if finding.verdict == "deny":
            group.denied += finding.count
        group.last_us = max(group.last_us, finding.last_us, finding.time_us)
    return sorted(made.values(), key=lambda group: (-group.count, str(group.value)))
