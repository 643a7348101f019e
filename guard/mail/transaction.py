# SPDX-License-Identifier: GPL-2.0-or-later
"""Several files replaced together, or none: also when we are killed in the midst.

The new ones are whole on the disk beside the old ones, and each old one has a second
name, before the first is replaced. A journal names them until all is done; who finds
it later gives the old ones their names back. That takes no room on the disk. A list of
them is there for longer, from before the first of those names is made until the last
is gone; who finds it alone removes what is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.errors import MailError, MailNotApplied
from guard.mail.state import read_private, sha256

JOURNAL, TOUCHED = "journal.json", "touched.json"
_NEW, _OLD = ".smtp-guard-new", ".smtp-guard-old"
_EDITED = ".smtp-guard-edited"


@dataclass(frozen=True, slots=True)
class Target:
    """A file as it is to be; data None: gone. mode is for one that is new."""

    path: Path
    data: bytes | None
    mode: int = 0o644
    keep_mode: bool = False  # and owner, of the one that is replaced


def commit(
    folder: Path,
    targets: Sequence[Target],
    verify: Callable[[], None],
    undone: Callable[[], None],
) -> None:
    """Replace all targets in their order; folder, root's alone, has the journal.

    When verify() or anything before it fails, all files are as before, undone() is
    called, and the error goes on; OSError becomes MailNotApplied.
    """
    try:
        paths = [str(target.path) for target in targets]
        write_private(folder / TOUCHED, json.dumps(paths).encode())
        _prepare(folder, targets)
    except OSError as error:
        _undo(folder)
        raise not_applied(error, folder) from None
    try:
        for target in targets:
            _replace(target)
        verify()
    except BaseException as error:
        _undo(folder)
        undone()
        if isinstance(error, OSError):
            raise not_applied(error, folder) from None
        raise
    (folder / JOURNAL).unlink()
    _sync(folder)
    with contextlib.suppress(OSError):  # it is done; the list of them stays
        _tidy(folder)


def not_applied(error: OSError, folder: Path) -> MailNotApplied:
    """Say what could not be written, by default in folder: all is as before."""
    place = _of_whom(str(error.filename or folder))
    hint = "is the disk full, or mounted read-only?"
    if isinstance(error, PermissionError):  # of root
        hint = f"is it immutable (lsattr {place}), or what does the audit log say?"
    return MailNotApplied(f"{place}: {error.strerror}", hint=hint)


def _undo(folder: Path) -> None:
    try:
        roll_back(folder)
    except OSError as error:
        raise MailError(
            f"{error.filename or folder}: {error.strerror}; some files are new",
            hint="guardctl mail check puts the old ones back once it can write there",
        ) from None


def make_folder(path: Path, mode: int) -> None:
    """Make a folder where there is none, of that mode whatever umask root has.

    Raises OSError.
    """
    if not path.is_dir():
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)


def pending(folder: Path) -> bool:
    """Tell whether somebody was killed in the midst of it."""
    paths = (folder / JOURNAL, folder / TOUCHED)
    return any(x.exists() for path in paths for x in (path, _beside(path, _NEW)))


def roll_back(folder: Path) -> list[str]:
    """Give every old file its name back; give their names. May be begun again.

    What somebody wrote into one since stays beside it, and is in that list.
    """
    restored = _restore(folder)
    _tidy(folder)
    return restored


def _tidy(folder: Path) -> None:
    """Remove all second names, and then the list of them."""
    raw = read_private(folder / TOUCHED)
    with _sense(folder / TOUCHED):
        _clean([Path(path) for path in json.loads(raw or b"[]")])
    _clean(folder / name for name in (JOURNAL, TOUCHED))
    (folder / TOUCHED).unlink(missing_ok=True)


@contextlib.contextmanager
def _sense(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError):
        raise MailError(
            f"{path}: makes no sense",
            hint=f"compare main.cf and the files *{_OLD} beside it by hand, then"
            " remove it",
        ) from None


def _restore(folder: Path) -> list[str]:
    raw = read_private(folder / JOURNAL)
    if raw is None:
        return []
    with _sense(folder / JOURNAL):
        entries = [
            (Path(e["path"]), bool(e["existed"]), str(e["new"]))
            for e in json.loads(raw)
        ]
    edited = []
    for path, existed, new in reversed(entries):
        old = _beside(path, _OLD)
        if existed and not old.exists():
            continue  # it has its name back
        if _is_edited(path, old, new):
            edited.append(path.with_name(path.name + _EDITED))
            edited[-1].unlink(missing_ok=True)
            os.link(path, edited[-1])
        if not existed:
            path.unlink(missing_ok=True)
        else:
            os.replace(old, path)  # does nothing where both are one file, rename(2)
        if path.parent.exists():
            _sync(path.parent)
    (folder / JOURNAL).unlink()
    _sync(folder)
    return [str(path) for path, _, _ in entries] + [
        f"{path} has what somebody wrote since" for path in edited
    ]


def _is_edited(path: Path, old: Path, new: str) -> bool:
    """Tell whether a file is neither the old one nor, by sha256, the new one."""
    if not path.exists() or (old.exists() and path.samefile(old)):
        return False
    return sha256(path.read_bytes()) != new


def write_private(path: Path, data: bytes) -> None:
    """Write a file of root's alone, whole or not at all; raises OSError."""
    new = _beside(path, _NEW)
    _write(new, data, 0o600, None)
    os.replace(new, path)
    _sync(path.parent)


def _prepare(folder: Path, targets: Sequence[Target]) -> None:
    for target in targets:
        old = _status(target.path)
        for suffix in (_NEW, _OLD):
            _beside(target.path, suffix).unlink(missing_ok=True)
        if target.data is not None:
            like = old if target.keep_mode else None
            _write(_beside(target.path, _NEW), target.data, target.mode, like)
        if old:
            os.link(target.path, _beside(target.path, _OLD))
    entries = [
        {
            "path": str(target.path),
            "existed": _status(target.path) is not None,
            "new": "" if target.data is None else sha256(target.data),
        }
        for target in targets
    ]
    write_private(folder / JOURNAL, json.dumps(entries).encode())


def _replace(target: Target) -> None:
    if target.data is None:
        target.path.unlink(missing_ok=True)
    else:
        os.replace(_beside(target.path, _NEW), target.path)
    _sync(target.path.parent)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes, mode: int, like: os.stat_result | None) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as stream:
        stream.write(data)
        stream.flush()
        if like:
            os.fchown(fd, like.st_uid, like.st_gid)
            mode = like.st_mode & 0o7777
        os.fchmod(fd, mode)
        os.fsync(fd)


def _clean(paths: Iterable[Path]) -> None:
    for path in paths:
        for suffix in (_NEW, _OLD):
            # a read-only file system refuses to remove even what is not there
            if _status(_beside(path, suffix)):
                _beside(path, suffix).unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _of_whom(path: str) -> str:
    """Give the file that a name beside it belongs to."""
    return re.sub(rf"/\.([^/]+)(?:{_NEW}|{_OLD})$", r"/\1", path)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
