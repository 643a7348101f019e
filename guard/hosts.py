# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's own addresses, kept current: what makes a connection local.

A netlink socket says that an address came or went; which ones there are is then
asked anew, so a message that was lost or is not understood costs nothing.
pyroute2, which would read the messages, takes 21 MB and 0.3 s to import: most of
what the daemon may use of either.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct

import psutil

_LINK_LOCAL = ("fe8", "fe9", "fea", "feb")  # fe80::/10, RFC 4291 section 2.5.6
# Multicast groups of rtnetlink(7), linux/rtnetlink.h
_RTMGRP_LINK = 1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1  # linux/sockios.h, linux/if.h


def own_addresses() -> set[str]:
    """Give the addresses that lead to this host, whatever the interface.

    IPv6 link-local ones are left out: fe80::1 of one link is somebody else on
    another, and which link is meant is not known when a connect() is judged. So are
    those of a link that is down: they are still there, but lead to whoever has taken
    them over.
    """
    # any family will do, and guardd's unit has no other
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        return {
            address.address
            for link, addresses in psutil.net_if_addrs().items()
            if _is_up(asking, link)
            for address in addresses
            if address.family in (socket.AF_INET, socket.AF_INET6)
            and not address.address.startswith(_LINK_LOCAL)
        }


def _is_up(asking: socket.socket, link: str) -> bool:
    # Not psutil's isup: that wants a carrier too, without which an address stays.
    request = struct.pack("16sH14x", os.fsencode(link)[:15], 0)
    try:
        answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, request)
    except OSError:  # it went meanwhile
        return False
    return bool(struct.unpack_from("16sH", answer)[1] & _IFF_UP)


def is_own(address: str, own: set[str]) -> bool:
    """Tell whether an address leads to this host; own is own_addresses()."""
    ip = ipaddress.ip_address(address)
    return ip.is_loopback or ip.is_unspecified or address in own


class Bell:
    """Becomes readable when the kernel has news; which ones is not read."""

    def __init__(self, protocol: int, groups: int) -> None:
        """Begin to listen; netlink(7) has the protocols and their groups."""
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            protocol,
        )
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """Give the descriptor to wait on."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Take all messages that are there."""
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # messages were lost: news too
                    raise

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class AddressNews(Bell):
    """Becomes readable when an address or a link came or went."""

    def __init__(self) -> None:
        """Begin to listen; ask own_addresses() after this, not before."""
        super().__init__(
            socket.NETLINK_ROUTE,
            _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR,
        )
