# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the second lock as the policy says: put, compared now and then, put back.

Around a change of policy it goes in two steps, so that no connection which either
policy allows is refused in between: first what both refuse, then, when the kernel
programs follow the new policy, what that one refuses.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from guard.abi import Mode
from guard.backstop.iptables import Iptables, chain_prefix
from guard.backstop.lock import Design, Lock, lock_of, while_changing
from guard.backstop.nftables import Nftables
from guard.backstop.uplinks import uplinks
from guard.checks import Check, State, good
from guard.errors import BackstopError, GuardError
from guard.hosts import Bell
from guard.kernel import Guard, find_cgroup2
from guard.policy import Policy
from guard.tables import guarded_ports, netns_cookie

# NFNLGRP_NFTABLES, include/uapi/linux/netfilter/nfnetlink.h: rules were changed;
# RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE, linux/rtnetlink.h: so may be the uplinks
_RULE_NEWS = 1 << 7 - 1
_ROUTE_NEWS = 0x40 | 0x400
# Some firewalls change a set of theirs many times a second.
_AGAIN_SECONDS = 1.0


class Backend(Protocol):
    """A way to have a lock in netfilter."""

    kind: str
    look_seconds: float  # after which it is looked at without news

    def check(self, lock: Lock) -> None:
        """Raise BackstopError if it cannot be put in force."""

    def put(self, lock: Lock) -> None:
        """Put it in force in place of what is there."""

    def state(self) -> str:
        """Give what is in force as text; "": nothing."""

    def what(self, state: str) -> str:
        """Say what somebody did, by the state it left."""

    def remove(self) -> bool:
        """Take it out; False: it was not there."""


_BACKENDS: dict[str, type[Nftables] | type[Iptables]] = {
    "nftables": Nftables,
    "iptables": Iptables,
}


def table_name(pin_dir: Path) -> str:
    """Name the tables of the guard that is pinned there; a name for each guard."""
    return re.sub(r"\W", "_", pin_dir.name, flags=re.ASCII)[:40] or "smtp_guard"


def remove_all(pin_dir: Path, but: str = "off", known: str = "") -> list[str]:
    """Take out every second lock of a guard but one; gives the kinds there were.

    known is the kind that is recorded to be in force. Raises BackstopError when that
    one cannot be taken out: it would refuse all mail once nothing is marked.
    """
    name = table_name(pin_dir)
    kinds = [kind for kind in _BACKENDS if kind != but]
    return [kind for kind in kinds if _remove(kind, name, kind == known)]


def same_namespace(about: dict[str, Any]) -> None:
    """Raise BackstopError where rules are recorded in another network namespace.

    about is a Keeper.record(); {}: nothing is recorded.
    """
    kind = about.get("kind", "off")
    if kind in _BACKENDS and about.get("netns") != netns_cookie():
        raise BackstopError(
            f"the rules of {kind} are in another network namespace",
            hint="call it where guardd was started: nsenter -t PID --net guardctl ...",
        )


def _remove(kind: str, name: str, known: bool) -> bool:
    if kind == "iptables" and not _iptables_may_have(name):
        return False
    try:
        return _BACKENDS[kind](name).remove()
    except BackstopError:
        if kind == "nftables" and (there := _remove_by_program(name)) is not None:
            return there
        if known:
            raise
    return False


def _remove_by_program(name: str) -> bool | None:
    """Take out our tables by nft(8), where its library cannot be had from Python.

    None: nft cannot be had either.
    """
    try:
        listed = _output(["nft", "list", "tables"]).decode(errors="replace")
        tables = [f"table {family} {name}" for family in ("inet", "netdev")]
        there = [table for table in tables if table in listed.splitlines()]
        for table in there:
            _output(["nft", "delete", *table.split()])
    except (OSError, subprocess.SubprocessError):
        return None
    return bool(there)


def _output(command: list[str]) -> bytes:
    """Give what a command printed. Raises OSError or SubprocessError."""
    return subprocess.run(command, capture_output=True, timeout=20, check=True).stdout


def _iptables_may_have(name: str) -> bool:
    """Tell whether legacy iptables may hold chains of ours, without their library.

    Where it has no table here, asking it would make one. Where it has, its own
    program tells in milliseconds; python-iptables takes 0.3 s.
    """
    found = False
    for family in ("ip", "ip6"):
        with contextlib.suppress(OSError):
            tables = Path(f"/proc/self/net/{family}_tables_names").read_text()
            if "filter" in tables.split():
                found |= _saved(
                    f"{family}tables-legacy-save", f":{chain_prefix(name)}_"
                )
    return found


def _saved(program: str, text: str) -> bool:
    try:
        return text.encode() in _output([program, "-t", "filter"])
    except (OSError, subprocess.SubprocessError):
        return True  # it cannot be asked, so let the library look


def digest(state: str) -> str:
    """Shorten a state for the guard's record."""
    return hashlib.sha256(state.encode()).hexdigest() if state else ""


class Keeper:
    """The second lock of one guard, in the network namespace of this process."""

    def __init__(self, pin_dir: Path, cgroup: Path | None) -> None:
        """Touch nothing yet. cgroup is where the guard is attached; None: nowhere."""
        self.name = table_name(pin_dir)
        self.why = "no policy yet"  # it is not in force; "" when it is
        self.lacking = False  # the policy wants one that is not to be had
        self.renewed = False  # what record() gives is another than was recorded
        self._cgroup = cgroup
        self._backend: Backend | None = None
        self._leaving: Backend | None = None  # until another kind is in force
        self._policy: Policy | None = None
        self._lock: Lock | None = None
        self._indexes: dict[str, int] = {}
        self._state = ""
        self._wrong: list[Check] = []
        self._bells: list[Bell] = []
        self._look_at = 0.0

    @property
    def kind(self) -> str:
        """nftables or iptables, when one of them is in force; else off."""
        return self._backend.kind if self._backend else "off"

    @property
    def lock(self) -> Lock | None:
        """What is in force; None: nothing."""
        return self._lock if self._backend else None

    # ---- a policy comes

    def loosen(self, guard: Guard, policy: Policy) -> None:
        """Before the kernel programs follow policy: refuse only what both refuse.

        Raises BackstopError when what it asks for cannot be had; then nothing was
        changed.
        """
        backend = self._choose(policy)
        new = lock_of(policy, Design.MARK, self._uplinks(policy))
        if backend:
            backend.check(new)
        known, there = _known(guard), guard.policy()
        if known not in _BACKENDS:
            return
        if backend is None or not there.mark:
            _remove(known, self.name, known=True)
            return
        old = replace(
            new,
            enforce=there.mode == Mode.ENFORCE,
            ports=guarded_ports(guard.control()),
            marks=(int(there.mark),),
            forward=(),
        )
        if known != backend.kind:  # it stays until the new one is there
            self._leaving = _BACKENDS[known](self.name)
            self._leaving.put(while_changing(old, new))
        elif old != replace(new, forward=()):
            backend.put(while_changing(old, new))

    def try_out(self, policy: Policy, design: Design) -> None:
        """Raise BackstopError when the lock of policy cannot be had."""
        backend = self._choose(policy)
        if backend is None:
            raise BackstopError(
                f"there is none: {self.why}",
                hint='kind = "auto" in [backstop]; guardctl doctor tells the rest',
            )
        backend.check(lock_of(policy, design, self._uplinks(policy)))

    def put(self, policy: Policy, design: Design) -> None:
        """Put the lock of policy in force; `why` tells if it is not.

        Raises BackstopError if policy names a way that there is not.
        """
        self._backend = self._choose(policy)
        self._policy = policy
        if self._backend is None:
            self._lock = None
            return
        lock = lock_of(policy, design, self._uplinks(policy))
        try:
            self._put(lock)
        except BackstopError as error:
            self.why, self.lacking = str(error), True
            self._lock = lock
            if policy.backstop.kind == "auto":
                self._backend = self._lock = None
            self._look_at = 0.0

    def _put(self, lock: Lock) -> None:
        assert self._backend
        known = lock == self._lock and self._state and not self.why
        if known and self._backend.state() == self._state:
            return  # so that its counters go on
        self._backend.put(lock)
        if self._leaving:
            self._leaving.remove()
            self._leaving = None
        self.renewed = True
        self._lock = lock
        self._indexes = _indexes(lock)
        self._state = self._backend.state()
        self._wrong = []
        self.why = ""

    def _choose(self, policy: Policy) -> Backend | None:
        """Give the way that the policy names, or the first of the two there is."""
        wanted = policy.backstop.kind
        self.lacking = False
        if wanted == "off":
            self.why = "the policy says so"
            return None
        if wanted == "auto" and self._cgroup not in (None, find_cgroup2()):
            self.why = "the guard is not about all processes, netfilter would be"
            return None
        if self._backend and wanted in ("auto", self._backend.kind):
            return self._backend
        reasons = []
        for kind, way in _BACKENDS.items():
            if wanted in ("auto", kind):
                try:
                    return way(self.name)
                except BackstopError as error:
                    if wanted == kind:
                        raise
                    reasons.append(str(error.args[0]))
        self.why, self.lacking = "; ".join(reasons), True
        return None

    def _uplinks(self, policy: Policy) -> tuple[str, ...]:
        wanted = policy.backstop.uplinks
        found = uplinks() if wanted is None else wanted
        here = {name for _, name in socket.if_nameindex()}
        return tuple(name for name in found if name in here)

    def record(self) -> dict[str, Any]:
        """Give what other processes may know, for the guard's record."""
        self.renewed = False
        group = self._policy.backstop.group if self._policy else 0
        found = {"kind": self.kind, "state": digest(self._state), "group": group}
        found["netns"] = netns_cookie()
        found["uplinks"] = " ".join(self._lock.uplinks if self._lock else ())[:200]
        return {**found, "lacking": self.lacking, "why": self.why[:300]}

    # ---- is it still there?

    def bells(self) -> list[Bell]:
        """Give what becomes readable when the lock should be looked at."""
        if not self._bells:
            self._bells = [
                Bell(socket.NETLINK_ROUTE, _ROUTE_NEWS),
                Bell(_NETLINK_NETFILTER, _RULE_NEWS),
            ]
        return self._bells

    def rang(self) -> None:
        """Look soon: something of the rules or routes was changed."""
        for bell in self._bells:
            bell.drain()
        self._look_at = min(self._look_at, time.monotonic() + _AGAIN_SECONDS)

    def look(self) -> list[Check]:
        """Compare, now and then or after news; gives what somebody changed.

        A lock that has to be another by now, because an uplink came or a unit was
        started anew (no news tells of that), is put at once.
        """
        if self._backend is None:
            return self._wrong
        owner = self._lock is not None and self._lock.design is Design.OWNER
        if time.monotonic() < self._look_at and not (owner and self._is_other()):
            return self._wrong
        self._look_at = time.monotonic() + self._backend.look_seconds
        try:
            self._wrong = list(self._compare())
        except GuardError as error:
            self._wrong = [Check("backstop", State.BAD, str(error), error.hint)]
        return self._wrong

    def _fresh(self) -> Lock:
        assert self._policy and self._lock
        return lock_of(self._policy, self._lock.design, self._uplinks(self._policy))

    def _is_other(self) -> bool:
        fresh = self._fresh()
        return fresh != self._lock or _indexes(fresh) != self._indexes

    def _compare(self) -> Iterator[Check]:
        assert self._backend
        state = self._backend.state()
        # asked after the rules: what they name may have ended in between
        if self._is_other():
            self._indexes = {}  # put it even if it is the same in words
            self._state = ""
            self._put(self._fresh())
            return
        if self.why or state != self._state:
            what = self._backend.what(state)
            yield Check(
                "backstop",
                State.BAD,
                self.why or f"{what} the rules of {self.kind}",
                "guardctl policy apply puts them back; find out who did it",
            )

    def stay(self) -> None:
        """Take back what loosen() did: the policy did not change after all."""
        self._leaving = None
        self.put_back()

    def put_back(self) -> None:
        """Have it as it was put. Raises BackstopError."""
        if self._backend and self._lock:
            self._state = ""  # whatever it looks like
            self._put(self._lock)
            self._look_at = 0.0


_NETLINK_NETFILTER = 12  # include/uapi/linux/netlink.h


def _indexes(lock: Lock) -> dict[str, int]:
    """Give the numbers of the uplinks: one of the same name may be another."""
    found = {}
    for name in lock.uplinks:
        with contextlib.suppress(OSError):
            found[name] = socket.if_nametoindex(name)
    return found


def _known(guard: Guard) -> str:
    """Give the kind of the lock that the guard's record tells of."""
    return str((guard.about().get("backstop") or {}).get("kind", "off"))


def standing(guard: Guard) -> Check:
    """Compare what is in force with what the guard's record tells of."""
    if guard.home_netns != netns_cookie():
        return Check(
            "backstop",
            State.NOTE,
            "the guard belongs to another network namespace; not compared",
        )
    return compare(guard.about().get("backstop") or {}, guard.pin_dir)


def compare(about: dict[str, Any], pin_dir: Path) -> Check:
    """Compare what is in force with a record of it, Keeper.record()."""
    kind = about.get("kind", "off")
    if kind not in _BACKENDS:
        why = about.get("why") or "loaded by a version without one"
        if not about.get("lacking"):
            return Check("backstop", State.GOOD, f"none: {why}")
        remedy = "guardctl doctor tells what this host has; kind in [backstop]"
        return Check("backstop", State.WARN, f"no second lock: {why}", remedy)
    try:
        backend = _BACKENDS[kind](table_name(pin_dir))
        state = backend.state()
    except BackstopError as error:
        return Check("backstop", State.BAD, str(error), error.hint)
    if digest(state) != about.get("state"):
        what = f"somebody {backend.what(state)} the rules of {kind}"
        return Check(
            "backstop",
            State.BAD,
            what if state else f"the rules of {kind} are gone",
            "guardctl policy apply puts them back; guardd does so within a minute, "
            'unless the policy says tamper = "report"',
        )
    if not about.get("uplinks"):
        return Check(
            "backstop",
            State.WARN,
            f"in force, by {kind}, but no uplink is known: what is forwarded and what "
            "packet sockets send is not met",
            'name them in [backstop], as in uplinks = ["eth0"]',
        )
    return good("backstop", f"in force, by {kind}, uplinks {about['uplinks']}")
