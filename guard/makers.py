# SPDX-License-Identifier: GPL-2.0-or-later
"""Who made the sockets that need no connect(): raw ones, and packet sockets.

The kernel keeps a row for each that is open, and for the last that were closed
(bpf/makers.bpf.h). Packet sockets are among them where the LSM tells of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from guard import abi
from guard.abi import Counter
from guard.event import Event, unpack_event
from guard.tables import KEY0, Tables

_KEPT = 256  # CLOSED_KEPT, bpf/maps.bpf.h


@dataclass(frozen=True, slots=True)
class MadeSocket:
    """One socket, and the process that made it."""

    socket: int  # inode, as in /proc/net/raw
    family: int  # AF_INET, AF_INET6, AF_PACKET
    uid: int  # fsuid and fsgid of then: what netfilter says of its packets
    gid: int
    event: Event  # the process; time_ns: of socket(), ended_ns: of close(), or 0


@dataclass(frozen=True, slots=True)
class Kept:
    """Makers of all sockets that were open at some moment since a time."""

    makers: tuple[MadeSocket, ...] = ()
    # False: there may have been others; packet sockets only the LSM tells of
    whole: bool = False
    whole_packets: bool = False


class Makers:
    """What the kernel keeps, of sockets in the guard's network namespace."""

    def __init__(self, tables: Tables) -> None:
        """Read these maps of a guard that is attached."""
        self._tables = tables
        # Does it see all processes? The root alone has no type, cgroups(7).
        cgroup = str(tables.about().get("cgroup", ""))
        self._sees_all = bool(cgroup) and not Path(cgroup, "cgroup.type").exists()

    def since(self, time_ns: int) -> Kept:
        """Give those whose socket was not closed before (CLOCK_BOOTTIME).

        Raises KernelError or TornEvent when somebody damaged the maps.
        """
        tables = self._tables
        whole = not tables.counters()[Counter.NO_MAKER]
        home, oldest = tables.home_netns, 0
        found = []
        for _, raw in tables.map("makers").items():
            row = abi.RawMaker.from_buffer_copy(raw)
            if not row.family:  # written last: socket() has not returned yet
                continue
            ended = row.event.ended_ns
            if ended:
                oldest = min(oldest or ended, ended)
            if row.event.netns_cookie == home and (not ended or ended >= time_ns):
                event = unpack_event(raw[abi.RawMaker.event.offset :])
                found.append(
                    MadeSocket(row.socket, row.family, row.fsuid, row.fsgid, event)
                )
        closed = struct.unpack_from("=Q", tables.map("closed").get(KEY0) or bytes(8))
        whole = whole and (closed[0] <= _KEPT or oldest < time_ns)
        found.sort(key=lambda maker: maker.event.time_ns)
        by_lsm = (tables.home.parent / "link-lsm_create").exists()
        return Kept(tuple(found), whole and self._sees_all, whole and by_lsm)

    def connecting(self, src: tuple[str, int], dst: tuple[str, int]) -> Event | None:
        """Give whose connection with these ends is being made; None: nobody's."""
        event = self._tables.owner(src, dst, self._tables.home_netns)
        syn_sent = event is not None and event.outcome == abi.Outcome.SYN_SENT
        return event if syn_sent else None
