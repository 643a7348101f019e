# SPDX-License-Identifier: GPL-2.0-or-later
"""One question asked of the host, and its answer: what verify and doctor give."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class State(enum.Enum):
    """How an answer is to be taken."""

    GOOD = "ok"
    NOTE = "note"  # worth knowing, nothing is missing
    WARN = "warn"  # a promise holds only in part
    BAD = "FAIL"  # a promise does not hold


@dataclass(frozen=True, slots=True)
class Check:
    """What was asked, the answer, and what to do when it is not good."""

    name: str
    state: State
    detail: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """Give the fields as a JSON object."""
        return {
            "name": self.name,
            "state": self.state.value.lower(),
            "detail": self.detail,
            "remedy": self.remedy or None,
        }


def good(name: str, detail: str) -> Check:
    """Make an answer that leaves nothing to do."""
    return Check(name, State.GOOD, detail)


def none_bad(checks: Iterable[Check]) -> bool:
    """Tell whether every promise asked about holds."""
    return all(check.state is not State.BAD for check in checks)
