# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rules of the second lock recorded: packets out of an NFLOG group.

Through libnetfilter_log, whose functions are declared in
<libnetfilter_log/libnetfilter_log.h>. The kernel numbers what it records, and counts
what did not fit into the socket's buffer: nothing is lost without its number.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import BackstopError

# include/uapi/linux/netfilter/nfnetlink_log.h
_COPY_PACKET = 2  # NFULNL_COPY_PACKET
_CFG_F_SEQ = 1  # NFULNL_CFG_F_SEQ
_BYTES = 160  # of each packet: the headers of a frame, IPv6 and TCP, and options
_BUFFER = 4 << 20  # of the socket, in bytes
_AT_ONCE = 1  # packets that make a batch: who sent one may not live long
_LARGEST = 1 << 17  # a batch: NFULNL_NLBUFSIZ_DEFAULT is a page
_PROTOCOL = "12"  # NETLINK_NETFILTER, include/uapi/linux/netlink.h
_MODULUS = 1 << 32  # of the numbers


@dataclass(frozen=True, slots=True)
class Logged:
    """A packet that a rule recorded."""

    chain: str  # output, local, forward, egress
    verdict: str  # deny, would-deny, allow
    rule: int | None  # number of the policy's rule; None: none matched
    uid: int | None  # that made the socket; None: no socket of this host
    gid: int | None
    raw: bytes  # its first bytes


_CALLBACK = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p)
_POINTERS = ("nflog_open", "nflog_bind_group", "nflog_get_prefix")


def _library() -> Any:
    try:
        library = c.CDLL("libnetfilter_log.so.1", use_errno=True)
    except OSError:
        raise BackstopError(
            "libnetfilter_log.so.1 cannot be opened: nothing of it is journalled",
            hint="install it: apt install libnetfilter-log1",
        ) from None
    for name in _POINTERS:
        getattr(library, name).restype = c.c_void_p
    return library


class PacketLog:
    """The reading end of one NFLOG group; there can be one in a namespace."""

    def __init__(self, group: int, on_packet: Callable[[Logged], None]) -> None:
        """Begin to listen; raises BackstopError where that cannot be."""
        self._on_packet = on_packet
        self._lib = _library()
        self.group = group
        self._gaps = 0  # in the numbers of what was read
        self._overrun = False  # the socket was full at least once
        self._next: int | None = None
        self._handle = c.c_void_p(self._lib.nflog_open())
        if not self._handle:
            raise self._error("cannot open it")
        bound = c.c_void_p(self._lib.nflog_bind_group(self._handle, c.c_uint16(group)))
        if not bound:
            error = self._error("cannot listen")
            self._lib.nflog_close(self._handle)
            raise error
        self._lib.nflog_set_mode(bound, c.c_uint8(_COPY_PACKET), c.c_uint(_BYTES))
        self._lib.nflog_set_flags(bound, c.c_uint16(_CFG_F_SEQ))
        self._lib.nflog_set_qthresh(bound, c.c_uint32(_AT_ONCE))
        self._callback = _CALLBACK(self._take)  # for as long as it may be called
        self._lib.nflog_callback_register(bound, self._callback, None)
        self._bound = bound
        self._fd = int(self._lib.nflog_fd(self._handle))
        self._socket = socket.socket(fileno=os.dup(self._fd))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE

    def _error(self, what: str) -> BackstopError:
        number = c.get_errno()
        hint = "run it with CAP_NET_ADMIN"
        if number in (errno.EBUSY, errno.EEXIST, errno.EPERM):
            hint = "is it another program's? choose group = N in [backstop]"
        return BackstopError(
            f"NFLOG group {self.group}: {what}: {os.strerror(number)}", hint=hint
        )

    def fileno(self) -> int:
        """Give the descriptor to wait on."""
        return self._fd

    def read(self, batches: int = 256) -> bool:
        """Hand over what is there, at most so many batches of packets.

        True: nothing is left.
        """
        for _ in range(batches):
            try:
                data = self._socket.recv(_LARGEST)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost, see lost
                    raise
                self._overrun = True
                continue
            self._lib.nflog_handle_packet(self._handle, data, len(data))
        return False

    @property
    def lost(self) -> int:
        """Count the packets that were recorded and not read.

        Of those after the last one that was read only the socket knows.
        """
        return max(self._gaps, self._drops() if self._overrun else 0)

    def _drops(self) -> int:
        """Ask the kernel, as `ss -f netlink` does; a message holds one packet."""
        here = str(self._socket.getsockname()[0])
        for line in Path("/proc/thread-self/net/netlink").read_text().splitlines():
            _, protocol, port, *_, drops, _ = line.split()
            if (protocol, port) == (_PROTOCOL, here):
                return int(drops)
        return 0

    def _take(self, group: Any, message: Any, packet: Any, data: Any) -> int:
        packet = c.c_void_p(packet)
        self._count(self._number("nflog_get_seq", packet))
        raw = c.c_void_p()
        length = self._lib.nflog_get_payload(packet, c.byref(raw))
        prefix = self._lib.nflog_get_prefix(packet)
        words = c.string_at(prefix).decode("ascii", "replace").split() if prefix else []
        if not 3 <= len(words) <= 4 or words[0] != "smtp-guard":
            return 0  # another program's rule with our group
        rule = int(words[3]) if words[3:] and words[3].isdigit() else None
        self._on_packet(
            Logged(
                words[1],
                words[2],
                rule,
                self._number("nflog_get_uid", packet),
                self._number("nflog_get_gid", packet),
                c.string_at(raw, length) if raw and length > 0 else b"",
            )
        )
        return 0

    def _number(self, name: str, packet: c.c_void_p) -> int | None:
        value = c.c_uint32()
        if getattr(self._lib, name)(packet, c.byref(value)):
            return None
        return value.value

    def _count(self, number: int | None) -> None:
        if number is None:
            return
        if self._next is not None:
            self._gaps += (number - self._next) % _MODULUS
        self._next = (number + 1) % _MODULUS

    def close(self) -> None:
        """Stop listening."""
        self._lib.nflog_unbind_group(self._bound)
        self._socket.close()
        self._lib.nflog_close(self._handle)
