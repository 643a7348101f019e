# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes out of the kernel: ring samples, counted repeats, and what was lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from guard import abi
from guard.abi import Counter
from guard.errors import TornEvent
from guard.event import Event, unpack_event
from guard.kernel import Guard
from guard.ringbuf import RingBuffer
from guard.tables import wait_for_running_programs

# Counters that stand for something a journal will never show, and why.
LOSSES = {
    Counter.LOST_RING: "the ring was full: findings of judged connections",
    Counter.LOST_CLOSED: "the ring was full: ends of connections",
    Counter.NO_STORAGE: "a socket took no record: source port and end not known",
    Counter.LOST_TOUCHED: "the ring was full: who reached for the guard itself",
    Counter.NO_OWNER: "too many connections at once: not in the map of owners",
    Counter.NO_MAKER: "too many raw or packet sockets at once: who made one",
    Counter.NO_REQUEST: "too many requests of PHP at once: which script it was",
    Counter.NO_MARK: "a socket took no mark: refused by the second lock",
}


@dataclass(frozen=True, slots=True)
class Repeats:
    """What one identity did again and again within one window."""

    first: Event
    folded: int  # connects that made no event
    last_ns: int  # CLOCK_BOOTTIME


class Ring:
    """The one reader of a guard's ring."""

    def __init__(
        self,
        guard: Guard,
        on_event: Callable[[Event], None],
        on_torn: Callable[[TornEvent], None],
    ) -> None:
        """Read for these handlers.

        An event's room in the ring is given free after its handler returned: one
        that waits, or raises, keeps it and what follows safe in the kernel.
        """
        self._on_event = on_event
        self._on_torn = on_torn
        self._map = guard.map("ring")  # its descriptor lives as long as it does
        self._buffer = RingBuffer(self._map.fd)

    def poll(self, timeout_ms: int, limit: int | None = None) -> int:
        """Wait for events and handle them, at most limit; gives how many."""
        self._buffer.wait(timeout_ms)
        return self.consume(limit)

    def consume(self, limit: int | None = None) -> int:
        """Handle what is there without waiting, at most limit; gives how many.

        Where events come faster than they are handled, only a limit ends it.
        """
        handled = 0
        for raw in self._buffer.samples():
            if handled == limit:  # this one stays in the ring
                break
            try:
                event = unpack_event(raw)
            except TornEvent as error:
                self._on_torn(error)
            else:
                self._on_event(event)
            handled += 1
        return handled

    def close(self) -> None:
        """Stop reading; what is in the ring stays there."""
        self._buffer.close()


def finished_repeats(guard: Guard, everything: bool = False) -> Iterator[Repeats]:
    """Give and forget the rows of windows that are over.

    A row is deleted after it was given, so that a crash between counts it twice
    rather than never. everything: also windows that are not over (unload).
    """
    folds = guard.map("folds")
    window_ns = guard.policy().window_ns
    keys = list(folds.keys())
    # after the keys: a row of a window that began meanwhile is none of them
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    current = now // window_ns if window_ns and not everything else None
    due = [key for key in keys if abi.FoldKey.from_buffer_copy(key).window != current]
    if not due:
        return
    wait_for_running_programs()
    for key in due:
        raw = folds.get(key)
        if raw is None:
            continue
        row = abi.Fold.from_buffer_copy(raw)
        number = abi.FoldKey.from_buffer_copy(key).window
        if not everything and not _is_over(number, row.first.time_ns, window_ns, now):
            continue
        if row.folded:
            first = raw[abi.Fold.first.offset :]
            yield Repeats(unpack_event(first), row.folded, row.last_ns)
        folds.delete(key)


def _is_over(number: int, time_ns: int, window_ns: int, now: int) -> bool:
    """Tell whether the window of that number, in which time_ns lies, has ended.

    It may have another length than those of the policy in force, and the policy
    that it is of may be in force again at any moment: then its rows count on. Of
    such a window only the number and a moment within it are known: it is no longer
    than time_ns / number.
    """
    if not number or (window_ns and time_ns // window_ns == number):
        return not window_ns or number != now // window_ns
    return now > time_ns + time_ns // number


class Losses:
    """What was lost since it was last told, over restarts of the reader."""

    def __init__(self, guard: Guard) -> None:
        """Begin where the guard's record says the last reader ended."""
        self._guard = guard
        told = guard.about().get("told", {})
        self._told = {counter: int(told.get(counter.name, 0)) for counter in LOSSES}

    def news(self) -> dict[Counter, int]:
        """Give how far each loss counter has moved; {}: nothing was lost."""
        now = self._guard.counters()
        return {
            counter: now[counter] - before
            for counter, before in self._told.items()
            if now[counter] != before
        }

    def totals(self, news: dict[Counter, int]) -> dict[Counter, int]:
        """Give where the counters of this news stand since the guard was loaded.

        A process killed between writing and tell() has its news told again by the
        next one, with what came since: only the totals add up then.
        """
        return {counter: self._told[counter] + moved for counter, moved in news.items()}

    def tell(self, news: dict[Counter, int]) -> None:
        """Remember that these were journalled."""
        for counter, moved in news.items():
            self._told[counter] += moved
        self._guard.set_about(
            told={counter.name: value for counter, value in self._told.items()}
        )
