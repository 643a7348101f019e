# SPDX-License-Identifier: GPL-2.0-or-later
"""The scribe: a thread that carries what the kernel found to the journal.

It alone writes, and it waits as long as journald takes: an event it waits with
stays in the kernel's ring, for itself or for the next guardd, while the main
thread goes on keeping the policy's rows current.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable

from guard.abi import Counter, EventKind
from guard.delivery import Delivery, Forgetful, Record
from guard.errors import GuardError, TornEvent
from guard.event import Event
from guard.finding import Kind, Message, Notice
from guard.journal import Found, Told
from guard.kernel import Guard
from guard.mta.owed import Owed
from guard.origin import Naming
from guard.ring import LOSSES, Losses, Ring, finished_repeats
from guard.touched import touched_notice
from guard.worker import Worker

_POLL_MS = 200
# Events come in company: a wake-up for each would cost more than to write it.
_GATHER_SECONDS = 0.01
_LOOK_SECONDS = 1.0  # for finished windows and losses
# Under a flood there is always one more event: look up after so many.
_BATCH = 1024
_MOST_WAITING = 20_000  # findings that are not in the ring, some 2 KB each
_FINISH_SECONDS = 2.0  # at the end, for what is in the ring; the rest stays there


class Clerk(Worker):
    """Writes to the journal what it is told, until told to stop."""

    task = "writes the journal"

    def __init__(
        self,
        echo: Callable[[Found], None],
        record: Record | Forgetful | None = None,
        owed: Owed | None = None,
    ) -> None:
        """Begin with nothing to write; echo is called with all that is written.

        record is of what journald took and did not keep, owed of the messages that
        are still to be written.
        """
        super().__init__("scribe")
        self._echo = echo
        self._delivery = Delivery(record or Forgetful(), self._say)
        self._notices: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._stopping = threading.Event()
        # by whoever tells, and by us; findings, and messages among them
        self._counting = threading.Lock()
        self._dropped = [0, 0]  # told, but too many waited already
        self._owed = owed
        # messages that journald has yet to take; of a process before this one it has
        # yet to take that they are lost
        self._waiting = (owed and owed.left) or 0
        self._trouble = ""  # with the guard

    @property
    def trouble(self) -> str:
        """What is wrong with the way to the journal; "" when nothing is."""
        return self._delivery.trouble or self._trouble

    @property
    def written(self) -> int:
        """How many entries journald took."""
        return self._delivery.written

    def expect(self, messages: int) -> None:
        """So many messages will be told by tell_expected(): an answer is due first.

        Ended meanwhile, this process has lost them, and the next one says so.
        """
        with self._counting:
            self._count(messages)

    def tell(self, found: Told) -> None:
        """Have this written as well, after the events that came before it.

        What takes long to make may be told as what makes it, and does not raise.
        While journald takes nothing, so many wait and no more; the rest is counted.
        """
        with self._counting:
            self._count(_messages(found))
        self.tell_expected(found)

    def tell_expected(self, found: Told) -> None:
        """Likewise, of messages that were announced."""
        with self._counting:
            if self._notices.qsize() < _MOST_WAITING:
                self._notices.put(found)
                return
            mail = _messages(found)
            self._dropped[0] += 1
            self._dropped[1] += mail

    def _count(self, messages: int) -> None:
        self._waiting += messages
        if self._owed:
            self._owed.put(self._waiting)

    @property
    def messages_waiting(self) -> int:
        """How many messages would be lost if this process were killed now."""
        return self._waiting

    def stop(self, seconds: float) -> bool:
        """Finish what is there, for at most so long; False: journald hangs."""
        self._stopping.set()
        self.join(seconds)
        return not self.is_alive()

    def work(self) -> None:
        """Thread body."""
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Empty):
                self._write_notice(self._notices.get(timeout=_POLL_MS / 1000))
            self._write_notices()
            self._delivery.confirm()
        self._finish()

    def _finish(self) -> None:
        self._write_notices()
        self._delivery.confirm()
        self._delivery.close()

    def _write_notices(self) -> None:
        while not self._notices.empty():
            self._write_notice(self._notices.get())
        with self._counting:
            dropped, messages = self._dropped
        if dropped:
            text = f"lost: {dropped} (findings beyond {_MOST_WAITING} that waited for"
            text += f" journald), {messages} of them of messages"
            fields = {"DROPPED": str(dropped), "LOST_MESSAGES": str(messages)}
            self._write(Notice(Kind.LOST, time.time_ns() // 1000, text, 3, fields))
            with self._counting:
                self._dropped[0] -= dropped
                self._dropped[1] -= messages
                self._count(-messages)

    def _write_notice(self, found: Told) -> None:
        self._write(found() if callable(found) else found)
        if mail := _messages(found):
            with self._counting:
                self._count(-mail)

    def _write(self, found: Found) -> None:
        """Write, however long it takes; never raises: that would end the thread,
        and findings would wait for the next guardd.
        """
        with contextlib.suppress(OSError, ValueError):  # a reader that went away
            self._echo(found)
        self._delivery.write(found)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"guardd: {text}\n")


class Scribe(Clerk):
    """Reads the ring and writes the journal until told to stop."""

    def __init__(
        self,
        guard: Guard,
        naming: Naming,
        echo: Callable[[Found], None],
        owed: Owed | None = None,
    ) -> None:
        """Write for this guard; echo is called with all that is written."""
        self._record = Record(guard)
        super().__init__(echo, self._record, owed)
        self._guard = guard
        self._naming = naming
        self._everything = False
        self._losses = Losses(guard)
        self._ring = Ring(guard, self._on_event, self._on_torn)

    def stop(self, seconds: float, everything: bool = False) -> bool:
        """Finish what is there, for at most so long; False: journald hangs.

        everything: also repeats of a window that is not over yet.

        A scribe that hangs holds an event whose room in the ring is not free
        yet: the process may end, the next guardd reads it again.
        """
        self._everything = everything
        return super().stop(seconds)

    def work(self) -> None:
        """Thread body."""
        look_at = time.monotonic()
        while not self._stopping.is_set():
            handled = self._ring.poll(_POLL_MS, _BATCH)
            self._write_notices()
            if 0 < handled < _BATCH:
                self._stopping.wait(_GATHER_SECONDS)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_SECONDS
                self._look_or_complain()
        end = time.monotonic() + _FINISH_SECONDS
        while self._ring.consume(_BATCH) == _BATCH and time.monotonic() < end:
            pass
        self._look_or_complain()
        self._finish()

    def _look_or_complain(self) -> None:
        if self._delivery.confirm():
            self._tell_unkept()
        try:
            self._look()
        except GuardError as error:  # pins removed before their first use
            if not self._trouble:
                self._say(error.report())
            self._trouble = str(error)
        else:
            self._trouble = ""

    def _look(self) -> None:
        for repeats in finished_repeats(self._guard, self._everything):
            self._write(self._naming.summary(repeats))
        news = self._losses.news()
        if news:
            self._write(_loss_notice(news, self._losses.totals(news)))
            self._losses.tell(news)

    def _tell_unkept(self) -> None:
        """Tell of findings that a guardd before this one had in hand at its end.

        Called when all that was sent is in the journal: before that the one that
        it handed over last may still arrive.
        """
        self._record.arrived(self._delivery.has)
        moved, total = self._record.news()
        if moved:
            fields = {"LOST_JOURNAL": str(moved), "LOST_JOURNAL_TOTAL": str(total)}
            text = (
                "lost: journald took them and did not keep them, and guardd was ended"
            )
            text += f" before it could write them again: findings of {moved} connects"
            now_us = time.time_ns() // 1000
            self._write(Notice(Kind.LOST, now_us, text, 3, fields))
            if self._delivery.confirm():
                self._record.tell()

    def _on_event(self, event: Event) -> None:
        found = self._naming.finding(event)
        if event.kind in (EventKind.TAMPER, EventKind.KEEPER):
            self._write(touched_notice(event, found))
        else:
            self._write(found)

    def _on_torn(self, error: TornEvent) -> None:
        self._write(
            Notice(Kind.LOST, time.time_ns() // 1000, str(error), 3, {"TORN": "1"})
        )


def _messages(found: Told) -> int:
    """Give how many messages of mail are lost with a finding: no ring has those."""
    if callable(found):
        return 1
    if isinstance(found, Notice) and found.kind is Kind.LOST:
        return int(found.fields.get("LOST_MESSAGES", 0))
    if isinstance(found, Message):
        return found.messages
    return int(found.kind is Kind.HANDED_IN)


def _loss_notice(news: dict[Counter, int], totals: dict[Counter, int]) -> Notice:
    parts = [f"{moved} ({LOSSES[counter]})" for counter, moved in news.items()]
    return Notice(
        kind=Kind.LOST,
        time_us=time.time_ns() // 1000,
        message="lost: " + "; ".join(parts),
        priority=3,
        fields={counter.name: str(moved) for counter, moved in news.items()}
        | {f"{counter.name}_TOTAL": str(total) for counter, total in totals.items()},
    )
