# SPDX-License-Identifier: GPL-2.0-or-later
"""One row a connection, in order of time, in bounded memory.

A connection has an entry when it is made and one when it ends. They are merged
while the journal streams by: an entry waits in a window of so many, in which
the other half mostly comes along; for the rest journald's index is asked.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

from guard.errors import JournalError
from guard.finding import MAIL, Finding, Kind, Message, Notice
from guard.journal import Found, read
from guard.query.entries import LATE_US, Entry, Journal
from guard.query.filters import Filter

# Entries that wait to be put in order of time and for their end. A summary is
# written some seconds after its first connect; this is as many as that may be.
WINDOW = 1000
# Ends whose beginning is further back, when reading backwards.
ENDS = 10_000

# Kinds of entry that stand for a connect(), or for several.
_BEGINNINGS = (
    Kind.DENIED.value,
    Kind.WOULD_DENY.value,
    Kind.REDIRECTED.value,
    Kind.ALLOWED.value,
    Kind.LOCAL.value,
    Kind.SUMMARY.value,
    Kind.PRE_EXISTING.value,
    Kind.BACKSTOP.value,
)
_ENDINGS = (Kind.CLOSED.value.encode(), Kind.ENDED.value.encode())
_MAIL = tuple(kind.value.encode() for kind in MAIL)  # a field may be a list
_SUMMARY = Kind.SUMMARY.value.encode()
# What the end of a connection knows better than its beginning.
_END_FIELDS = (
    "SMTPGUARD_OUTCOME",
    "SMTPGUARD_ERROR",
    "SMTPGUARD_BYTES_SENT",
    "SMTPGUARD_BYTES_RECEIVED",
    "SMTPGUARD_DURATION_US",
)

Torn = Callable[[JournalError], None]


def findings(
    journal: Journal, wanted: Filter, torn: Torn, since_us: int | None = None
) -> Iterator[Found | None]:
    """Follow the journal: every finding and notice as it is written, for ever.

    From since_us (CLOCK_REALTIME; None: wanted's), filtered by wanted. None is
    given when there is nothing more for now. torn is told of every entry that
    cannot be read.
    """
    accept = wanted.accepts()
    since = wanted.since_us if since_us is None else since_us
    for entry in journal.follow(wanted.matches(), since):
        if entry is None:
            yield None
            continue
        found = _read(entry, torn)
        if found is not None and _accepts(accept, found):
            yield found


def connections(
    journal: Journal,
    wanted: Filter,
    torn: Torn,
    *,
    newest_first: bool = False,
    ends: bool = True,
) -> Iterator[Finding]:
    """Give what wanted asks for, a Finding a connection, in order of time.

    The Finding is that of the connect(), with outcome, error, bytes and
    duration of its end if it has ended; without ends=True these stay as they
    were at the connect(). A SUMMARY stands for `count` connections. torn is told
    of every entry that cannot be read. Raises JournalError and BadQuery.
    """
    if not ends and not wanted.kinds:
        wanted = replace(wanted, kinds=_BEGINNINGS)  # half of the entries
    accept = wanted.accepts()
    window = _Window(journal, newest_first)
    walk = journal.backward if newest_first else journal.forward
    until = min(wanted.until_us + LATE_US, (1 << 63) - 1)
    begun = _beginnings(walk(wanted.matches(), wanted.since_us, until), ends, window)
    for entry in begun:
        found = _read(entry, torn)
        if isinstance(found, Finding) and accept(found):
            yield found


def _accepts(accept: Callable[[Finding], bool], found: Found) -> bool:
    """A message is wanted when the connection is that it came by."""
    if isinstance(found, Message):
        by = found.origin
        return by is None or accept(replace(by, time_us=found.time_us))
    return isinstance(found, Notice) or accept(found)


def _read(entry: Entry, torn: Torn) -> Found | None:
    try:
        return read(entry)
    except JournalError as error:
        torn(error)
        return None


def _beginnings(
    entries: Iterator[Entry], ends: bool, window: _Window
) -> Iterator[Entry]:
    """Give the entries that begin a connection, in order, each with its end."""
    for entry in entries:
        if (kind := entry.get("SMTPGUARD_KIND")) in _MAIL:
            continue
        if kind in _ENDINGS:
            if ends:
                window.end(entry)
        else:
            yield from window.begin(entry, ends)
    yield from window.rest()


class _Window:
    """The entries that wait: for those written later, and for their end."""

    def __init__(self, journal: Journal, newest_first: bool) -> None:
        self._journal = journal
        self._backwards = newest_first
        self._heap: list[tuple[int, int, Entry]] = []
        self._number = count()
        self._names: dict[bytes, None] = {}  # of the last beginnings, oldest first
        self._open: dict[bytes, Entry] = {}  # without an end so far
        self._ends: dict[bytes, Entry] = {}  # read before their beginning

    def begin(self, entry: Entry, ends: bool) -> Iterator[Entry]:
        """Take a beginning in; give the one that need wait no longer."""
        if self._is_double(entry):
            return
        if ends and (name := _awaits_end(entry)):
            if end := self._ends.pop(name, None):
                entry.update(end)
            else:
                self._open[name] = entry
        key = _time(entry)
        heapq.heappush(
            self._heap, (-key if self._backwards else key, next(self._number), entry)
        )
        if len(self._heap) > WINDOW:
            yield self._next()

    def _is_double(self, entry: Entry) -> bool:
        """Tell whether it was there: a guardd that is killed with an event in hand
        may have written it, and the next one writes it again.
        """
        name = entry.get("SMTPGUARD_CONNECTION")
        if not isinstance(name, bytes) or entry.get("SMTPGUARD_KIND") == _SUMMARY:
            return False
        if name in self._names:
            return True
        self._names[name] = None
        if len(self._names) > WINDOW:
            del self._names[next(iter(self._names))]
        return False

    def end(self, entry: Entry) -> None:
        """Take an end in: to its beginning, or kept for it when backwards."""
        name = entry.get("SMTPGUARD_CONNECTION")
        if not isinstance(name, bytes):
            return
        end = {field: entry[field] for field in _END_FIELDS if field in entry}
        if opening := self._open.pop(name, None):
            opening.update(end)
        elif self._backwards:
            self._ends[name] = end
            if len(self._ends) > ENDS:  # its beginning will ask the index
                del self._ends[next(iter(self._ends))]

    def rest(self) -> Iterator[Entry]:
        """Give all that still waits."""
        while self._heap:
            yield self._next()

    def _next(self) -> Entry:
        entry = heapq.heappop(self._heap)[2]
        name = _awaits_end(entry)
        if name and self._open.pop(name, None) is not None:
            end = self._journal.find(
                [
                    f"SMTPGUARD_CONNECTION={name.decode('utf-8', 'surrogateescape')}",
                    f"SMTPGUARD_KIND={Kind.CLOSED.value}",
                    f"SMTPGUARD_KIND={Kind.ENDED.value}",
                ]
            )
            if end:
                entry.update({f: end[f] for f in _END_FIELDS if f in end})
        return entry


def _awaits_end(entry: Entry) -> bytes | None:
    """Name the connection whose end is still to come; None: there is none."""
    if entry.get("SMTPGUARD_OUTCOME") not in (b"syn-sent", b"to-end"):
        return None
    if entry.get("SMTPGUARD_KIND") == _SUMMARY:
        return None  # it bears the name of the first of many
    name = entry.get("SMTPGUARD_CONNECTION")
    return name if isinstance(name, bytes) else None


def _time(entry: Entry) -> int:
    """Give the time to sort by; a torn entry goes first."""
    text = entry.get("SMTPGUARD_TIME_US")
    if not isinstance(text, bytes) or len(text) > 20 or not text.isdigit():
        return 0
    return int(text)
