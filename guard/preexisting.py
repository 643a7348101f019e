# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to guarded ports that were open before the guard was loaded.

No hook saw their connect(), so it is /proc that is asked whose they are
(procfs.py), and what the policy says of each is worked out here. They are told,
and where the policy says so those that it denies are ended, after a grace. None is
where this guard took over from one of another version: that one judged them, by what
their processes were at the time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from guard.abi import Direction, Mode, Verdict
from guard.errors import GuardError
from guard.finding import Finding, Kind, Notice
from guard.hosts import is_own, own_addresses
from guard.kernel import SUCCEEDS, Guard
from guard.origin import Naming
from guard.policy import Policy
from guard.policy.evaluate import Caller, Decision, Destination, evaluate
from guard.policy.files import stat_identify
from guard.privileges import Capability, missing
from guard.procfs import finding, look
from guard.sockdiag import SYN_SENT, Connection, connections, destroy, is_any_open
from guard.worker import Worker

Tell = Callable[[Finding | Notice], None]

# Where the end of one is due; beside `established` and `syn-sent`, see Finding.
TO_END, LEFT_OPEN = "to-end", "left-open"
_RECORD = "before"  # of Guard.about()


@dataclass(frozen=True, slots=True)
class Older:
    """A connection that is older than the guard, and what is told of it."""

    connection: Connection
    finding: Finding


def survey(guard: Guard, policy: Policy) -> Iterator[Older]:
    """Give what is open now of which no hook of this guard has seen the connect().

    Only connections of the cgroup that is guarded, and in every network
    namespace. Raises GuardError, OSError or psutil.Error.
    """
    if not is_any_open(policy.ports):
        return
    in_guarded = _of_cgroup(Path(guard.about()["cgroup"]))
    unseen = [
        connection
        for connection in connections(policy.ports)
        if in_guarded(connection.cgroup) and not _is_known(guard, connection)
    ]
    judge = _Judge(policy, _may_end(guard, policy))
    for connection in unseen:
        yield Older(connection, judge.finding(connection))


def _may_end(guard: Guard, policy: Policy) -> bool:
    return policy.before.end and not guard.about().get(SUCCEEDS)


def _of_cgroup(folder: Path) -> Callable[[int], bool]:
    """Give the test whether a socket's cgroup (id) is this one or below it.

    The root of cgroup2 holds also those whose cgroup was removed since.
    """
    # cgroups(7): the root has no type; one that was removed is not the root
    if os.path.ismount(folder) and not (folder / "cgroup.type").exists():
        return lambda _: True
    # the inode number of a cgroup2 folder is its id (kernfs, 64 bit)
    ids = {os.stat(path).st_ino for path, _, _ in os.walk(folder)}
    return ids.__contains__


def _is_known(guard: Guard, connection: Connection) -> bool:
    """Tell whether a hook has let it pass: made while we were listing."""
    ends = _plain(connection.src), _plain(connection.dst)
    return guard.owner(*ends, connection.netns_cookie) is not None


def _plain(end: tuple[str, int]) -> tuple[str, int]:
    """Give an end as findings have it: a mapped IPv4 address as IPv4."""
    ipv4 = end[0].removeprefix("::ffff:")
    # ::ffff:0:102:304 is none, and anybody may have one in a namespace of his own
    return end[0] if ":" in ipv4 else ipv4, end[1]


class _Judge:
    """What a policy says of connections, by what /proc says of their holders."""

    def __init__(self, policy: Policy, may_end: bool) -> None:
        self._policy = policy
        self._may_end = may_end
        self._naming = Naming()
        self._addresses = own_addresses()
        self._look = functools.cache(look)
        self._identify = functools.cache(stat_identify)

    def finding(self, connection: Connection) -> Finding:
        """Tell of a connection, with the verdict.

        Of several processes that hold it, the one that the policy allows: what
        is lawful for one of them is not ended because of another.
        """
        src, dst = _plain(connection.src), _plain(connection.dst)
        local = is_own(dst[0], self._addresses)
        to = Destination(
            ipaddress.ip_address(dst[0]),
            dst[1],
            Direction.LOCAL if local else Direction.OUTBOUND,
        )
        holders = [seen for pid in connection.pids if (seen := self._look(pid))]
        judged = [(seen, self._decide(seen.caller, to)) for seen in holders]
        seen, decision = next(
            (each for each in judged if each[1].verdict is not Verdict.DENY),
            judged[0] if judged else (None, self._decide(Caller(), to)),
        )
        return finding(
            Kind.PRE_EXISTING,
            seen,
            self._naming,
            connection=f"{self._naming.boot}-before-{connection.cookie:x}",
            src=src,
            dst=dst,
            verdict=decision.verdict.name.lower(),
            mode=self._policy.mode.name.lower(),
            direction=to.direction.name.lower(),
            outcome=self._outcome(connection, decision),
            rule=None
            if decision.rule is None
            else self._policy.rule_name(decision.rule),
            uid=connection.uid,
            netns=connection.netns,
        )

    def _decide(self, caller: Caller, to: Destination) -> Decision:
        return evaluate(self._policy, caller, to, self._identify)

    def _outcome(self, connection: Connection, decision: Decision) -> str:
        if decision.verdict is Verdict.DENY and self._policy.mode is Mode.ENFORCE:
            return TO_END if self._may_end else LEFT_OPEN
        return "syn-sent" if connection.state == SYN_SENT else "established"


def end(older: Iterable[Older]) -> Iterator[Finding]:
    """End connections, and tell what became of each. Raises GuardError."""
    ends = list(older)
    if not ends:
        return
    numbers = destroy([each.connection for each in ends])
    for each, number in zip(ends, numbers, strict=True):
        outcome = {0: "ended-by-guard", errno.ENOENT: "ended-itself"}
        yield replace(
            each.finding,
            kind=Kind.ENDED,
            time_us=time.time_ns() // 1000,
            outcome=outcome.get(number, "not-ended"),
            error=None if number in outcome else errno.errorcode.get(number),
        )


class Before(Worker):
    """Tells once of the connections that are older than a guard, and ends them.

    What is still to do stands in the guard's record, so that one process may
    begin it (guardctl load, at boot) and another finish it (guardd). A thread, to be
    started when the guard is in force: listing does not delay that, and a grace waits.
    """

    task = "tells of connections that are older than the guard"

    def __init__(
        self, guard: Guard, policy: Callable[[], Policy | None], tell: Tell
    ) -> None:
        """policy gives the one in force; tell has a finding written."""
        super().__init__("before")
        self._guard = guard
        self._policy = policy
        self._tell = tell
        self._to_end: set[int] = set()  # cookies

    def work(self) -> None:
        """Do it all, which takes as long as the grace does."""
        self.begin()
        due = self._due_ns()
        if due is not None:
            time.sleep(max(0, due - _now_ns()) / 1e9)
            self.finish()

    def begin(self) -> str:
        """Tell of them, if nobody has, and end those whose grace is nothing.

        Gives what was found in a sentence, "" for nothing new. Never raises for
        what may fail on a host: that is told like a finding.
        """
        with self._said("those that are open are not known"):
            known = self._guard.about().get(_RECORD)
            policy = self._policy()
            if policy is None or (known is not None and "due_ns" not in known):
                return ""
            found = {"open": 0, "denied": 0}
            now: list[Older] = []
            for older in survey(self._guard, policy):
                found["open"] += 1
                found["denied"] += older.finding.verdict == "deny"
                if known is None:  # no other process has told of it
                    self._tell(older.finding)
                if older.finding.outcome == TO_END:
                    self._to_end.add(older.connection.cookie)
                    if not policy.before.grace_ns:
                        now.append(older)
            if known is not None:
                return ""
            self._tell_unseen(policy, "those of other network namespaces are not told")
            due = {"due_ns": _now_ns() + policy.before.grace_ns} if self._to_end else {}
            self._guard.set_about(**{_RECORD: found | due})
            if now:
                self._end(now)
            return _sentence(found["open"], found["denied"], policy, self._guard)
        return ""

    def finish(self) -> None:
        """End those whose grace is over and that the policy in force still denies.

        They are listed anew: who holds one may have changed, and of what has
        ended by itself nothing is told.
        """
        with self._said("none is ended"):
            policy = self._policy()
            if policy:
                self._tell_unseen(policy, "in other network namespaces none is ended")
            older = survey(self._guard, policy) if policy else iter(())
            self._end(
                each
                for each in older
                if each.finding.outcome == TO_END
                and each.connection.cookie in self._to_end
            )

    def _tell_unseen(self, policy: Policy, so: str) -> None:
        """Tell of what guardd's own user cannot do: go into other namespaces."""
        if missing(Capability.CAP_SYS_ADMIN) and is_any_open(policy.ports, True):
            self._trouble(f"{so}: that takes CAP_SYS_ADMIN, as guardctl load has it")

    def _trouble(self, what: str) -> None:
        text = f"connections that are older than the guard: {what}"
        self._tell(Notice(Kind.LOST, time.time_ns() // 1000, text, priority=3))

    def _end(self, older: Iterable[Older]) -> None:
        record = dict(self._guard.about().get(_RECORD, {}))
        record.pop("due_ns", None)  # whatever comes of it, it is not tried again
        self._guard.set_about(**{_RECORD: record})
        for told in end(older):
            self._tell(told)

    def _due_ns(self) -> int | None:
        with self._said("none is ended"):
            due: int | None = self._guard.about().get(_RECORD, {}).get("due_ns")
            return due
        return None

    @contextlib.contextmanager
    def _said(self, so: str) -> Iterator[None]:
        try:
            yield
        except (GuardError, OSError, psutil.Error, ValueError) as error:
            self._trouble(f"{so}: {error}")


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _sentence(count: int, denied: int, policy: Policy, guard: Guard) -> str:
    if not count:
        return ""
    text = f"{count} connections are older than the guard, {denied} of them denied"
    if not denied:
        return text
    if policy.mode is Mode.OBSERVE:
        return f"{text} if it enforced"
    if not policy.before.end:
        return f"{text} and left open ([before] end = true would end them)"
    if not _may_end(guard, policy):
        return f"{text} and left open: the guard of before let them pass"
    seconds = policy.before.grace_ns / 1e9
    return f"{text} and ended" + (f" in {seconds:g} s" if seconds else "")
