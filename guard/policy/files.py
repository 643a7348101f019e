# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files a policy may rest on: root's, and writable by nobody else.

A path is walked name by name, links and all, as the kernel would, because a
directory or link that somebody else can change is as good as the file.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guard.abi import ExeKey

_LINKS = 40  # MAXSYMLINKS, include/linux/namei.h
_MINOR_BITS = 20  # MINORBITS, include/linux/kdev_t.h


@dataclass(frozen=True, slots=True)
class Walk:
    """What stands between the root and a file."""

    real: Path
    entries: tuple[tuple[Path, os.stat_result], ...]  # the file itself is last

    @property
    def links(self) -> list[Path]:
        """Name the symbolic links on the way."""
        return [path for path, status in self.entries if stat.S_ISLNK(status.st_mode)]


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a file is not to be relied on."""

    message: str
    remedy: str


def walk(path: Path) -> Walk:
    """Follow an absolute path; raises OSError as open(2) would."""
    here = Path("/")
    todo = [part for part in reversed(path.parts[1:]) if part != "."]
    entries = [(here, os.lstat(here))]
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            here = here.parent
            continue
        there = here / part
        status = os.lstat(there)
        entries.append((there, status))
        if not stat.S_ISLNK(status.st_mode):
            here = there
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = Path(os.readlink(there))
        if target.is_absolute():
            here = Path("/")
        todo.extend(part for part in reversed(target.parts) if part != "/")
    return Walk(here, tuple(entries))


def doubt(way: Walk, *, strict_directory: bool) -> Doubt | None:
    """Find the first thing on the way that somebody other than root can change.

    strict_directory: also refuse a sticky or root-group-writable directory
    right above the file, where others could add a hard link under its name.
    """
    for path, status in way.entries:
        if status.st_uid != 0:
            return Doubt(
                f"{path} belongs to {_user(status.st_uid)}, not to root",
                f"chown root {path}",
            )
        if stat.S_ISLNK(status.st_mode):
            continue
        loose = status.st_mode & 0o022
        if stat.S_ISDIR(status.st_mode) and not (
            strict_directory and path == way.real.parent
        ):
            # In a sticky directory only root can rename what belongs to root.
            if status.st_mode & stat.S_ISVTX:
                loose = 0
            elif status.st_gid == 0:
                loose &= 0o002
        if loose:
            who = "group" if loose == 0o020 else "others"
            return Doubt(f"{path} can be written by {who}", f"chmod go-w {path}")
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def links_on_the_way(paths: Iterable[Path]) -> set[Path]:
    """Name paths, where they lead, and every link between, as far as they exist."""
    found: set[Path] = set()
    for path in paths:
        found.add(path)
        try:
            way = walk(path)
        except OSError:
            continue
        found.update(way.links, [way.real])
    return found


def stat_identify(path: Path) -> tuple[ExeKey, ExeKey]:
    """Give a file's keys by inode and by name from stat(2) alone.

    For explanations: the inode's generation, which only the kernel programs
    read, stays 0. Raises OSError when there is no such file.
    """
    real = walk(path).real
    return _key(os.stat(real)), _key(os.stat(real.parent), os.fsencode(real.name))


def _key(status: os.stat_result, name: bytes = b"") -> ExeKey:
    return ExeKey(status.st_ino, device_number(status), 0, 0, 0, name)


def device_number(status: os.stat_result) -> int:
    """Give the device of a file as the kernel keeps it, linux/kdev_t.h."""
    return os.major(status.st_dev) << _MINOR_BITS | os.minor(status.st_dev)


def is_missing(error: OSError) -> bool:
    """Tell whether a file is just not there, or not yet."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_trusted(status: os.stat_result) -> bool:
    """Tell whether the kernel compares this executable at all: root's alone."""
    return status.st_uid == 0 and not status.st_mode & 0o022
