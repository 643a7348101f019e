# SPDX-License-Identifier: GPL-2.0-or-later
"""What setting up Postfix asks of the guard: which policy, and put it in force."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Guarded(Protocol):
    """The guard of this host, loaded or not."""

    def file(self) -> Path:
        """Give the policy file; raises NotApplied where root did not name it."""

    def is_loaded(self) -> bool:
        """Tell whether a guard is in force."""

    def is_pending(self, file: Path) -> bool:
        """Tell whether that file says what is not in force; raises PolicyError."""

    def put(self, file: Path) -> None:
        """Put that file in force where a guard is loaded; raises GuardError."""

    def alone(self, file: Path) -> AbstractContextManager[None]:
        """Have nobody else apply a policy meanwhile; raises NotApplied."""
