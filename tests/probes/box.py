# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the probes run: a guarded host, its mail exchanger, and a container.

Every probe runs twice: in a cgroup that nothing guards, where it must come through,
and in the guarded one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from guard.abi import Flag, Outcome
from guard.backstop.keeper import Keeper, remove_all
from guard.backstop.nflog import Logged, PacketLog
from guard.event import Event
from guard.force import put_in_force
from guard.hosts import own_addresses
from guard.kernel import Guard
from guard.policy import Backstop
from tests.kernel import routes
from tests.kernel.world import (
    HOST4,
    HOST6,
    IPPROTO_MPTCP,
    MX4,
    MX6,
    PROGRAMS,
    PROGRAMS_PREFIX,
    SMTP,
    Child,
    Watch,
    World,
    policy,
    sysctl,
)
from tests.lab.lab import join_cgroup, kill_cgroup, wait_until
from tests.probes.matrix import Code, Row

NAT64 = "64:ff9b::c000:219"  # MX4 behind the well-known prefix, RFC 6052
BOX4, GATEWAY4 = "198.51.100.2", "198.51.100.1"  # RFC 5737
IDLE4 = "203.0.113.7"  # the MX's, and the host's on a link that is down
ADDRESSES = {
    "mx4": MX4,
    "mx6": MX6,
    "idle": IDLE4,
    "mapped": f"::ffff:{MX4}",
    "nat64": NAT64,
    "link-local": "fe80::25%host0",
    "host4": HOST4,
    "host6": HOST6,
    "loopback4": "127.0.0.1",
    "loopback6": "::1",
    "any4": "0.0.0.0",
    "any6": "::",
    "broadcast": "255.255.255.255",
    "subnet-broadcast": "192.0.2.255",
    "multicast": "224.0.0.25",
}
HOST_NETWORK = f"""\
addr add fe80::10/64 dev host0 nodad
route add 64:ff9b::/96 via {MX6}
link add host1 type veth peer name box0 netns {{box}}
addr add {GATEWAY4}/24 dev host1
link set host1 up
"""
MX_NETWORK = f"""\
addr add fe80::25/64 dev mx0 nodad
addr add {NAT64}/128 dev lo
route add 198.51.100.0/24 via {HOST4}
"""
BOX_NETWORK = f"""\
link set lo up
addr add {BOX4}/24 dev box0
link set box0 up
route add default via {GATEWAY4}
"""
LIMIT_S = 30  # a probe ends by itself after half of that
IPPROTO_SCTP = 132
PYTHON = Path("/proc/self/exe").resolve().name


@dataclass(frozen=True)
class Run:
    """How one run of a probe ended."""

    code: Code
    said: str


@dataclass(frozen=True)
class Result:
    """What became of a route, and what was found of it."""

    code: Code
    said: str
    events: tuple[Event, ...] = ()
    met: tuple[str, ...] = ()  # by which chain of the second lock


class Box(World):
    """A world with a container behind the host, and servers for the probes."""

    watch: Watch
    _keeper: Keeper | None = None
    _log: PacketLog | None = None
    _met: list[Logged]

    def __enter__(self) -> Self:
        super().__enter__()
        self._stack = contextlib.ExitStack()
        self._met = []
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        super().__exit__()

    def _prepare(self) -> None:
        self.programs = Path(
            tempfile.mkdtemp("", f"{PROGRAMS_PREFIX}{os.getpid()}-", PROGRAMS)
        )
        self.programs.chmod(0o755)
        self._stack.callback(shutil.rmtree, self.programs)
        self.box = self._new_netns()
        self._stack.callback(os.close, self.box)
        with self.inside(self.host):
            ip(HOST_NETWORK.format(box=f"/proc/{os.getpid()}/fd/{self.box}"))
            sysctl("net/ipv4/ip_forward", "1")
        with self.inside(self.mx):
            ip(MX_NETWORK)
        with self.inside(self.box):
            ip(BOX_NETWORK)
        for netns, address in ((self.host, "0.0.0.0"), (self.mx, MX4)):
            self._stack.enter_context(self.listen(netns, address))
            with self.inside(netns):  # and IPv6 alone
                server = socket.create_server(
                    ("::", SMTP), family=socket.AF_INET6, backlog=4096
                )
            self._stack.enter_context(server)
        self._stack.enter_context(self.listen(self.mx, MX4, 2525, IPPROTO_MPTCP))
        with contextlib.suppress(OSError):  # a kernel without SCTP
            self._stack.enter_context(self.listen(self.mx, MX4, proto=IPPROTO_SCTP))

    @contextlib.contextmanager
    def with_first_lock(self) -> Iterator[None]:
        """Have the guard, and nothing else, on the host."""
        with self.inside(self.host):
            guard = Guard.load(self.pin_dir)
            try:
                guard.set_hosts(own_addresses())
                guard.attach(self.guarded)
                self.watch = Watch(guard)
                yield
                self.watch.close()
            finally:
                guard.unload()

    @contextlib.contextmanager
    def with_second_lock(self) -> Iterator[None]:
        """Have both: rules of nftables too, but for the unguarded runs."""
        with self.with_first_lock(), self.inside(self.host):
            self._keeper = Keeper(self.pin_dir, None)
            self._log = PacketLog(Backstop().group, self._met.append)
            try:
                yield
            finally:
                self._log.close()
                self._keeper, self._log = None, None

    @contextlib.contextmanager
    def _locked(self, text: str) -> Iterator[None]:
        """Have the policy of a row in force, in netfilter too if that is meant."""
        if self._keeper is None:
            yield
            return
        text = f'[backstop]\nkind = "nftables"\nuplinks = ["host0"]\n{text}'
        with self.inside(self.host):
            put_in_force(self.watch.guard, policy(text), self._keeper)
        try:
            yield
        finally:
            with self.inside(self.host):
                remove_all(self.pin_dir)

    def _taken(self) -> tuple[str, ...]:
        """Give the chains of the second lock that met something since it was asked."""
        if self._log:
            self._log.read()
        met = tuple(dict.fromkeys(logged.chain for logged in self._met))
        self._met.clear()
        return met

    # ---- what the probes are

    def program(self, name: str) -> Path:
        """Compile a C file of tests/probes or tests/kernel, once."""
        path = self.programs / name
        if not path.exists():
            here = Path(__file__).with_name(f"{name}.c")
            source = (
                here if here.exists() else Path(routes.__file__).with_name(here.name)
            )
            command = ["gcc", "-O1", "-Wall", "-Werror", "-pthread", "-o", str(path)]
            command.append(str(source))
            if name == "preload":
                command += ["-shared", "-fPIC", "-Wno-unused"]
            if "liburing.h" in source.read_text():
                command.append("-luring")
            subprocess.run(command, check=True)
            path.chmod(0o755)
        return path

    def _argv(self, row: Row) -> list[str]:
        program, *rest = row.run
        address = ADDRESSES[row.to]
        path = str(self.program(program))
        if program == "spoof":  # its own order of arguments
            return [path, str(self.program("allowed")), address, str(row.port), *rest]
        return [path, *rest, address, str(row.port)]

    def _environment(self, row: Row, cgroup: Path) -> dict[str, str]:
        address = ADDRESSES[row.to]
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PROBE_ADDRESS": address,
            "PROBE_PORT": str(row.port),
            "PROBE_ALLOWED": str(self.program("allowed")),
            "PROBE_SPOOF": str(self.program("spoof")),
            "PROBE_LIBRARY": str(self.program("preload")),
            "PROBE_DEVICE": "box0" if row.where == "box" else "host0",
            "PROBE_HOP": GATEWAY4 if row.where == "box" else MX4,
            "PROBE_VIA": MX6 if ":" in address else MX4,
            "PROBE_CGROUP": str(cgroup),
            "PROBE_BOX": f"/proc/{os.getpid()}/fd/{self.box}",
        }

    # ---- one row

    def try_row(self, row: Row) -> Result:
        """Take a route twice; what was not tried says why."""
        text = row.policy.format(allowed=self.program("allowed"))
        with SETUPS[row.setup](self):
            self.watch.apply(text)
            control = self._run(row, self.free)
            if control.code is not Code.ALLOWED:
                return Result(
                    Code.UNTRIED,
                    f"unguarded it ends in {control.code.name}: {control.said}",
                )
            with self._locked(text):
                self.watch.forget()
                self._taken()
                done = self._run(row, self.guarded)
                met = self._taken()
            if met and done.code is Code.OTHERWISE:
                # its refusal has no errno of its own: a reset, or silence
                done = Run(Code.DENIED, f"{done.said} ({', '.join(met)})")
            if row.finding != "none" and done.code is not Code.UNTRIED:
                with contextlib.suppress(TimeoutError):  # compare() tells
                    wait_until(self.watch.connects, "a finding", 5)
            return Result(done.code, done.said, tuple(self.watch.connects()), met)

    def _run(self, row: Row, parent: Path) -> Run:
        cgroup = parent / "run"
        cgroup.mkdir()
        try:
            with self.inside(self.box if row.where == "box" else self.host):
                if row.run[0] == "route":
                    return self._run_route(row, cgroup)
                return self._run_program(row, cgroup)
        finally:
            kill_cgroup(cgroup)

    def _run_route(self, row: Row, cgroup: Path) -> Run:
        route = routes.all_routes(self.program("uring"))[row.run[1]]
        error = Child(route, cgroup).finish().errno
        return Run(_code(error), os.strerror(error) if error else "")

    def _run_program(self, row: Row, cgroup: Path) -> Run:
        def enter() -> None:
            join_cgroup(cgroup)
            if row.user:
                os.setgroups([])
                os.setresgid(row.user, row.user, row.user)
                os.setresuid(row.user, row.user, row.user)

        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                self._argv(row),
                env=self._environment(row, cgroup),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                preexec_fn=enter,
            )
            try:
                status = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return Run(Code.OTHERWISE, f"did not end within {LIMIT_S} s")
            said.seek(0)
            text = said.read().decode(errors="replace").strip()
        if row.run[0] == "spoof":  # it ends in an errno, 99: could not try
            return Run(Code.UNTRIED if status == 99 else _code(status), text)
        if status not in Code.__members__.values():
            return Run(Code.UNTRIED, f"ended with {status}: {text}")
        return Run(Code(status), text)


def _code(error: int) -> Code:
    if error in (0, 1):  # 1 is EPERM
        return Code(error)
    return Code.OTHERWISE


def compare(row: Row, result: Result, locks: str = "first") -> str:
    """Say what is not as the table has it; empty: all is."""
    expected = row.expected(kernel_release(), locks)
    if result.code is not expected:
        return f"{result.code.name}, not {expected.name}: {result.said}"
    if result.code is Code.UNTRIED:
        return ""
    if locks == "second" and row.by_second and not result.met:
        return "stopped, but the second lock tells of nothing"
    if result.met and not (locks == "second" and row.by_second):
        return f"met by the second lock ({', '.join(result.met)})"
    events = result.events
    if bool(events) != (row.finding != "none"):
        return f"{len(events)} findings, but the table says {row.finding}"
    if {e.outcome is Outcome.DENIED for e in events} - {row.finding == "denied"}:
        return f"a finding says {events[-1].outcome.name}, not {row.finding}"
    named = row.named or (PYTHON if row.run[0] == "route" else row.run[0])
    others = {_name(event) for event in events} - {named}
    if others:
        return f"found as {', '.join(others)}, not as {named}"
    if row.marked and not all(e.flags & _flag(row.marked) for e in events):
        return f"found, but not marked {row.marked}"
    return ""


def _flag(name: str) -> Flag:
    return Flag[name.upper().replace("-", "_")]


def _name(event: Event) -> str:
    if event.flags & Flag.KTHREAD:
        return "the kernel"
    return event.exe.rpartition("/")[2]


def kernel_release() -> str:
    """Give the running kernel as the table names it: 6.18."""
    return ".".join(platform.release().split(".")[:2])


# How each column of expected results comes about.
LOCKED: Mapping[str, Callable[[Box], AbstractContextManager[None]]] = {
    "first": Box.with_first_lock,
    "second": Box.with_second_lock,
}


# ---- what a row needs beside the usual

_announcements = itertools.count(100)


@contextlib.contextmanager
def _announced(box: Box) -> Iterator[None]:
    """Have the MX announce another address, with a guarded port, to multipath."""
    # A new one each time: the kernel's listener lets go of its address late.
    address = f"192.0.2.{next(_announcements)}"
    limits = "mptcp limits set subflow 2 add_addr_accepted 2\n"
    with box.inside(box.host):
        ip(limits)
    with box.inside(box.mx):
        ip(
            f"{limits}addr add {address}/24 dev mx0\n"
            f"mptcp endpoint add {address} port {SMTP} signal\n"
        )
    try:
        yield
    finally:
        with box.inside(box.mx):
            ip(f"mptcp endpoint flush\naddr del {address}/24 dev mx0\n")


@contextlib.contextmanager
def _neighbour(box: Box) -> Iterator[None]:
    """Have the MX take packets for 127.0.0.1, as no neighbour should."""
    with box.inside(box.mx):
        sysctl("net/ipv4/conf/mx0/route_localnet", "1")
    try:
        yield
    finally:
        with box.inside(box.mx):
            sysctl("net/ipv4/conf/mx0/route_localnet", "0")


@contextlib.contextmanager
def _idle(box: Box) -> Iterator[None]:
    """Have an address on a link of the host that is down: another has it now."""
    with box.inside(box.mx):
        ip(f"addr add {IDLE4}/32 dev lo\n")
    with box.inside(box.host):
        ip(
            "link add idle0 type veth peer name idle1\n"
            f"addr add {IDLE4}/32 dev idle0\nroute add {IDLE4} via {MX4}\n"
        )
        box.watch.guard.set_hosts(own_addresses())
    try:
        yield
    finally:
        with box.inside(box.host):
            ip(f"link del idle0\nroute del {IDLE4}\n")
            box.watch.guard.set_hosts(own_addresses())
        with box.inside(box.mx):
            ip(f"addr del {IDLE4}/32 dev lo\n")


SETUPS: Mapping[str, Callable[[Box], AbstractContextManager[object]]] = {
    "": contextlib.nullcontext,
    "announced": _announced,
    "idle": _idle,
    "neighbour": _neighbour,
}


def ip(batch: str) -> None:
    """Run lines of ip(8) in the namespace this thread is in."""
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
