# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory the guard's maps have, and a limit for those who make them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from guard.kernel import Guard
from guard.tables import MAPS
from tests.journald import until


def map_bytes(guard: Guard) -> int:
    """Add up what the kernel has charged for the maps: memlock in proc_pid_fdinfo(5)."""
    total = 0
    for name in MAPS.values():
        text = Path(f"/proc/self/fdinfo/{guard.map(name).fd}").read_text()
        total += int(text.partition("memlock:")[2].split()[0])
    return total
