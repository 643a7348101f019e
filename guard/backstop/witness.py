# SPDX-License-Identifier: GPL-2.0-or-later
"""What the second lock met, as findings; repeats of one window as a sum.

No connect() of these was seen by our kernel programs. Who made the socket is known
by the kernel's record, else by what /proc shows afterwards, and the finding says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from guard.backstop.lock import Design, Lock
from guard.backstop.nflog import Logged, PacketLog
from guard.backstop.packet import Head, unpack_head
from guard.backstop.sender import Senders, Sight
from guard.errors import BackstopError
from guard.finding import Finding, Kind, Maker, Notice
from guard.makers import Makers
from guard.origin import Naming, unit_of
from guard.policy import Fold, Policy
from guard.procfs import finding

_MOST_MAKERS = 16  # that a finding names
_MOST = 4096  # different senders and destinations of a window that are told apart
_VERDICTS = {"deny": "deny", "would-deny": "deny", "allow": "allow"}
_NOWHERE = Head(("0.0.0.0", 0), ("0.0.0.0", 0))


@dataclass(slots=True)
class _Repeats:
    first: Finding
    count: int = 0
    last_us: int = 0
    seen: int = 0  # findings of its own within the window


class Witness:
    """Listens to what a lock records, and tells it."""

    def __init__(
        self,
        naming: Naming,
        tell: Callable[[Finding | Notice], None],
        makers: Makers | None = None,
    ):
        """Tell findings by calling tell; makers: what the kernel keeps, if it does."""
        self._makers = makers
        self._emptied_ns = 0  # CLOCK_BOOTTIME: what is read now was sent after that
        self._naming = naming
        self._tell = tell
        self._log: PacketLog | None = None
        self._lost = 0  # told so far
        self._fold = Fold()
        self._kind = ""
        self._rule_name: Callable[[int], str | None] = lambda number: None
        self._design = Design.MARK
        self._packets: list[Logged] = []  # read, and not looked at yet
        self._windows: dict[tuple[object, ...], _Repeats] = {}
        self._ends_at = 0.0
        self._number = 0
        self.trouble = ""  # why nobody listens; "" when somebody does, or need not

    def heed(self, lock: Lock | None, kind: str, policy: Policy) -> None:
        """Listen to this lock from now on; None: to none."""
        self._fold, self._kind = policy.fold, kind
        self._rule_name = policy.rule_name
        if self._log and (lock is None or lock.group != self._log.group):
            self.close()
        self.trouble = ""
        if lock is None:
            return
        self._design = lock.design
        if self._log is None:
            self._emptied_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            try:
                self._log = PacketLog(lock.group, self._packets.append)
            except BackstopError as error:
                self.trouble = f"{error}; {error.hint}"

    def fileno(self) -> int:
        """Give the descriptor to wait on; -1: there is none."""
        return self._log.fileno() if self._log else -1

    def read(self) -> None:
        """Take what is there."""
        began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        emptied = self._log is not None and self._log.read()
        packets = self._packets[:]
        self._packets.clear()
        sight = Sight(self._makers, self._emptied_ns)  # from now on, so not before
        for logged in packets:
            self._on_packet(logged, sight)
        if emptied:
            self._emptied_ns = began_ns

    def tick(self) -> None:
        """Tell the sums of a window that is over, and what was lost."""
        self.read()
        if time.monotonic() >= self._ends_at:
            self._end_window()
        lost = self._log.lost - self._lost if self._log else 0
        if lost:
            self._lost += lost
            self._tell(
                Notice(
                    Kind.LOST,
                    time.time_ns() // 1000,
                    f"lost: {lost} (packets of the second lock, more than were read)",
                    priority=3,
                    fields={"BACKSTOP": str(lost)},
                )
            )

    def _end_window(self) -> None:
        for repeats in self._windows.values():
            if repeats.count:
                first = repeats.first
                self._tell(
                    replace(
                        first,
                        kind=Kind.SUMMARY,
                        count=repeats.count,
                        last_us=repeats.last_us,
                        incomplete=_of_sum(first.incomplete),
                    )
                )
        self._windows.clear()

    def _on_packet(self, logged: Logged, sight: Sight) -> None:
        known = unpack_head(logged.raw, logged.chain == "egress")
        head = known or _NOWHERE
        now = time.monotonic()
        if now >= self._ends_at:
            self._end_window()
            self._ends_at = now + self._fold.window_ns / 1e9
        burst = self._fold.local if logged.verdict == "allow" else self._fold.denied
        who: tuple[object, ...] = (logged.uid, logged.gid, head.src[0], head.dst)
        key = (logged.chain, logged.verdict, *who)
        others = key not in self._windows and len(self._windows) >= _MOST
        if others:
            key = (logged.chain, logged.verdict)  # a sum for all of them
        repeats = self._windows.get(key)
        if repeats and repeats.seen >= burst and self._fold.window_ns:
            repeats.count += 1
            repeats.last_us = time.time_ns() // 1000
            return
        found = self._finding(logged, known, sight)
        if others:
            found = replace(found, incomplete=(*found.incomplete, "and-others"))
        if repeats is None:
            repeats = self._windows[key] = _Repeats(found)
        repeats.seen += 1
        self._tell(found)

    def _finding(self, logged: Logged, head: Head | None, sight: Sight) -> Finding:
        self._number += 1
        ends = head or _NOWHERE
        verdict = _VERDICTS.get(logged.verdict, "deny")
        local = logged.chain == "local"
        facts: dict[str, Any] = {
            "connection": f"{self._naming.boot}-{self._kind}-{time.time_ns()}"
            f"-{self._number}",
            "src": ends.src if ends.src[1] else None,
            "dst": ends.dst,
            "verdict": verdict,
            "mode": "observe" if logged.verdict == "would-deny" else "enforce",
            "direction": "local" if local else "outbound",
            "outcome": "denied" if logged.verdict == "deny" else "syn-sent",
            "rule": self._rule_name(logged.rule) if logged.rule is not None else None,
        }
        who = sight.senders(logged, head)
        made = self._named(self._kind_of(logged), logged, who, facts)
        more = ("forwarded",) if logged.chain == "forward" else who.how
        return replace(
            made,
            lock=f"{self._kind}-{logged.chain}",
            incomplete=(*made.incomplete, *more),
        )

    def _named(
        self, kind: Kind, logged: Logged, who: Senders, facts: dict[str, Any]
    ) -> Finding:
        """Attribute it to the one process that sent it, or to all that can have."""
        if who.one and who.made:
            made = self._naming.finding(who.made[0])
            now_us = time.time_ns() // 1000
            return replace(made, kind=kind, time_us=now_us, seq=0, **facts)
        if who.one:
            return finding(kind, who.seen[0], self._naming, **facts)
        made = replace(
            finding(kind, None, self._naming, uid=logged.uid, **facts),
            gid=logged.gid or 0,
        )
        makers = _makers(who)
        if not makers:
            return made
        rest = ("and-others",) if len(makers) > _MOST_MAKERS else ()
        return replace(made, makers=makers[:_MOST_MAKERS], incomplete=("one-of", *rest))

    def _kind_of(self, logged: Logged) -> Kind:
        if self._design is Design.MARK:
            return Kind.BACKSTOP
        if logged.verdict == "allow":
            return Kind.LOCAL if logged.chain == "local" else Kind.ALLOWED
        return Kind.DENIED if logged.verdict == "deny" else Kind.WOULD_DENY

    def close(self) -> None:
        """Tell what is left to tell, and stop listening."""
        if self._log:
            self.read()
            self._end_window()
            self.tick()
            self._log.close()
            self._log, self._lost = None, 0


def _makers(who: Senders) -> tuple[Maker, ...]:
    return tuple(
        Maker(e.pid, e.uid, e.comm, e.exe or None, e.args, unit_of(e.cgroup))
        for e in who.made
    ) + tuple(
        Maker(s.pid, s.uids[1], s.comm, s.exe, s.args, unit_of(s.cgroup))
        for s in who.seen
    )


def _of_sum(incomplete: tuple[str, ...]) -> tuple[str, ...]:
    """Say of a sum that it is of a user's packets, which several may have sent."""
    by_user = {"maker", "raw-socket"}.intersection(incomplete)
    if by_user and "maybe-others" not in incomplete:
        return (*incomplete, "maybe-others")
    return incomplete
