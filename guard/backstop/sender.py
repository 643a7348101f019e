# SPDX-License-Identifier: GPL-2.0-or-later
"""Which process sent a packet that netfilter recorded, as far as /proc can tell.

A TCP socket is found by the packet's ends. A raw or packet socket has none: if all
those of the user who sent it are held by one process, it is that one.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path

from guard.backstop.packet import Head
from guard.procfs import Seen, holders, look

_NET = Path("/proc/self/net")


def sender(head: Head, uid: int | None) -> tuple[Seen | None, str]:
    """Give the process, and "raw-socket" when it was not known by its connection.

    uid is that of the socket (None: it was forwarded, and nobody here sent it).
    """
    if uid is None:
        return None, ""
    if seen := _only(set(_tcp(head))):
        return seen, ""
    return _only(set(_raw(uid))), "raw-socket"


def _only(inodes: set[int]) -> Seen | None:
    """Look at the process that holds them; None: there is none, or several."""
    if not inodes:
        return None
    pids = {pid for held in holders(inodes).values() for pid in held}
    return look(pids.pop()) if len(pids) == 1 else None


def _tcp(head: Head) -> Iterator[int]:
    """Give the inodes of sockets with these ends: proc_net_tcp(5)."""
    version6 = ":" in head.src[0]
    for name, mapped in (("tcp", False), ("tcp6", True)):
        if version6 and not mapped:
            continue
        ends = [_kernel_form(end, mapped) for end in (head.src, head.dst)]
        for line in _lines(name):
            if line[1:3] == ends:
                yield int(line[9])


def _kernel_form(end: tuple[str, int], mapped: bool) -> str:
    address, port = end
    packed = ipaddress.ip_address(address).packed
    if mapped and len(packed) == 4:
        packed = b"\0" * 10 + b"\xff\xff" + packed
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    text = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{text}:{port:04X}"


def _raw(uid: int) -> Iterator[int]:
    """Give the inodes of a user's raw and packet sockets: packet(7), raw(7)."""
    for name in ("raw", "raw6"):
        yield from (int(line[9]) for line in _lines(name) if line[7] == str(uid))
    yield from (int(line[8]) for line in _lines("packet") if line[7] == str(uid))


def _lines(name: str) -> list[list[str]]:
    try:
        text = (_NET / name).read_text()
    except OSError:  # no IPv6, no packet sockets in this kernel
        return []
    return [line.split() for line in text.splitlines()[1:]]
