# SPDX-License-Identifier: GPL-2.0-or-later
"""A host, another host, and a guarded cgroup: where the kernel tests act.

Both hosts are network namespaces joined by a veth pair. Acts are forked children
that join a cgroup first, because a socket belongs to the cgroup it was made
in. Nothing here outlives the test: namespaces end with their last descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pickle
import selectors
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from guard import kernel
from guard.abi import Counter, EventKind
from guard.event import Event
from guard.force import put_in_force
from guard.kernel import Guard
from guard.policy import Policy, parse
from guard.ring import Repeats, Ring, finished_repeats
from tests.lab.lab import (
    CLONE_NEWNET,
    PATIENCE,
    join_cgroup,
    kill_cgroup,
    setns,
    wait_until,
)

# Documentation prefixes, RFC 5737 and RFC 3849: they can be nobody's.
HOST4, HOST6 = "192.0.2.10", "2001:db8:1::10"
MX4, MX6 = "192.0.2.25", "2001:db8:1::25"
NOWHERE4 = "203.0.113.1"  # no route leads there
SILENT4 = "192.0.2.77"  # on the wire, but nobody has it: no answer to ARP
SMTP = 25
PREFIX = "smtp-guard-test-"
BPFFS = Path("/sys/fs/bpf")
# Root's alone all the way up, and with room to execute: not so /tmp.
PROGRAMS, PROGRAMS_PREFIX = Path("/var/lib"), "smtp-guard-programs-"

HOST_NETWORK = f"""\
link set lo up
link add host0 type veth peer name mx0 netns {{mx}}
addr add {HOST4}/24 dev host0
addr add {HOST6}/64 dev host0 nodad
link set host0 up
"""
MX_NETWORK = f"""\
link set lo up
addr add {MX4}/24 dev mx0
addr add {MX6}/64 dev mx0 nodad
link set mx0 up
"""
# include/uapi/linux/tcp.h, include/linux/socket.h, include/uapi/linux/in.h
TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, MSG_FASTOPEN = 23, 30, 0x20000000
IPPROTO_MPTCP = 262

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


@dataclass
class Done:
    """What a forked child did: its value, or the OSError it ended in."""

    pid: int
    value: Any
    error: OSError | None

    @property
    def errno(self) -> int:
        """0, or why it failed."""
        return self.error.errno or -1 if self.error else 0


class Child:
    """A forked child that runs one function and tells how it went."""

    def __init__(self, function: Callable[[], Any], cgroup: Path | None) -> None:
        """Start it; finish() waits for its end."""
        self._read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            with contextlib.suppress(BaseException):
                os.close(self._read)
                os.write(write, pickle.dumps(_outcome(function, cgroup)))
                status = 0
            os._exit(status)
        os.close(write)

    def ends_well(self) -> None:
        """Wait for its end, for a function that executed another program."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._read)
        assert status == 0, f"wait status {status:#x}"

    def kill(self) -> None:
        """End it, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._read)

    def finish(self) -> Done:
        """Wait for its end; raises what it raised, unless an OSError."""
        with open(self._read, "rb") as pipe:
            raw = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if status:
            raise RuntimeError(f"child ended with wait status {status:#x}")
        value, error = pickle.loads(raw)
        if error is not None and not isinstance(error, OSError):
            raise error
        return Done(self.pid, value, error)


def _outcome(
    function: Callable[[], Any], cgroup: Path | None
) -> tuple[Any, BaseException | None]:
    try:
        if cgroup:
            join_cgroup(cgroup)
        return function(), None
    except BaseException as error:
        return None, error


def sweep() -> None:
    """Remove what worlds left whose process was killed before it could."""
    places: tuple[tuple[Path, str, Callable[[Path], object]], ...] = (
        (kernel.find_cgroup2(), PREFIX, kill_cgroup),
        (BPFFS, PREFIX, shutil.rmtree),
        (PROGRAMS, PROGRAMS_PREFIX, shutil.rmtree),
    )
    for top, prefix, remove in places:
        for path in top.glob(f"{prefix}*"):
            maker = path.name.removeprefix(prefix).split("-")[0]
            if not Path("/proc", maker).exists():
                remove(path)


class World:
    """Two network namespaces and a cgroup of the test's own."""

    def __init__(self) -> None:
        """Choose names that no other test process of this machine has."""
        self.name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        self.base = kernel.find_cgroup2() / self.name
        self.guarded = self.base / "guarded"
        self.free = self.base / "free"  # the control of every denial
        self.pin_dir = BPFFS / self.name

    def __enter__(self) -> Self:
        sweep()
        for cgroup in (self.guarded, self.free):
            cgroup.mkdir(parents=True)
        self.host, self.mx = self._new_netns(), self._new_netns()
        there = f"/proc/{os.getpid()}/fd/{self.mx}"
        with self.inside(self.host):
            _ip(HOST_NETWORK.format(mx=there))
        with self.inside(self.mx):
            _ip(MX_NETWORK)
        for netns in (self.host, self.mx):
            with self.inside(netns):  # 1 client, 2 server: tcp_fastopen
                sysctl("net/ipv4/tcp_fastopen", "3")
        return self

    def __exit__(self, *_: object) -> None:
        kill_cgroup(self.base)
        for fd in (self.host, self.mx):
            os.close(fd)

    def _new_netns(self) -> int:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            if _libc.unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        finally:
            setns(before, CLONE_NEWNET)
            os.close(before)

    @contextlib.contextmanager
    def inside(self, netns: int) -> Iterator[None]:
        """Be in a network namespace: this thread, and children made meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        setns(netns, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(before, CLONE_NEWNET)
            os.close(before)

    def listen(
        self, netns: int, address: str, port: int = SMTP, proto: int = 0
    ) -> socket.socket:
        """Listen in a namespace; the kernel shakes hands with no accept()."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.inside(netns):
            server = socket.socket(family, proto=proto)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not proto:  # Multipath TCP takes it from Linux 6.2 on, SCTP never
            server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 64)
        server.bind((address, port))
        server.listen(4096)
        server.settimeout(PATIENCE)
        return server

    @contextlib.contextmanager
    def serve(self, netns: int, *addresses: str, port: int = SMTP) -> Iterator[None]:
        """Have a server there that reads to the end of each connection."""
        servers = [self.listen(netns, address, port) for address in addresses]
        stop, stopped = socket.socketpair()
        thread = threading.Thread(target=_read_all, args=(servers, stopped))
        thread.start()
        try:
            yield
        finally:
            stop.close()
            thread.join()
            for end in (stopped, *servers):
                end.close()

    def act(self, function: Callable[[], Any], cgroup: Path | None = None) -> Done:
        """Run a function in a child of the guarded (or another) cgroup."""
        return Child(function, cgroup or self.guarded).finish()

    def control(self, function: Callable[[], Any]) -> Done:
        """Run the same where nothing is guarded."""
        return Child(function, self.free).finish()


def _read_all(servers: list[socket.socket], stop: socket.socket) -> None:
    with selectors.DefaultSelector() as ready:
        for source in (*servers, stop):
            ready.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                sock: Any = key.fileobj
                if sock is stop:
                    return
                if sock in servers:
                    ready.register(sock.accept()[0], selectors.EVENT_READ)
                    continue
                with contextlib.suppress(ConnectionError):
                    if sock.recv(1 << 20):
                        continue
                ready.unregister(sock)
                sock.close()


def _ip(batch: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)


def sysctl(name: str, value: str) -> None:
    """Set a sysctl of the network namespace this thread is in."""
    Path("/proc/sys", name).write_text(value)


def policy(text: str, mode: str = "enforce") -> Policy:
    """Read a policy that includes nothing; fold windows never end by accident."""
    fold = "" if "[fold]" in text else '\n[fold]\nwindow = "0s"\n'
    return parse(f'mode = "{mode}"\n{text}{fold}')


def rule(verdict: str = "allow", **keys: Any) -> str:
    """Write one [[rule]]; an allow rule is journalled, so that it can be seen."""
    lines = ["[[rule]]", f'name = "{keys.pop("name", "made")}"']
    for key, value in keys.items():
        if isinstance(value, list | tuple):
            text = "[" + ", ".join(_toml(item) for item in value) + "]"
        else:
            text = _toml(value)
        lines.append(f"{key} = {text}")
    lines.append(f'verdict = "{verdict}"')
    if verdict == "allow":
        lines.append("journal = true")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'


ALLOW_MX = rule(to=[MX4, MX6])


class Watch:
    """A guard under test: its policy, what its ring says, what it counted."""

    def __init__(self, guard: Guard) -> None:
        """Begin to read; what was in the ring before is not ours."""
        self.guard = guard
        self.events: list[Event] = []
        self.torn: list[Exception] = []
        self._ring = Ring(guard, self.events.append, self.torn.append)
        self._ring.consume()
        list(finished_repeats(guard, everything=True))
        self.events.clear()
        self.before = guard.counters()

    def close(self) -> None:
        """Stop reading, and see that nothing was torn or lost count of."""
        self.read()
        self._ring.close()
        assert not self.torn
        self.check_sum()

    def apply(self, text: str, mode: str = "enforce") -> None:
        """Put a policy in force."""
        put_in_force(self.guard, policy(text, mode))

    def read(self) -> list[Event]:
        """Read what is there, and give all events so far."""
        self._ring.consume()
        return self.events

    def poll(self, timeout_ms: int) -> None:
        """Wait for events, and read them."""
        self._ring.poll(timeout_ms)

    def connects(self) -> list[Event]:
        """Give the judged connects so far."""
        return [e for e in self.read() if e.kind is EventKind.CONNECT]

    def closes(self) -> list[Event]:
        """Give the ends of connections so far."""
        return [e for e in self.read() if e.kind is EventKind.CLOSED]

    def forget(self) -> None:
        """Begin anew with no events."""
        self.read()
        self.events.clear()
        self.before = self.guard.counters()

    def one(self) -> Event:
        """Give the only connect, and see that it is the only one."""
        connects = self.connects()
        assert len(connects) == 1, connects
        self.check_sum()
        return connects[0]

    def closed(self) -> Event:
        """Wait for the only end."""
        wait_until(self.closes, "the end of the connection")
        closes = self.closes()
        assert len(closes) == 1, closes
        return closes[0]

    def moved(self, counter: Counter) -> int:
        """Tell how far a counter has moved since this began."""
        return self.guard.counters()[counter] - self.before[counter]

    def check_sum(self) -> None:
        """Every judged connect is accounted for (enum counter, bpf/guard.h)."""
        now = self.guard.counters()
        parts = ("EVENTS", "FOLDED", "QUIET", "HELD", "LOST_RING")
        assert now[Counter.JUDGED] == sum(now[Counter[part]] for part in parts), now

    def repeats(self) -> list[Repeats]:
        """Take all counted repeats, also of windows that are not over."""
        return list(finished_repeats(self.guard, everything=True))


def compile_c(source: str, target: Path, *flags: str) -> Path:
    """Compile one C file of this directory, readable and runnable by all."""
    path = Path(__file__).with_name(source)
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Werror", path, "-o", target, *flags], check=True
    )
    target.chmod(0o755)
    return target
