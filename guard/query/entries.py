# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw entries out of the journal, and only those that guardd wrote."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

# Not systemd.journal: its Reader converts every field of every entry in Python,
# which costs three times the reading, and its import half of ours.
from systemd import _reader

from guard.errors import JournalError
from guard.journal import IDENTIFIER
from guard.privileges import ACCOUNT

Entry: TypeAlias = dict[str, Any]  # bytes, or a list of them for a field given twice

SERVICES = ("smtp-guard.service", "smtp-guard-load.service")

# An entry is written after its connect(): at once, or when guardd is back. The
# ring keeps what happened meanwhile, so --until looks so much further.
LATE_US = 600 * 1_000_000


def writers(foreign: bool) -> list[str]:
    """Give the matches that tell guardd's entries from forged ones.

    Any user may send journald an entry with our MESSAGE_ID; fields that begin
    with an underscore are journald's own and cannot be sent. Trusted are root,
    our units' processes, and on this host the account guardd runs as.
    """
    trusted = ["_UID=0", *(f"_SYSTEMD_UNIT={unit}" for unit in SERVICES)]
    if not foreign:
        with contextlib.suppress(KeyError):
            trusted.append(f"_UID={pwd.getpwnam(ACCOUNT).pw_uid}")
    return trusted


class Journal:
    """The local journal, a directory of journal files, or all hosts' (merge)."""

    def __init__(self, directory: str | None = None, merge: bool = False) -> None:
        """Say which journal; it is opened by each question anew.

        Raises JournalError when directory cannot be read.
        """
        self._directory = directory
        self._flags = 0
        if directory is None:
            # Not the users' own files: guardd writes to the system's.
            self._flags = _reader.SYSTEM | (0 if merge else _reader.LOCAL_ONLY)
        else:
            try:
                os.scandir(directory).close()
            except OSError as error:
                raise JournalError(
                    f"{directory}: {error.strerror}",
                    hint="--directory wants a directory of *.journal files",
                ) from None
        self._finder: Any = None
        self._foreign = directory is not None or merge
        self._trusted = writers(self._foreign)

    def open(self, matches: Sequence[str]) -> Any:
        """Open a reader whose entries are guardd's and meet matches."""
        reader = self._open()
        self._match(reader, matches)
        return reader

    def _open(self) -> Any:
        try:
            return _reader._Reader(self._flags, self._directory)
        except (OSError, ValueError) as error:
            raise JournalError(
                f"cannot be opened: {error}", hint="guardctl doctor looks at journald"
            ) from None

    def _match(self, reader: Any, matches: Sequence[str]) -> None:
        """Ask for (a trusted writer) and (ours) and (all of matches).

        "+" among these parts alternatives.
        """
        for number, trusted in enumerate(self._trusted):
            if number:
                reader.add_disjunction()
            reader.add_match(trusted)
        reader.add_conjunction()
        if not matches:  # any other names a field that only we have
            reader.add_match(f"SYSLOG_IDENTIFIER={IDENTIFIER}")
        for match in matches:
            if match == "+":
                reader.add_disjunction()
            else:
                reader.add_match(match.encode("utf-8", "surrogateescape"))

    def forward(
        self, matches: Sequence[str], since_us: int, until_us: int
    ) -> Iterator[Entry]:
        """Give the entries written in that time, oldest first."""
        with contextlib.closing(self.open(matches)) as reader:
            if since_us:
                reader.seek_realtime(since_us)
            else:
                reader.seek_head()
            while _step(reader._next):
                if reader._get_realtime() > until_us:
                    return
                yield _whole(reader)

    def written_by(
        self,
        units: Sequence[str],
        accounts: Sequence[str],
        since_us: int,
        until_us: int,
    ) -> Iterator[Entry]:
        """Give what others wrote in that time: processes of these units, on this host
        also of these accounts. "_AT" is when journald had it.
        """
        trusted = [f"_SYSTEMD_UNIT={unit}" for unit in units]
        for account in () if self._foreign else accounts:
            with contextlib.suppress(KeyError):
                trusted.append(f"_UID={pwd.getpwnam(account).pw_uid}")
        with contextlib.closing(self._open()) as reader:
            for match in trusted:
                reader.add_match(match)
                reader.add_disjunction()
            reader.seek_realtime(since_us)
            while _step(reader._next):
                if (at := reader._get_realtime()) > until_us:
                    return
                yield {**_whole(reader), "_AT": at}

    def backward(
        self, matches: Sequence[str], since_us: int, until_us: int
    ) -> Iterator[Entry]:
        """Give the entries written in that time, newest first."""
        with contextlib.closing(self.open(matches)) as reader:
            if until_us >> 54:  # the far future, which seeking would wrap
                reader.seek_tail()
            else:
                reader.seek_realtime(until_us + 1)
            while _step(reader._previous):
                if reader._get_realtime() < since_us:
                    return
                yield _whole(reader)

    def follow(self, matches: Sequence[str], since_us: int) -> Iterator[Entry | None]:
        """Give the entries written since then, and go on for ever.

        Gives None when there is nothing more for now, at least once a second.
        """
        with contextlib.closing(self.open(matches)) as reader:
            reader.wait(0)  # watch the files before looking, or a new one is missed
            reader.seek_realtime(since_us)
            while True:
                while _step(reader._next):
                    yield _whole(reader)
                yield None
                reader.wait(1_000_000)

    def find(self, matches: Sequence[str]) -> Entry | None:
        """Give the oldest entry that meets matches; cheap when asked often."""
        return next(self.find_all(matches), None)

    def find_all(self, matches: Sequence[str]) -> Iterator[Entry]:
        """Give the entries that meet matches, oldest first; until the next question."""
        if self._finder is None:
            self._finder = self.open(matches)
        else:
            self._finder.flush_matches()
            self._match(self._finder, matches)
        self._finder.seek_head()
        while _step(self._finder._next):
            yield _whole(self._finder)


def _whole(reader: Any) -> Entry:
    """Give the entry the reader stands at; an empty one where it is damaged."""
    try:
        entry: Entry = reader._get_all()
    except (OSError, ValueError):  # a file torn by a crash: EBADMSG, or a name
        return {}  # that is not UTF-8, which python3-systemd trips over
    return entry


def _step(move: Callable[[], bool]) -> bool:
    """Move the reader on, False at the end. Raises JournalError."""
    try:
        return move()
    except OSError as error:
        raise JournalError(
            f"cannot be read on: {error.strerror}", hint="journalctl --verify"
        ) from None
