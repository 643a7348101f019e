# SPDX-License-Identifier: GPL-2.0-or-later
"""Says at once when one of some files was replaced, made or removed.

inotify(7) by ctypes: of the Python wrappers Debian has, none is maintained and
this takes three calls. Folders are watched, not files: a package upgrade puts a
new file under the old name.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

from guard.errors import KernelError

# linux/inotify.h
_IN_ATTRIB = 0x4
_IN_CLOSE_WRITE = 0x8
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400
_IN_MOVE_SELF = 0x800
_IN_ONLYDIR = 0x1000000
_CHANGES = (
    _IN_ATTRIB
    | _IN_CLOSE_WRITE
    | _IN_MOVED_FROM
    | _IN_MOVED_TO
    | _IN_CREATE
    | _IN_DELETE
    | _IN_DELETE_SELF
    | _IN_MOVE_SELF
    | _IN_ONLYDIR
)
_Q_OVERFLOW = 0x4000
_EVENT = struct.Struct("=iIII")  # struct inotify_event without its name
_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Becomes readable when something happened to one of its files."""

    def __init__(self) -> None:
        """Watch nothing yet. Raises KernelError, EMFILE when inotify is used up."""
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise KernelError(
                "cannot watch files: inotify_init1",
                ctypes.get_errno(),
                hint="sysctl fs.inotify.max_user_instances=1024",
            )
        self._names: dict[int, set[bytes]] = {}

    def fileno(self) -> int:
        """Give the descriptor to wait on."""
        return self._fd

    def watch(self, paths: frozenset[Path]) -> None:
        """Watch exactly these, there or not: of a missing folder, the nearest
        one above it that exists. Raises KernelError when some cannot be watched;
        the others are.
        """
        failed = 0
        names: dict[int, set[bytes]] = {}
        for path in paths:
            folder, name = path.parent, path.name
            while not folder.is_dir():
                folder, name = folder.parent, folder.name
            watch = _libc.inotify_add_watch(self._fd, bytes(folder), _CHANGES)
            if watch >= 0:
                names.setdefault(watch, set()).add(os.fsencode(name))
            else:
                failed = ctypes.get_errno()
        for watch in self._names.keys() - names.keys():
            _libc.inotify_rm_watch(self._fd, watch)
        self._names = names
        if failed:
            raise KernelError(
                "inotify_add_watch",
                failed,
                hint="sysctl -w fs.inotify.max_user_watches=1048576",
            )

    def changed(self) -> bool:
        """Read what happened; True when it was to one of the files.

        Call watch() again then: folders may have come or gone.
        """
        found = False
        while True:
            try:
                raw = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            found = concerns(raw, self._names) or found
        return found

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)


def concerns(raw: bytes, names: Mapping[int, Collection[bytes]]) -> bool:
    """Tell whether one of these events is about one of the files.

    raw is what inotify(7) gave; names are files by watch. An event of a folder
    itself, a full queue, and what is cut off count as about all.
    """
    at = 0
    while at < len(raw):
        if len(raw) - at < _EVENT.size:
            return True
        watch, mask, _, length = _EVENT.unpack_from(raw, at)
        at += _EVENT.size
        name = raw[at : at + length].rstrip(b"\0")
        at += length
        if not name or name in names.get(watch, ()) or mask & _Q_OVERFLOW:
            return True
    return False
