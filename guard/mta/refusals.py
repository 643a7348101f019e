# SPDX-License-Identifier: GPL-2.0-or-later
"""Refused messages, told at first and then as a sum: who is refused tries again.

As [fold] has it for denied connects: so many of one origin in a window have an entry
each, all others one together, with their number and the time of the last. A message
that Postfix takes is never folded, held or not: its queue id leads to its own entry.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from guard.finding import Message
from guard.policy.model import Fold

_MOST = 4096  # origins of a window; of more the oldest sum is told early


@dataclass(slots=True)
class _Window:
    """What one origin did in a window."""

    ends: float  # seconds of the clock that now is of
    told: int = 0  # with an entry each
    first: Message | None = None  # of those that are summed up
    count: int = 0
    last_us: int = 0


class Refusals:
    """Folds refused messages by origin; used by one thread."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        """tell has a message, or the sum of several, written."""
        self._tell = tell
        self._windows: OrderedDict[Hashable, _Window] = OrderedDict()

    def take(
        self,
        key: Hashable,
        fold: Fold,
        now: float,
        now_us: int,
        make: Callable[[], Message],
    ) -> None:
        """Tell or count a refused message of the origin that key names.

        now is CLOCK_MONOTONIC in seconds, now_us CLOCK_REALTIME in microseconds; make
        gives the message, and is called where it is needed.
        """
        if not fold.window_ns:
            self._tell(make())
            return
        window = self._windows.get(key)
        if window is None or now >= window.ends:
            if window:
                self._close(key)
            if len(self._windows) >= _MOST:
                self._close(next(iter(self._windows)))
            window = self._windows[key] = _Window(now + fold.window_ns / 1e9)
        if window.told < fold.denied:
            window.told += 1
            self._tell(make())
            return
        if window.first is None:
            window.first = make()
        window.count += 1
        window.last_us = now_us

    def finish(self, now: float) -> None:
        """Tell the sums of windows that are over; infinity: of all."""
        for key in [key for key, one in self._windows.items() if now >= one.ends]:
            self._close(key)

    def _close(self, key: Hashable) -> None:
        window = self._windows.pop(key)
        if window.first is not None:
            sum_of = {"messages": window.count, "last_us": window.last_us}
            self._tell(
                replace(window.first, **sum_of) if window.count > 1 else window.first
            )
