# SPDX-License-Identifier: GPL-2.0-or-later
"""Which inputs to keep: the fewest and shortest that reach all that was reached."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.targets import survives

_GUARD = str(Path(__file__).resolve().parents[2] / "guard")
FOUND = "found-"  # what was made by hand has a name that says why
MOST, LONGEST = 12, 4000  # inputs found, of a target; bytes

Step = tuple[str, int, int]  # file, line before, line


def steps(target: Callable[[bytes], None], data: bytes) -> set[Step]:
    """Give the steps from line to line in guard/ that an input makes it take."""
    taken: set[Step] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_GUARD):
            return None
        last = frame.f_lineno

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            taken.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        survives(target, data)
    finally:
        sys.settrace(before)
    return taken


def keep(
    target: Callable[[bytes], None], folder: Path, found: Iterable[Path]
) -> tuple[int, int]:
    """Put the best of `found` beside what was made by hand, in place of earlier ones.

    Gives how many inputs were found and now are in folder, and how many steps all
    in it make.
    """
    pool: dict[bytes, set[Step]] = {}
    reached: set[Step] = set()
    for path in folder.iterdir():
        data = path.read_bytes()
        if path.name.startswith(FOUND):
            pool[data] = steps(target, data)
            path.unlink()
        else:
            reached |= steps(target, data)
    for path in found:
        data = path.read_bytes()
        if len(data) <= LONGEST and data not in pool:
            pool[data] = steps(target, data)
    kept = 0
    while pool and kept < MOST:
        best = max(pool, key=lambda data: (len(pool[data] - reached), -len(data)))
        new = pool.pop(best) - reached
        if not new:
            break
        reached |= new
        name = FOUND + hashlib.sha256(best).hexdigest()[:12]
        (folder / name).write_bytes(best)
        kept += 1
    return kept, len(reached)
