# SPDX-License-Identifier: GPL-2.0-or-later
"""What the second lock met, as findings; repeats of one window as a sum.

No connect() of these was seen by our kernel programs, so who sent is looked up in
/proc afterwards, and the finding says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from guard.backstop.lock import Design, Lock
from guard.backstop.nflog import Logged, PacketLog
from guard.backstop.packet import Head, unpack_head
from guard.backstop.sender import sender
from guard.errors import BackstopError
from guard.finding import Finding, Kind, Notice
from guard.origin import Naming
from guard.policy import Fold, Policy
from guard.procfs import finding

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

    def __init__(self, naming: Naming, tell: Callable[[Finding | Notice], None]):
        """Tell findings by calling tell."""
        self._naming = naming
        self._tell = tell
        self._log: PacketLog | None = None
        self._lost = 0  # told so far
        self._fold = Fold()
        self._kind = ""
        self._rule_name: Callable[[int], str | None] = lambda number: None
        self._design = Design.MARK
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
            try:
                self._log = PacketLog(lock.group, self._on_packet)
            except BackstopError as error:
                self.trouble = f"{error}; {error.hint}"

    def fileno(self) -> int:
        """Give the descriptor to wait on; -1: there is none."""
        return self._log.fileno() if self._log else -1

    def read(self) -> None:
        """Take what is there."""
        if self._log:
            self._log.read()

    def tick(self) -> None:
        """Tell the sums of a window that is over, and what was lost."""
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
                    )
                )
        self._windows.clear()

    def _on_packet(self, logged: Logged) -> None:
        head = unpack_head(logged.raw, logged.chain == "egress") or _NOWHERE
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
        found = self._finding(logged, head)
        if others:
            found = replace(found, incomplete=(*found.incomplete, "and-others"))
        if repeats is None:
            repeats = self._windows[key] = _Repeats(found)
        repeats.seen += 1
        self._tell(found)

    def _finding(self, logged: Logged, head: Head) -> Finding:
        seen, how = sender(head, logged.uid)
        verdict = _VERDICTS.get(logged.verdict, "deny")
        local = logged.chain == "local"
        self._number += 1
        made = finding(
            self._kind_of(logged),
            seen,
            self._naming,
            connection=f"{self._naming.boot}-{self._kind}-{time.time_ns()}-{self._number}",
            src=head.src if head.src[1] else None,
            dst=head.dst,
            verdict=verdict,
            mode="observe" if logged.verdict == "would-deny" else "enforce",
            direction="local" if local else "outbound",
            outcome="denied" if logged.verdict == "deny" else "syn-sent",
            rule=self._rule_name(logged.rule) if logged.rule is not None else None,
            uid=logged.uid,
        )
        more = (how,) if how and seen else ()
        if logged.chain == "forward":
            more = ("forwarded",)
        return replace(
            made,
            gid=made.gid if seen or logged.gid is None else logged.gid,
            lock=f"{self._kind}-{logged.chain}",
            incomplete=(*made.incomplete, *more),
        )

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
