# SPDX-License-Identifier: GPL-2.0-or-later
"""How much each origin has sent, counted once a message, also across restarts.

A database of SQLite in /run: what it holds is of the last hour and of this boot, by
CLOCK_BOOTTIME, so that no step of the clock changes a count. Nothing is synced to a
disk: a process that is killed has handed its transaction to the kernel or has not,
and who pulls the plug ends the boot that the counts are of.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.errors import MtaError
from guard.policy.describe import limit_json
from guard.policy.model import Limit, Policy

RUN_DIR = Path("/run/smtp-guard")
SPANS_NS = (60 * 10**9, 3600 * 10**9)
SPAN_NAMES = ("minute", "hour")
# Rows, of some 200 bytes: whoever makes more origins than that shares one with others.
MOST_ORIGINS = 20_000
OTHERS = b"(others)"
_MOST_KNOWN = 1024  # of which are read once; some 700 bytes
_LONGEST = 512  # bytes of an origin's name; its checksum tells longer ones apart
_REMEMBERED = 4096  # messages that are not counted again when they are asked for again
_BUSY_SECONDS = 0.2  # guardctl reads meanwhile; a writer does not wait for readers
_SEVERITY = ("notify", "hold", "defer", "reject")
# Made anew when it is of another boot or another version.
_VERSION = "1"
_COLUMNS = ("began", "messages", "recipients", "refused", "told")
_SCHEMA = f"""\
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE counts (
    limited TEXT, origin BLOB,
    {", ".join(f"{c}{n} INTEGER" for n in (0, 1) for c in _COLUMNS)},
    PRIMARY KEY (limited, origin)
) WITHOUT ROWID;
CREATE TABLE seen (slot INTEGER PRIMARY KEY, instance TEXT, met TEXT);
"""
_MARKS = ", ".join("?" * (2 + 2 * len(_COLUMNS)))
_PUT = f"INSERT OR REPLACE INTO counts VALUES ({_MARKS})"
_GET = "SELECT * FROM counts WHERE limited = ? AND origin = ?"
_OVER = f"""\
DELETE FROM counts WHERE began0 + {SPANS_NS[0]} <= ?1 AND began1 + {SPANS_NS[1]} <= ?1
"""


@dataclass(slots=True)
class Window:
    """What an origin has sent since the window began; it begins with a message."""

    began_ns: int  # CLOCK_BOOTTIME
    messages: int = 0
    recipients: int = 0
    refused: int = 0  # messages
    told: int = 0  # 1: a finding says that the limit is met


@dataclass(frozen=True, slots=True)
class Met:
    """An origin sent more than a limit allows, the first time in a window."""

    limit: Limit
    origin: str  # surrogateescape
    span: int  # index of SPANS_NS
    window: Window


@dataclass(frozen=True, slots=True)
class Count:
    """One origin under one limit, as guardctl shows it."""

    limit: str
    origin: str
    windows: tuple[Window, Window]


class Counts:
    """The counts of one guardd; used by one thread."""

    def __init__(self, path: Path) -> None:
        """Keep them there; nothing is opened before put()."""
        self._path = path
        self._base: sqlite3.Connection | None = None
        self._rows = 0  # at least as many as there are
        # What the file holds, as it is open: nobody else writes it. Of some origins,
        # and of all messages that are remembered, by slot.
        self._known: dict[tuple[str, bytes], tuple[Window, Window]] = {}
        self._seen: dict[int, tuple[str, str]] = {}

    def put(self, policy: Policy) -> None:
        """Note which limits are in force, for guardctl. Raises MtaError."""
        said = {
            "limits": json.dumps([limit_json(limit) for limit in policy.mta.limits]),
            "enforces": str(int(policy.mta_enforces)),
        }
        with self._changing() as base:
            base.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", said.items())

    def take(
        self,
        instance: str,
        limited: Sequence[tuple[Limit, str]],
        recipients: int,
        enforce: bool,
    ) -> tuple[Limit | None, list[Met]]:
        """Count a message; give the strictest limit that it is beyond, and news.

        Every limit that it falls under with its origin; a message that is refused
        counts as that alone. The instance of one that was let pass counts no more, and
        gets the same answer. Raises MtaError, and then nothing is counted.
        """
        with self._changing() as base:
            slot = zlib.crc32(instance.encode(errors="surrogateescape")) % _REMEMBERED
            seen = self._seen.get(slot)
            if instance and seen and seen[0] == instance:
                by_name = {limit.name: limit for limit, _ in limited}
                return by_name.get(seen[1]), []
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            met, news = self._count(base, limited, recipients, enforce, now_ns)
            # one that was refused may be sent again under the same name: smtpd leaves
            # its transaction open after a refusal at the end of data
            if not _refuses(met, enforce):
                self._seen[slot] = said = (instance, met.name if met else "")
                base.execute(
                    "INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (slot, *said)
                )
        return met, news

    def _count(
        self,
        base: sqlite3.Connection,
        limited: Sequence[tuple[Limit, str]],
        recipients: int,
        enforce: bool,
        now_ns: int,
    ) -> tuple[Limit | None, list[Met]]:
        rows = []
        beyond: list[Limit] = []
        news: list[Met] = []
        for limit, origin in limited:
            key, windows = self._row(base, limit, _key(origin), now_ns)
            over = [
                span
                for span, window in enumerate(windows)
                if _is_more(window.messages + 1, limit.messages[span])
                or _is_more(window.recipients + recipients, limit.recipients[span])
            ]
            rows.append((limit, key, windows, bool(over)))
            if over:
                beyond.append(limit)
            for span in over:
                if not windows[span].told:
                    windows[span].told = 1
                    news.append(Met(limit, _text(key), span, windows[span]))
        met = max(beyond, key=lambda one: _SEVERITY.index(one.action), default=None)
        refuses = _refuses(met, enforce)
        for limit, key, windows, is_over in rows:
            for window in windows:
                if not refuses:
                    window.messages += 1
                    window.recipients += recipients
                elif is_over:
                    window.refused += 1
            base.execute(_PUT, (limit.name, key, *_flat(windows)))
            self._known[limit.name, key] = windows
        return met, news

    def _row(
        self, base: sqlite3.Connection, limit: Limit, key: bytes, now_ns: int
    ) -> tuple[bytes, tuple[Window, Window]]:
        """Find the windows of an origin, begun anew where they are over."""
        windows = self._known.get((limit.name, key))
        if windows is None:
            row = base.execute(_GET, (limit.name, key)).fetchone()
            windows = _windows(row) if row else None
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
        if windows is None and key != OTHERS:
            if self._rows >= MOST_ORIGINS:
                base.execute(_OVER, (now_ns,))
                self._known.clear()
                [self._rows] = base.execute("SELECT count(*) FROM counts").fetchone()
            if self._rows >= MOST_ORIGINS:
                return self._row(base, limit, OTHERS, now_ns)
            self._rows += 1
        windows = windows or (Window(now_ns), Window(now_ns))
        first, second = (
            window if window.began_ns + span_ns > now_ns else Window(now_ns)
            for window, span_ns in zip(windows, SPANS_NS, strict=True)
        )
        return key, (first, second)

    def close(self) -> None:
        """Let go of the file; the counts stay."""
        if self._base is not None:
            self._base.close()
        self._base = None
        self._known.clear()
        self._seen.clear()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Do all of it or nothing. Raises MtaError; what is no database is removed."""
        try:
            if self._base is None:
                self._base = self._open()
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
                self._base.execute("COMMIT")
            except BaseException:
                self._base.rollback()
                self.close()  # for what is known of it may not be in it
                raise
        except sqlite3.OperationalError as error:  # a full disk, or a lock
            self.close()
            raise MtaError(f"{self._path}: {error}", hint="counts go on") from None
        except sqlite3.DatabaseError as error:
            self.close()
            _remove(self._path)
            raise MtaError(
                f"{self._path}: {error}", hint="it is made anew: counts begin at 0"
            ) from None
        except OSError as error:
            raise MtaError(f"{self._path}: {error.strerror}") from None

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o755, exist_ok=True)
        _see_file(self._path)
        base = _connect(self._path)
        about = {"boot": boot_id(), "version": _VERSION}
        if _about(base, "boot", "version") != tuple(about.values()):
            base.close()
            _remove(self._path)
            base = _connect(self._path)
            base.executescript(_SCHEMA)
            base.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        [self._rows] = base.execute("SELECT count(*) FROM counts").fetchone()
        seen = base.execute("SELECT slot, instance, met FROM seen")
        self._seen = {slot: (instance, met) for slot, instance, met in seen}
        return base


def read_counts(path: Path) -> tuple[list[dict[str, object]], bool, list[Count]]:
    """Give the limits in force, whether they are enforced, and who has sent what.

    Only what has been sent in windows that are not over. Raises MtaError when no
    guardd of this boot has counted there.
    """
    try:
        with _as_owner(path.parent):
            if not os.path.lexists(path):
                raise MtaError(f"{path}: nothing is counted", hint=_NOT_COUNTED)
            _see_file(path)
            return _read(path)
    except FileNotFoundError:
        raise MtaError(f"{path}: nothing is counted", hint=_NOT_COUNTED) from None
    except OSError as error:
        raise MtaError(f"{path}: {error.strerror}", hint=_NOT_COUNTED) from None
    except sqlite3.Error as error:
        raise MtaError(f"{path}: {error}", hint=_NOT_COUNTED) from None


_NOT_COUNTED = "does guardd run, and has its policy an [[mta.limit]]?"


def _read(path: Path) -> tuple[list[dict[str, object]], bool, list[Count]]:
    with contextlib.closing(_connect(path, "ro")) as base:
        boot, limits, enforces = _about(base, "boot", "limits", "enforces")
        if boot != boot_id() or limits is None:
            raise MtaError(f"{path}: is of another boot", hint=_NOT_COUNTED)
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        rows = base.execute("SELECT * FROM counts ORDER BY messages1 DESC")
        counts = [_current(row, now_ns) for row in rows]
    return json.loads(limits), enforces == "1", [one for one in counts if one]


@contextlib.contextmanager
def _as_owner(folder: Path) -> Iterator[None]:
    """Let root be no more than the owner of a folder, whose files are read meanwhile.

    Whatever guardd's own user has put there, also between a look and an open(), leads
    no further than that user can come. Raises OSError.
    """
    owner = os.stat(folder)
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _see_file(path: Path) -> None:
    """Raises MtaError for a link, which leads anywhere, and for what is no file."""
    for end in ("", "-wal", "-shm"):
        place = path.with_name(path.name + end)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(place.lstat().st_mode):
                raise MtaError(f"{place}: is no file", hint="remove it")


def _current(row: tuple[object, ...], now_ns: int) -> Count | None:
    first, second = (
        window if window.began_ns + span_ns > now_ns else Window(now_ns)
        for window, span_ns in zip(_windows(row), SPANS_NS, strict=True)
    )
    if not any(one.messages or one.refused for one in (first, second)):
        return None
    return Count(str(row[0]), _text(row[1]), (first, second))


def counts_file(pin_dir: Path) -> Path:
    """Give where the guardd of these pins counts."""
    return RUN_DIR / f"{pin_dir.name}.counts"


def boot_id() -> str:
    """Give the kernel's name for this boot, random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _connect(path: Path, mode: str = "rwc") -> sqlite3.Connection:
    base = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_SECONDS,
        check_same_thread=False,
    )
    # WAL: who reads does not hold up who writes, and a write is one append
    if mode != "ro":
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = OFF")
    return base


def _about(base: sqlite3.Connection, *names: str) -> tuple[str | None, ...]:
    try:
        found = dict(base.execute("SELECT name, value FROM about").fetchall())
    except sqlite3.OperationalError:  # no such table: it was made just now
        found = {}
    return tuple(found.get(name) for name in names)


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            path.with_name(path.name + end).unlink()


def _windows(row: Sequence[object]) -> tuple[Window, Window]:
    numbers = [int(str(number)) for number in row[2:]]
    half = len(_COLUMNS)
    return Window(*numbers[:half]), Window(*numbers[half:])


def _flat(windows: tuple[Window, Window]) -> list[int]:
    return [
        number
        for w in windows
        for number in (w.began_ns, w.messages, w.recipients, w.refused, w.told)
    ]


def _refuses(met: Limit | None, enforce: bool) -> bool:
    return enforce and met is not None and met.action in ("defer", "reject")


def _is_more(number: int, most: int | None) -> bool:
    return most is not None and number > most


def _key(origin: str) -> bytes:
    raw = origin.encode("utf-8", "surrogateescape")
    if len(raw) <= _LONGEST:
        return raw
    return raw[:_LONGEST] + b"...%08x" % zlib.crc32(raw)


def _text(raw: object) -> str:
    return (
        bytes(raw).decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else ""
    )
