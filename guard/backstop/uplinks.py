# SPDX-License-Identifier: GPL-2.0-or-later
"""The interfaces that lead to other hosts: where a packet leaves for good.

Those with a default route, and those with hardware behind them. Not the ones that
lead to containers: what comes from there is met again when it is forwarded.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_UP = 0x1  # RTF_UP, include/uapi/linux/route.h
_NET = Path("/sys/class/net")


def uplinks() -> tuple[str, ...]:
    """Name them, sorted; proc(5) has the columns of the routing tables."""
    found = _hardware()
    for line in _lines("/proc/self/net/route"):
        name, destination, _, flags, _, _, _, mask, *_ = line.split()
        if int(destination, 16) == int(mask, 16) == 0 and int(flags, 16) & _UP:
            found.add(name)
    for line in _lines("/proc/self/net/ipv6_route"):
        destination, length, *_, flags, name = line.split()
        if int(destination, 16) == int(length, 16) == 0 and int(flags, 16) & _UP:
            found.add(name)
    return tuple(sorted(found - {"lo"}))


def _hardware() -> set[str]:
    """Name those with a device; sysfs shows the namespace it was mounted in."""
    ours = {name for _, name in socket.if_nameindex()}
    if not _NET.is_dir() or set(os.listdir(_NET)) != ours:
        return set()
    return {name for name in ours if (_NET / name / "device").exists()}


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:  # no IPv6 here
        return []
    return [line for line in lines if not line.startswith("Iface")]
