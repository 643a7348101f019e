# SPDX-License-Identifier: GPL-2.0-or-later
"""Which process sent a packet that netfilter recorded.

A TCP socket is found by the packet's ends. A raw or packet socket has none: netfilter
tells the user and group that it was made for, and no more. Whoever made such a
socket, by the kernel's record (guard/makers.py), and whoever holds one of which
there is no record, by /proc, may have sent it: one is named as the sender, of several
each, as one of them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from guard.backstop.nflog import Logged
from guard.backstop.packet import Head
from guard.errors import GuardError
from guard.event import Event
from guard.makers import Kept, MadeSocket, Makers
from guard.procfs import Seen, holders, look

_NET = Path("/proc/self/net")
# Of each family of sockets: its list in /proc/net, and where user and inode stand.
_LISTS = {
    socket.AF_INET: ("raw", 7, 9),
    socket.AF_INET6: ("raw6", 7, 9),
    socket.AF_PACKET: ("packet", 7, 8),
}


@dataclass(frozen=True, slots=True)
class Senders:
    """Processes, each of which can have sent the packet; none: not known."""

    made: tuple[Event, ...] = ()  # by the kernel's record
    seen: tuple[Seen, ...] = ()  # by /proc
    how: tuple[str, ...] = ()  # for `incomplete` of a finding

    @property
    def one(self) -> bool:
        """Tell whether it can have been one process alone."""
        return len(self.made) + len(self.seen) == 1


class Sight:
    """What is known, at one moment, of who can have sent packets recorded before.

    It is read once, however many packets are asked about.
    """

    def __init__(self, makers: Makers | None, since_ns: int) -> None:
        """Look on when first asked; all packets were sent since (CLOCK_BOOTTIME)."""
        self._makers = makers
        self._since_ns = since_ns
        self._kept: Kept | None = None
        self._lists: dict[str, list[list[str]]] = {}
        self._holders: dict[frozenset[int], tuple[Seen, ...]] = {}

    def senders(self, logged: Logged, head: Head | None) -> Senders:
        """Give who can have sent this packet."""
        if logged.uid is None:  # it was forwarded, and nobody here sent it
            return Senders()
        if head:
            event = self._connecting(head)
            if event and event.uid == logged.uid:
                return Senders(made=(event,))
            if len(seen := self._held(frozenset(self._tcp(head)))) == 1:
                return Senders(seen=seen)
        kept = self._record()
        families = _families(logged, head)
        made = _distinct(
            one
            for one in kept.makers
            if one.family in families and (one.uid, one.gid) == (logged.uid, logged.gid)
        )
        recorded = {one.socket for one in kept.makers}
        seen = self._held(frozenset(self._raw(logged.uid, families)) - recorded)
        how: tuple[str, ...] = ()
        if made or seen:
            how = ("maker",) if made else ("raw-socket",)
            packets = socket.AF_PACKET in families
            if not (kept.whole_packets if packets else kept.whole):
                how += ("maybe-others",)
        return Senders(made, seen, how)

    # ---- the kernel's record; a damaged one is told of by guardd's watch

    def _connecting(self, head: Head) -> Event | None:
        with contextlib.suppress(GuardError):
            if self._makers:
                return self._makers.connecting(head.src, head.dst)
        return None

    def _record(self) -> Kept:
        if self._kept is None:
            self._kept = Kept()
            for name, _, _ in _LISTS.values():
                self._lines(name)  # first: what is in these has its record by then
            with contextlib.suppress(GuardError):
                if self._makers:
                    self._kept = self._makers.since(self._since_ns)
        return self._kept

    # ---- /proc

    def _held(self, inodes: frozenset[int]) -> tuple[Seen, ...]:
        """Look at the processes that hold one of these sockets."""
        if not inodes:
            return ()
        if inodes not in self._holders:
            pids = {pid for held in holders(inodes).values() for pid in held}
            self._holders[inodes] = tuple(filter(None, map(look, sorted(pids))))
        return self._holders[inodes]

    def _tcp(self, head: Head) -> Iterator[int]:
        """Give the inodes of sockets with these ends: proc_net_tcp(5)."""
        version6 = ":" in head.src[0]
        for name, mapped in (("tcp", False), ("tcp6", True)):
            if version6 and not mapped:
                continue
            ends = [_kernel_form(end, mapped) for end in (head.src, head.dst)]
            for line in self._lines(name):
                if line[1:3] == ends:
                    yield int(line[9])

    def _raw(self, uid: int, families: Collection[int]) -> Iterator[int]:
        """Give the inodes of a user's raw or packet sockets: packet(7), raw(7)."""
        for family in families:
            name, user, inode = _LISTS[socket.AddressFamily(family)]
            for line in self._lines(name):
                if line[user] == str(uid):
                    yield int(line[inode])

    def _lines(self, name: str) -> list[list[str]]:
        if name not in self._lists:
            text = ""
            with contextlib.suppress(OSError):  # no IPv6, no packet sockets here
                text = (_NET / name).read_text()
            self._lists[name] = [line.split() for line in text.splitlines()[1:]]
        return self._lists[name]


def _families(logged: Logged, head: Head | None) -> Collection[int]:
    """Give of which families a socket that sent it can be.

    What a raw socket sends is met before it comes to an interface.
    """
    if logged.chain == "egress":
        return (socket.AF_PACKET,)
    if head is None:
        return (socket.AF_INET, socket.AF_INET6)
    return (socket.AF_INET6 if ":" in head.dst[0] else socket.AF_INET,)


def _distinct(made: Iterator[MadeSocket]) -> tuple[Event, ...]:
    """Give each process once, however many sockets it made."""
    events = (maker.event for maker in made)
    return tuple({(e.pid, e.start_ns, e.exe, e.args): e for e in events}.values())


def _kernel_form(end: tuple[str, int], mapped: bool) -> str:
    address, port = end
    packed = ipaddress.ip_address(address).packed
    if mapped and len(packed) == 4:
        packed = b"\0" * 10 + b"\xff\xff" + packed
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    text = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{text}:{port:04X}"
