# SPDX-License-Identifier: GPL-2.0-or-later
"""First packets made by hand, and the sockets that send them."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from tests.backstop.ground import host_of
from tests.kernel.world import SMTP, World

# include/uapi/linux/if_ether.h, if_packet.h, in.h
ETH_P_IP, ETH_P_IPV6, ETH_P_ARP, ETH_P_8021Q = 0x0800, 0x86DD, 0x0806, 0x8100
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
IPPROTO_RAW, IPPROTO_FRAGMENT, TCP = 255, 44, 6
SYN, PSH, ACK, URG, ECE, CWR = 0x02, 0x08, 0x10, 0x20, 0x40, 0x80
MORE = 0x2000  # fragments, of IPv4


def _sum(data: bytes) -> int:
    """Make the Internet checksum, RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Syn:
    """A SYN from the host to the MX, its layers apart."""

    to: str
    sport: int
    dport: int = SMTP
    flags: int = SYN

    @property
    def version6(self) -> bool:
        """Tell whether it is of IPv6."""
        return ":" in self.to

    @property
    def ethertype(self) -> int:
        """Give what an Ethernet header calls it."""
        return ETH_P_IPV6 if self.version6 else ETH_P_IP

    def tcp(self) -> bytes:
        """Make the TCP header, RFC 9293 section 3.1."""
        head = struct.pack(
            "!HHIIBBHHH",
            *(self.sport, self.dport, 1000, 0, 5 << 4, self.flags, 65535, 0, 0),
        )
        ends = b"".join(map(_packed, (host_of(self.to), self.to)))
        pseudo = ends + struct.pack("!HH", TCP, len(head))
        return head[:16] + struct.pack("!H", _sum(pseudo + head)) + head[18:]

    def ip(self, payload: bytes, fragment: int = 0) -> bytes:
        """Put an IP header before it; fragment: flags and offset of IPv4."""
        ends = b"".join(map(_packed, (host_of(self.to), self.to)))
        if self.version6:
            kind = IPPROTO_FRAGMENT if fragment else TCP
            return (
                struct.pack("!IHBB", 6 << 28, len(payload), kind, 64) + ends + payload
            )
        size = 20 + len(payload)
        head = struct.pack("!BBHHHBBH", 0x45, 0, size, self.sport, fragment, 64, TCP, 0)
        return head[:10] + struct.pack("!H", _sum(head + ends)) + ends + payload

    def whole(self) -> bytes:
        """Make the packet."""
        return self.ip(self.tcp())

    def with_options(self) -> bytes:
        """Make it with what may stand between the IP and the TCP header."""
        tcp = self.tcp()
        if self.version6:  # padding as destination options, RFC 8200 section 4.6
            packet = self.ip(struct.pack("!BBBBI", TCP, 0, 1, 4, 0) + tcp)
            return packet[:6] + bytes([60]) + packet[7:]
        packet = self.ip(bytes([1, 1, 1, 0]) + tcp)  # no operation, end: RFC 791
        head = bytes([0x46]) + packet[1:10] + bytes(2) + packet[12:24]
        return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + tcp

    def pieces(self) -> list[bytes]:
        """Cut it after the ports and the number: the flags come in the second."""
        tcp = self.tcp()
        if not self.version6:
            return [self.ip(tcp[:8], MORE), self.ip(tcp[8:], 1)]
        return [
            self.ip(struct.pack("!BBHI", TCP, 0, bits, self.sport) + part, 1)
            for bits, part in ((1, tcp[:8]), (8, tcp[8:]))
        ]

    def with_fragment_header(self) -> list[bytes]:
        """Make it whole but for a fragment header before it, RFC 6946 (IPv6)."""
        assert self.version6
        return [self.ip(struct.pack("!BBHI", TCP, 0, 0, self.sport) + self.tcp(), 1)]


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def send_raw(to: str, packets: list[bytes]) -> None:
    """Send IP packets by a socket of IPPROTO_RAW."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, IPPROTO_RAW) as sock:
        for packet in packets:
            sock.sendto(packet, (to, 0))


@dataclass(frozen=True)
class Frames:
    """Sends IP packets by a packet socket at the host's interface."""

    here: bytes  # hardware addresses
    there: bytes

    @classmethod
    def of(cls, world: World) -> Frames:
        """Look up the ends of the veth pair."""
        with (
            world.inside(world.host),
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock,
        ):
            sock.bind(("host0", 0))
            here = sock.getsockname()[4]
        with (
            world.inside(world.mx),
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock,
        ):
            sock.bind(("mx0", 0))
            return cls(here, sock.getsockname()[4])

    def raw(
        self,
        packets: list[bytes],
        ethertype: int,
        *,
        called: int | None = None,
        bypass: bool = False,
        tag: bytes = b"",
    ) -> None:
        """Send frames with a header of their own, SOCK_RAW.

        called: sll_protocol, when it is another; tag: stands before the type.
        """
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            if bypass:
                sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
            for packet in packets:
                head = self.there + self.here + tag + struct.pack("!H", ethertype)
                place = ("host0", ethertype if called is None else called)
                sock.sendto(head + packet, place)

    def cooked(self, packets: list[bytes], ethertype: int) -> None:
        """Have the kernel make the frame's header, SOCK_DGRAM."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
            for packet in packets:
                sock.sendto(packet, ("host0", ethertype, 0, 1, self.there))
