# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for numbers: an Event of the kernel becomes a Finding for the journal."""

from __future__ import annotations

import errno
import grp
import pwd
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from guard.abi import NO_RULE, UNSET, Direction, EventKind, Flag, Mode, Outcome, Verdict
from guard.event import Ancestor, Event
from guard.finding import Finding, Kind, Process
from guard.ring import Repeats
from guard.script import script_of

# Names are asked again after so long, for accounts that come and go.
_NAMES_SECONDS = 60.0
_POLICIES = 64  # whose rules are known by name, the last ones
_SESSION = re.compile(r"/user\.slice/(user-[0-9]+\.slice)/")
_UNIT_ENDS = (".service", ".scope", ".socket", ".mount", ".swap")

# How container engines name their cgroups. Docker, Podman, containerd and CRI-O
# through systemd; Docker and LXC without; systemd-nspawn and machined.
_CONTAINERS = (
    (re.compile(r"/docker-([0-9a-f]{12})[0-9a-f]{52}\.scope"), "docker"),
    (re.compile(r"/docker/([0-9a-f]{12})[0-9a-f]{52}"), "docker"),
    (re.compile(r"/libpod-([0-9a-f]{12})[0-9a-f]{52}\.scope"), "podman"),
    (re.compile(r"/cri-containerd-([0-9a-f]{12})[0-9a-f]{52}\.scope"), "containerd"),
    (re.compile(r"/crio-([0-9a-f]{12})[0-9a-f]{52}\.scope"), "cri-o"),
    (re.compile(r"/lxc\.payload\.([^/]+)"), "lxc"),
    (re.compile(r"/systemd-nspawn@([^/]+)\.service"), "nspawn"),
    (re.compile(r"/machine\.slice/machine-([^/]+)\.scope"), "machine"),
)

_VERDICTS = {verdict: verdict.name.lower() for verdict in Verdict}
_MODES = {mode: mode.name.lower() for mode in Mode}
_DIRECTIONS = {direction: direction.name.lower() for direction in Direction}
_OUTCOMES = {outcome: outcome.name.lower().replace("_", "-") for outcome in Outcome}
_FLAGS = tuple(
    (flag, (flag.name or "").lower().replace("_", "-"))
    for flag in Flag
    if flag not in (Flag.LSM, Flag.MANY)  # those lack nothing
)


@lru_cache(maxsize=4096)
def unit_of(cgroup: str) -> str | None:
    """Give the systemd unit of a cgroup path: its first part that is no slice."""
    for part in cgroup.split("/"):
        if part.endswith(_UNIT_ENDS):
            return part
    return None


def session_slice(cgroup: str) -> str | None:
    """Give the slice of the user of a login session; None: the path is of none."""
    session = _SESSION.match(cgroup)
    return session[1] if session else None


@lru_cache(maxsize=4096)
def lasting_unit(cgroup: str) -> str | None:
    """Give the unit of a cgroup path that is there again tomorrow.

    A login session is a unit of its own that is never seen again: its user's slice
    stands for it.
    """
    return session_slice(cgroup) or unit_of(cgroup)


@lru_cache(maxsize=4096)
def container_of(cgroup: str) -> str | None:
    """Give `engine:name` of the container that a cgroup path belongs to."""
    for pattern, engine in _CONTAINERS:
        found = pattern.search(cgroup)
        if found:
            return f"{engine}:{found[1]}"
    return None


def cgroup2_path(raw: bytes) -> str:
    """Give the path in cgroup2 of what /proc/PID/cgroup holds: cgroups(7).

    Names are any bytes but newline and slash. A line of cgroup v1 comes first, so
    who may make a cgroup there must not end it by what str.splitlines() or text
    mode take for an end of line, and go on as 0::/system.slice/postfix.service.
    """
    for line in raw.split(b"\n"):
        if line.startswith(b"0::"):
            return line[3:].decode("utf-8", "surrogateescape")
    return "/"


@lru_cache(maxsize=256)
def incomplete_of(flags: int) -> tuple[str, ...]:
    """Name what an event's flags say, as Finding.incomplete has it."""
    return tuple(name for flag, name in _FLAGS if flags & flag)


@lru_cache(maxsize=256)
def _processes(ancestors: tuple[Ancestor, ...]) -> tuple[Process, ...]:
    return tuple(Process(a.pid, a.uid, a.comm, a.start_ns) for a in ancestors)


def request_text(text: str) -> str | None:
    """Give what a request has; PHP writes - for what it has not, as on a terminal."""
    return None if text in ("", "-") else text


def _name(
    known: dict[int, str | None], number: int, ask: Callable[[], str]
) -> str | None:
    """Look a name up once; never `known[number]`, another thread may clear it."""
    name = known.get(number, "")
    if name == "":
        try:
            name = ask()
        except KeyError:
            name = None
        known[number] = name
    return name


class Naming:
    """Turns events into findings; keeps the names it has looked up."""

    def __init__(self) -> None:
        """Start with no names and no policy."""
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
        self.boot = boot_id[:8]
        self._users: dict[int, str | None] = {}
        self._groups: dict[int, str | None] = {}
        self._forget_at = 0.0
        # (from when, name of a rule number), the newest first: an event that
        # waited in the ring was judged by the policy of its own time. A tuple: the
        # scribe goes through it while the main thread puts a policy in force
        self._rules: tuple[tuple[int, Callable[[int], str | None]], ...] = ()

    def use_rules(self, since_ns: int, name: Callable[[int], str | None]) -> None:
        """Name rules by `name` from since_ns (CLOCK_BOOTTIME) on."""
        self._rules = ((since_ns, name), *self._rules[: _POLICIES - 1])

    def _rule(self, number: int, time_ns: int) -> str | None:
        if number == NO_RULE:
            return None
        for since_ns, name in self._rules:
            if time_ns >= since_ns:
                return name(number) or f"#{number}"
        return f"#{number}"

    def rule_of(self, event: Event) -> str | None:
        """Name the rule that decided about an event; None: no rule did.

        "": it is of a policy that was in force before this process knew one.
        """
        if event.rule == NO_RULE:
            return None
        for since_ns, name in self._rules:
            if event.time_ns >= since_ns:
                return name(event.rule) or ""
        return ""

    def connection(self, event: Event) -> str:
        """Give the unique name of a connection: boot id and socket cookie."""
        return f"{self.boot}-{event.connection:x}"

    def user(self, uid: int) -> str | None:
        """Name a user; None: no account has this uid."""
        return _name(self._users, uid, lambda: pwd.getpwuid(uid).pw_name)

    def group(self, gid: int) -> str | None:
        """Name a group; None: none has this gid."""
        return _name(self._groups, gid, lambda: grp.getgrgid(gid).gr_name)

    def finding(self, event: Event) -> Finding:
        """Name what an event's numbers stand for."""
        return self._finding(event, _kind(event))

    def summary(self, repeats: Repeats) -> Finding:
        """Make the one finding that stands for many repeats."""
        return self._finding(repeats.first, Kind.SUMMARY, repeats)

    def _finding(
        self, event: Event, kind: Kind, repeats: Repeats | None = None
    ) -> Finding:
        now = time.monotonic()
        if now > self._forget_at:
            self._users.clear()
            self._groups.clear()
            self._forget_at = now + _NAMES_SECONDS
        # of now, not of start-up: the clock may have been set since
        to_real = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        flags = event.flags
        device = event.exe_device
        ended = event.ended_ns
        unit = unit_of(event.cgroup)
        incomplete = incomplete_of(flags) if flags else ()
        script = script_of(
            event.exe or None, event.args, event.cwd, unit, incomplete, event.script
        )
        return Finding(
            kind=kind,
            time_us=(event.time_ns + to_real) // 1000,
            seq=event.seq,
            connection=self.connection(event),
            verdict=_VERDICTS[event.verdict],
            mode=_MODES[event.mode],
            direction=_DIRECTIONS[event.direction],
            rule=self._rule(event.rule, event.time_ns),
            outcome=_OUTCOMES[event.outcome],
            pid=event.pid,
            tid=event.tid,
            ppid=event.ancestors[0].pid if event.ancestors else None,
            start_us=(event.start_ns + to_real) // 1000,
            uid=event.uid,
            user=self.user(event.uid),
            gid=event.gid,
            group=self.group(event.gid),
            real_uid=event.real_uid,
            real_gid=event.real_gid,
            loginuid=None if event.loginuid == UNSET else event.loginuid,
            session=None if event.session == UNSET else event.session,
            comm=event.comm,
            exe=event.exe or None,
            exe_device=f"{device >> 20}:{device & 0xFFFFF}",  # linux/kdev_t.h
            exe_inode=event.exe_inode,
            exe_nlink=event.exe_nlink,
            args=event.args,
            cwd=event.cwd,
            unit=unit,
            container=container_of(event.cgroup),
            cgroup=event.cgroup,
            netns=event.netns,
            ancestors=_processes(event.ancestors),
            src=event.src if event.src[1] else None,
            dst=event.dst,
            via=event.via if event.via[1] else None,
            error=errno.errorcode.get(event.error) if event.error else None,
            bytes_sent=event.bytes_sent,
            bytes_received=event.bytes_received,
            duration_us=max(ended - event.time_ns, 0) // 1000 if ended else None,
            count=repeats.folded if repeats else 1,
            last_us=(repeats.last_ns + to_real) // 1000 if repeats else 0,
            incomplete=incomplete,
            script=script.path,
            script_from=script.known_from,
            pool=script.pool,
            request_method=request_text(event.method),
            request_uri=request_text(event.uri),
            lock="lsm" if flags & Flag.LSM else None,
            destinations="many" if flags & Flag.MANY else None,
        )


def _kind(event: Event) -> Kind:
    if event.kind is EventKind.CLOSED:
        return Kind.CLOSED
    if event.verdict is not Verdict.ALLOW and event.mode is Mode.OBSERVE:
        return Kind.WOULD_DENY
    if event.verdict is Verdict.DENY:
        return Kind.DENIED
    if event.verdict is Verdict.REDIRECT:
        return Kind.REDIRECTED
    return Kind.LOCAL if event.direction is Direction.LOCAL else Kind.ALLOWED
