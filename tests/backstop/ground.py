# SPDX-License-Identifier: GPL-2.0-or-later
"""A host whose guardd keeps a second lock, and what gets by it onto the wire.

The host and the MX are namespaces of World, guardd and its journald those of Site.
What acts in `free` is in a cgroup the guard is not attached to: a way around the
first lock, whichever it is.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from guard.backstop.packet import Head, unpack_head
from guard.finding import Finding, Kind
from guard.journal import read
from tests.faults.site import CHECKOUT, Guardd, Site
from tests.journald import entries, until
from tests.kernel.world import HOST4, HOST6, MX4, MX6, Done, World

KINDS = ("nftables", "iptables")
MARK = 0x0800_0000  # the default of [backstop] mark
SENTINEL = 587  # its port at the MX, guarded and served by nobody
NOBODY = 65534
ETH_P_ALL = 3
PACKET_OUTGOING = 4  # include/uapi/linux/if_packet.h
_RST, _SYN_ACK = 0x04, 0x12  # of TCP, RFC 9293
_CLOSED = 2626  # a port nobody guards or serves
_ports = itertools.count(20000)


def new_port() -> int:
    """Give a source port that no other packet of this test process has."""
    return next(_ports)


def host_of(mx: str) -> str:
    """Give the host's address of the same family as the MX's."""
    return HOST6 if ":" in mx else HOST4


def policy(
    kind: str,
    *,
    mode: str = "enforce",
    backstop: str = "",
    more: str = "",
    window: str = "0s",
) -> str:
    """Write a policy: root may send to the MX, nobody else anywhere."""
    uplinks = "" if "uplinks" in backstop else 'uplinks = ["host0"]\n'
    return f"""\
mode = "{mode}"
{more}
[[rule]]
name = "root"
user = 0
to = ["{MX4}", "{MX6}"]
verdict = "allow"
[backstop]
kind = "{kind}"
{uplinks}{backstop}
[fold]
window = "{window}"
"""


class Wire:
    """All that comes to the MX's interface, and all that leaves it."""

    def __init__(self, world: World) -> None:
        """Listen from now on."""
        with world.inside(world.mx):
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
            )
            self._socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            self._socket.bind(("mx0", ETH_P_ALL))
        self._socket.settimeout(10)
        self._world = world
        for address in (MX4, MX6):  # so that no first packet waits for a neighbour
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with world.inside(world.host), socket.socket(family) as sock:
                assert sock.connect_ex((address, _CLOSED)) == errno.ECONNREFUSED
        self.came: list[bytes] = []
        self.left: list[bytes] = []

    def _read(self) -> None:
        """Read up to a datagram that is sent now: the veth keeps the order."""
        token = os.urandom(16)
        with (
            self._world.inside(self._world.host),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sentinel,
        ):
            sentinel.sendto(token, (MX4, 9))
        while True:
            frame, (_, _, kind, *_) = self._socket.recvfrom(1 << 16)
            (self.left if kind == PACKET_OUTGOING else self.came).append(frame)
            if token in frame and kind != PACKET_OUTGOING:
                return

    def heads(self) -> list[Head]:
        """Give the ends of all TCP packets that came."""
        self._read()
        heads = (unpack_head(frame, framed=True) for frame in self.came)
        return list(filter(None, heads))

    def first_packets(self, sport: int, dport: int = 25) -> int:
        """Count the frames that came with these ports, but for the host's resets."""
        self._read()
        ports = struct.pack("!HH", sport, dport)
        ends = [frame[frame.index(ports) :] for frame in self.came if ports in frame]
        return sum(len(end) < 14 or not end[13] & _RST for end in ends)

    def answers(self, sport: int, dport: int = 25) -> int:
        """Count the SYN-ACKs that the MX sent to this port."""
        self._read()
        ports = struct.pack("!HH", dport, sport)
        return sum(
            frame[frame.index(ports) + 13] & _SYN_ACK == _SYN_ACK
            for frame in self.left
            if ports in frame
        )

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class Ground:
    """A guarded host with a second lock of one kind."""

    def __init__(
        self, folder: Path, connects: Path, kind: str, served: bool = True
    ) -> None:
        """Keep files below folder; kind is that of [backstop], served: the MX is."""
        self._served = served
        self.kind = kind
        self.world = World()
        self.site = Site(folder, connects)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.world)
            stack.callback(self.site.__exit__, None, None, None)
            self.site.__enter__()
            stack.enter_context(self.world.inside(self.world.host))
            if self._served:
                stack.enter_context(self.world.serve(self.world.mx, MX4, MX6))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def netns(self) -> str:
        """Give a file that leads to the host's network namespace."""
        return f"/proc/{os.getpid()}/fd/{self.world.host}"

    def start(self, text: str = "", **more: str | bool) -> Guardd:
        """Write the policy, start guardd on the host and wait until it is ready."""
        self.site.write_policy(text or policy(self.kind))
        self.guardd = self.site.start(netns=self.netns, **more)
        return self.guardd

    def apply(self, text: str) -> None:
        """Have guardd follow another policy, and see that it does."""
        self.site.write_policy(text)
        self.guardd.reload()
        assert self.site.guard.about().get("refused") is None

    def ctl(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run guardctl on the host, with the journal that guardd writes to."""
        script = 'mount --bind "$0" /run/systemd/journal && exec "$@"'
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
            + [str(self.site.journald.runtime), sys.executable, "-m", "guard.cli.main"]
            + ["--pin-dir", str(self.site.pin_dir), *argv],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )

    # ---- acts

    def guarded(self, function: Callable[[], Any]) -> Done:
        """Do it where the first lock is."""
        return self.world.act(function, self.site.cgroup)

    def free(self, function: Callable[[], Any]) -> Done:
        """Do it where the first lock is not."""
        with self.world.inside(self.world.host):
            return self.world.act(function, self.world.free)

    @contextlib.contextmanager
    def wire(self) -> Iterator[Wire]:
        """See what comes to the MX."""
        wire = Wire(self.world)
        try:
            yield wire
        finally:
            wire.close()

    # ---- what guardd found

    def all_findings(self, kind: Kind = Kind.BACKSTOP) -> list[Finding]:
        """Give guardd's findings of a kind, oldest first."""
        self.site.journald.sync()
        match = f"SMTPGUARD_KIND={kind.value}"
        found = map(read, entries(self.site.journald.directory, match))
        return [one for one in found if isinstance(one, Finding)]

    @contextlib.contextmanager
    def found(self) -> Iterator[list[Finding]]:
        """Give, once the block is left, what the second lock met within it.

        All of it: guardd tells in the order in which the kernel recorded, so when
        a packet sent last is told, so is what came before.
        """
        before = self._told()
        found: list[Finding] = []
        yield found
        found += self._told()[len(before) :][:-1]

    def _told(self) -> list[Finding]:
        sport = new_port()

        def sentinel() -> None:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((HOST4, sport))
                sock.settimeout(5)
                with contextlib.suppress(OSError):
                    sock.connect((MX4, SENTINEL))

        self.free(sentinel)
        told: list[Finding] = []

        def is_told() -> bool:
            told[:] = self.all_findings()
            return any(one.src == (HOST4, sport) for one in told)

        until(is_told, "the finding about the last packet")
        return told

    def lost(self) -> list[dict[str, object]]:
        """Give the entries about packets that nobody read."""
        self.site.journald.sync()
        found = entries(self.site.journald.directory, "SMTPGUARD_KIND=lost")
        return [one for one in found if "SMTPGUARD_BACKSTOP" in one]

    def notices(self, kind: str) -> list[dict[str, str]]:
        """Give guardd's other entries of a kind."""
        return self.site.entries(kind)


def tables(ours: str) -> str:
    """List all rules of nftables but ours, without counters, as nft(8) shows them."""
    listing = nft("-s", "-j", "list", "ruleset")
    parts = json.loads(listing)["nftables"]
    return "\n".join(
        json.dumps(part, sort_keys=True)
        for part in parts
        for body in part.values()
        if ours not in (body.get("table"), body.get("name"))
    )


def nft(*argv: str, text: str | None = None) -> str:
    """Run nft in this network namespace."""
    return subprocess.run(
        ["nft", *argv], input=text, capture_output=True, text=True, check=True
    ).stdout


def iptables(command: str, family: str = MX4) -> str:
    """Run legacy iptables, or ip6tables, in this network namespace."""
    program = "ip6tables-legacy" if ":" in family else "iptables-legacy"
    return subprocess.run(
        [program, "-w", *command.split()], capture_output=True, text=True, check=True
    ).stdout


def saved(version: str = "") -> str:
    """Give what ip(6)tables-save shows, without counters and comments."""
    done = subprocess.run(
        [f"ip{version}tables-legacy-save", "-t", "filter"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line[:1] != "#"]
    return "\n".join(line.partition(" [")[0] for line in lines)
