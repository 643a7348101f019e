# SPDX-License-Identifier: GPL-2.0-or-later
"""How many messages Postfix was answered about, and the journal does not have yet.

One word of a file of /run, which is mapped: to change it costs no system call, and what
was stored there is there when this process is killed a moment later. It is moved before
an answer goes out, so a kill loses no message that is not told as lost by the next
guardd; one whose entry was just handed over is told as well.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from guard.mta.limits import RUN_DIR

_WORD = 8  # bytes: stored by one instruction, so never half of it


class Owed:
    """The number in its file."""

    def __init__(self, path: Path) -> None:
        """Open it, and keep what a process before this one has left.

        Where that cannot be done (no /run, no room there) `left` is None and `trouble`
        says why; all else goes on.
        """
        self.left: int | None = None  # messages
        self.trouble = ""
        self._words: memoryview | None = None
        try:
            self._words = _mapped(path)
        except OSError as error:
            self.trouble = f"{path}: {error.strerror}"
        else:
            self.left = self._words[0]

    def put(self, messages: int) -> None:
        """So many are owed now."""
        if self._words is not None:
            self._words[0] = messages


def _mapped(path: Path) -> memoryview:
    path.parent.mkdir(mode=0o755, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with contextlib.closing(os.fdopen(file, "r+b")) as stream:
        # room now: a store into a page that /run has no room for would be a SIGBUS
        os.posix_fallocate(stream.fileno(), 0, _WORD)
        return memoryview(mmap.mmap(stream.fileno(), _WORD)).cast("Q")


def owed_file(pin_dir: Path) -> Path:
    """Give where the guardd of these pins keeps it."""
    return RUN_DIR / f"{pin_dir.name}.owed"
