# SPDX-License-Identifier: GPL-2.0-or-later
"""From the first bytes of a packet to who sends to whom.

Whoever may send raw packets chose these bytes, so nothing in them is taken for
granted: what is not the head of a TCP packet gives None.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

_TCP = 6
_FRAGMENT = 44
# Extension headers with a length of their own: RFC 8200 section 4, RFC 4302 not
_EXTENSIONS = (0, 43, 60)
_MOST_EXTENSIONS = 8
# EtherTypes: linux/if_ether.h
_IP, _TAGS = (b"\x08\x00", b"\x86\xdd"), (b"\x81\x00", b"\x88\xa8")


@dataclass(frozen=True, slots=True)
class Head:
    """The ends of a TCP packet, ports in host byte order."""

    src: tuple[str, int]
    dst: tuple[str, int]


def unpack_head(raw: bytes, framed: bool = False) -> Head | None:
    """Read addresses and ports; None: these bytes are no head of a TCP packet.

    framed: an Ethernet header may stand first, as at an interface's egress. Its
    type says so, never a look at what comes out: who makes frames chooses hardware
    addresses that read like the head of another packet.
    """
    start = _frame(raw) if framed else 0
    head = _ipv4(raw[start:]) or _ipv6(raw[start:])
    return head or _ipv4(raw) or _ipv6(raw)


def _frame(raw: bytes) -> int:
    """Give the length of an Ethernet header; 0: an interface without one."""
    if raw[12:14] in _IP:
        return 14
    return 18 if raw[12:14] in _TAGS and raw[16:18] in _IP else 0


def _ipv4(raw: bytes) -> Head | None:
    """RFC 791 section 3.1."""
    if len(raw) < 20 or raw[0] >> 4 != 4 or raw[9] != _TCP:
        return None
    length = (raw[0] & 15) * 4
    if length < 20 or int.from_bytes(raw[6:8], "big") & 0x1FFF:
        return None
    src, dst = (str(ipaddress.IPv4Address(raw[at : at + 4])) for at in (12, 16))
    return _ports(src, dst, raw[length:])


def _ipv6(raw: bytes) -> Head | None:
    """RFC 8200 section 3."""
    if len(raw) < 40 or raw[0] >> 4 != 6:
        return None
    kind, rest = raw[6], raw[40:]
    for _ in range(_MOST_EXTENSIONS):
        if kind == _TCP:
            src, dst = (_plain(raw[at : at + 16]) for at in (8, 24))
            return _ports(src, dst, rest)
        if len(rest) < 8:
            return None
        if kind == _FRAGMENT:
            if int.from_bytes(rest[2:4], "big") & 0xFFF8:
                return None
            kind, rest = rest[0], rest[8:]
        elif kind in _EXTENSIONS:
            kind, rest = rest[0], rest[8 * (rest[1] + 1) :]
        else:
            return None
    return None


def _plain(packed: bytes) -> str:
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def _ports(src: str, dst: str, raw: bytes) -> Head | None:
    if len(raw) < 4:
        return None
    source, target = struct.unpack_from("!HH", raw)
    return Head((src, source), (dst, target))
