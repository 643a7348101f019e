# SPDX-License-Identifier: GPL-2.0-or-later
"""A file written whole, for the verbs that write one."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: bytes) -> None:
    """Write a file of root's and have it on the disk; raises OSError.

    Whatever root's umask is, all may read it: guardd does as its own user.

    What had this name is replaced: give it one that is nobody's, and rename or
    link it when it is whole.
    """
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with open(fd, "wb") as stream:
        os.fchmod(fd, 0o644)
        stream.write(text)
        stream.flush()
        os.fsync(fd)
