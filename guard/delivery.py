# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries handed to journald, and handed over again when it did not keep them.

journald takes an entry and drops it without a word when its disk is full or its rate
limit is met. What was sent since the journal was last seen to have everything is
therefore kept here, a thousand entries at most; all others wait in the kernel.

It may also leave entries out by intention: all of them (Storage=none), or those above
a level (MaxLevelStore=; journald.conf(5)). So an entry that is missing was dropped
where one of its level, or of a less urgent one, was ever seen to arrive. Where none
was, nobody can tell yet: it is kept here, a thousand of these at most, and handed over
again once its level is seen to arrive.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from guard.errors import JournalError
from guard.finding import Finding, Kind, Message, Notice
from guard.journal import PREFIX, WRITER, Found, JournalWriter, frame, lines
from guard.kernel import Guard
from guard.message import level
from guard.receipts import Receipts

UNSURE = 1024  # entries; some 1.5 MB, of which Python makes several
_TRIED = 8  # names that are recorded; of older ones nobody asks, they count as lost
_AGAIN_SECONDS = 0.1  # after an error that came at once
_PROBE_SECONDS = 1.0  # between two attempts while nothing is kept
_SLOW_SECONDS = 1.0  # for journald to read what waits in its socket
_HAND_SECONDS = 0.3  # for the entry that it has in hand then
_LOOK_SECONDS = 0.002
_NOTHING_KEPT = -1  # a level below all those of syslog(3)
_ALONE_SECONDS = 5.0  # for journald to take an entry, where nothing waits behind it


class _Fate(enum.Enum):
    """What became of all that was sent."""

    KEPT = enum.auto()
    DROPPED = enum.auto()  # not all is in the journal, and journald has read all
    DOUBT = enum.auto()  # more is in it than was sent: something was written twice
    SLOW = enum.auto()
    UNKNOWN = enum.auto()  # what is missing is of levels that may be left out


@dataclass(frozen=True, slots=True)
class _Sent:
    """An entry that journald took."""

    datagram: bytes
    level: int  # syslog(3)
    name: str  # fields, a line each, that no other entry has all; empty: no such
    connects: int  # that it stands for


class Record:
    """What the guard's record says of the way to the journal, over restarts."""

    def __init__(self, guard: Guard) -> None:
        """Begin where the last process ended."""
        self._guard = guard
        about = guard.about()
        # the least urgent of the levels that this host's journal was seen to keep
        self.kept_level: int = about.get("kept_level", _NOTHING_KEPT)
        self._lost = int(about.get("unkept", 0))  # by processes that have ended
        self._told = int(about.get("unkept_told", 0))
        self._unkept = 0
        # of those, by name, what each such process had handed over again at its end
        self._tried: dict[str, int] = about.get("unkept_tried") or {}

    def prove(self, level: int) -> None:
        """Entries of this level were seen to arrive in this host's journal."""
        if level > self.kept_level:
            self.kept_level = level
            self._guard.set_about(kept_level=level)

    def unkept(self, connects: int) -> None:
        """So many connects are in entries that journald dropped; 0: none any more.

        Recorded because they are lost when this process is ended now.
        """
        if connects != self._unkept:
            self._unkept = connects
            self._note(self._tried)

    def trying(self, name: str, connects: int) -> None:
        """An entry of so many connects is handed over again: it may yet arrive."""
        latest = dict([*self._tried.items(), (name, connects)][-_TRIED:])
        self._note(latest)

    def arrived(self, has: Callable[[str], bool]) -> None:
        """Count as kept what earlier processes had tried and the journal has."""
        missing = {name: n for name, n in self._tried.items() if not has(name)}
        if missing != self._tried:
            self._lost -= sum(self._tried.values()) - sum(missing.values())
            self._tried = missing
            self._note(missing)

    def _note(self, tried: dict[str, int]) -> None:
        self._guard.set_about(
            unkept=self._lost + self._unkept, unkept_tried=tried or None
        )

    def news(self) -> tuple[int, int]:
        """Give how many connects such processes have lost since it was told, and
        since the guard was loaded."""
        return self._lost - self._told, self._lost

    def tell(self) -> None:
        """These were journalled."""
        self._told = self._lost
        self._tried = {}
        self._guard.set_about(unkept_told=self._told, unkept_tried=None)


class Forgetful:
    """The same where no guard is loaded that could keep it."""

    kept_level = _NOTHING_KEPT

    def prove(self, level: int) -> None:
        """Entries of this level were seen to arrive in this host's journal."""
        self.kept_level = max(level, self.kept_level)

    def unkept(self, connects: int) -> None:
        """So many are lost when this process is ended now, and nobody will know."""

    def trying(self, name: str, connects: int) -> None:
        """An entry of so many connects is handed over again."""


def write_alone(
    found: Iterable[Finding | Notice], complain: Callable[[str], None]
) -> None:
    """Journal these where no scribe does; complain is called with what was not taken.

    Early at boot journald may not be there yet; what was done stays done.
    """
    writer = JournalWriter()
    for one in found:
        try:
            writer.write(one, _ALONE_SECONDS)
        except JournalError as error:
            complain(f"not journalled: {error}")
    writer.close()


class Delivery:
    """Brings entries into the journal, however long it takes."""

    def __init__(
        self, record: Record | Forgetful, complain: Callable[[str], None]
    ) -> None:
        """Begin; complain is told what is wrong with journald."""
        self._writer = JournalWriter()
        # not its _PID: journald writes what we print under that as well
        self._mark = f"{WRITER}={os.urandom(8).hex()}"
        self._receipts = Receipts()
        self._record, self._complain = record, complain
        self._unsure: list[_Sent] = []
        self._sent: dict[int, int] = {}  # by level: entries that are to be there
        self._left_out: list[_Sent] = []  # of levels that were never seen to arrive
        self.written = 0
        self.trouble = ""  # what is wrong with journald; "" when nothing is

    def write(self, found: Found) -> None:
        """Hand over one entry, waiting as long as journald does not take it."""
        # before, not after: what this entry tells of is still in the kernel then, and
        # no loss for whoever ends us while journald keeps nothing
        if len(self._unsure) >= UNSURE:
            self.confirm()
        at = level(found)
        datagram = frame([*lines(found), self._field(at)])
        sent = _Sent(datagram, at, _own_name(found), _connects(found))
        self._hand_over(sent)
        self.written += 1
        self._unsure.append(sent)

    def confirm(self) -> bool:
        """Return when all that was sent is in the journal, or may be left out of it.

        False: journald has not read it all, which is to be asked again.
        """
        while self._unsure:
            fate = self._fate()
            if fate is _Fate.SLOW:
                return False
            returned = self._set_apart()
            if fate in (_Fate.KEPT, _Fate.UNKNOWN) and not returned:
                self._unsure.clear()
                break
            self._keep_missing()
            if fate is _Fate.DOUBT:  # the count tells nothing, names do
                self._sent = self._kept()
                self._unsure = [sent for sent in self._unsure if sent.name]
                if not self._unsure:
                    break
            if not returned:
                self._fail(
                    JournalError(
                        "journald keeps nothing of what it takes",
                        hint="is its disk full (journalctl --disk-usage), or"
                        " MaxLevelStore= of journald.conf lower than it was?",
                    )
                )
            self._send_again()
        self._record.unkept(0)
        self.trouble = ""
        return True

    def has(self, name: str) -> bool:
        """Tell whether an entry that was being tried is in the journal.

        One that another process sent is, when all that was sent later is in it.
        """
        return self._receipts.has(name, archived=True)

    def close(self) -> None:
        """Close the socket."""
        self._writer.close()

    def _field(self, level: int) -> str:
        """Give what the entries of a level have, and no others."""
        return f"{self._mark}.{level}"

    def _kept(self) -> dict[int, int]:
        """Give how many entries the journal has of each level that was sent."""
        fields = {self._field(level): level for level in self._sent}
        kept = self._receipts.kept(fields)
        return {level: kept[field] for field, level in fields.items()}

    def _hand_over(self, sent: _Sent) -> None:
        while True:
            try:
                self._writer.send(sent.datagram, 1.0)
            except JournalError as error:
                self._fail(error)
                time.sleep(_AGAIN_SECONDS)
                continue
            if not self._unsure:
                self.trouble = ""
            self._sent[sent.level] = self._sent.get(sent.level, 0) + 1
            return

    def _fail(self, error: JournalError) -> None:
        if not self.trouble:
            self._complain(error.report())
        self.trouble = str(error)

    def _fate(self) -> _Fate:
        end = time.monotonic() + _SLOW_SECONDS
        in_hand = 0.0  # when all but the entry in hand must be in the journal
        while (kept := self._kept()) != self._sent:
            now = time.monotonic()
            if not in_hand and not self._writer.unread():
                in_hand = now + _HAND_SECONDS
            if in_hand and now >= in_hand:
                break
            if not in_hand and now >= end:
                return _Fate.SLOW
            time.sleep(_LOOK_SECONDS)
        self._record.prove(max((at for at in kept if kept[at]), default=_NOTHING_KEPT))
        if any(kept[at] > sent for at, sent in self._sent.items()):
            return _Fate.DOUBT
        missing = [at for at, sent in self._sent.items() if kept[at] < sent]
        if not missing:
            return _Fate.KEPT
        kept_level = self._record.kept_level
        return _Fate.DROPPED if min(missing) <= kept_level else _Fate.UNKNOWN

    def _set_apart(self) -> bool:
        """Set apart what may be left out by intention; tell whether any of that is
        none any more.
        """
        kept_level = self._record.kept_level
        returned = [one for one in self._left_out if one.level <= kept_level]
        apart = [one for one in self._left_out if one.level > kept_level]
        apart += [one for one in self._unsure if one.level > kept_level]
        self._left_out = apart[-UNSURE:]
        self._unsure = returned + [
            one for one in self._unsure if one.level <= kept_level
        ]
        return bool(returned)

    def _keep_missing(self) -> None:
        """Forget what is in the journal, and record how much is not."""
        self._unsure = [
            sent
            for sent in self._unsure
            if not sent.name or not self._receipts.has(sent.name)
        ]
        self._record.unkept(sum(sent.connects for sent in self._unsure))

    def _send_again(self) -> None:
        """Try with one; when that is kept, send all others."""
        self._sent = self._kept()
        if not self._unsure:
            return
        first = self._unsure[0]
        if first.name:
            self._record.trying(first.name, first.connects)
        self._hand_over(first)
        if self._fate() is _Fate.KEPT:
            del self._unsure[0]
            for sent in self._unsure:
                self._hand_over(sent)
            return
        before = self._kept()
        time.sleep(_PROBE_SECONDS)
        if self._kept() != before:  # it was only slow
            self._keep_missing()


_CONNECTS = (Kind.DENIED, Kind.WOULD_DENY, Kind.REDIRECTED, Kind.ALLOWED, Kind.LOCAL)


def _own_name(found: Found) -> str:
    """Give fields that no other entry has all; empty: written twice rather than not.

    The end of a connection has the number of its beginning, and a summary that of
    the first it stands for; numbers of events begin anew with each guard.
    """
    if isinstance(found, Message):
        return f"{PREFIX}QUEUE_ID={found.queue_id}\n{PREFIX}TIME_US={found.time_us}"
    if isinstance(found, Notice) and found.kind is Kind.HANDED_IN:
        maildrop = found.fields["MAILDROP"]
        return f"{PREFIX}MAILDROP={maildrop}\n{PREFIX}TIME_US={found.time_us}"
    if not isinstance(found, Finding) or not found.connection:
        return ""
    own = f"SEQ={found.seq}"
    if found.kind is Kind.SUMMARY:
        own = f"LAST_US={found.last_us}"
    return f"{PREFIX}CONNECTION={found.connection}\n{PREFIX}{own}"


def _connects(found: Found) -> int:
    """Give how many judged connects an entry stands for."""
    if isinstance(found, Finding) and found.kind in (*_CONNECTS, Kind.SUMMARY):
        return found.count
    return 0
