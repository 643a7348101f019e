# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way a process can open a TCP connection; each raises OSError or returns."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.kernel.world import (
    IPPROTO_MPTCP,
    MSG_FASTOPEN,
    MX4,
    MX6,
    SMTP,
    TCP_FASTOPEN_CONNECT,
)

Route = Callable[[], object]
_libc = ctypes.CDLL(None, use_errno=True)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def plain(address: str, port: int = SMTP) -> None:
    """connect(2), as everybody does."""
    with socket.socket(_family(address)) as client:
        client.connect((address, port))


def non_blocking(address: str, port: int = SMTP) -> None:
    """connect(2) on a non-blocking socket, and poll(2) for its end."""
    with socket.socket(_family(address)) as client:
        client.setblocking(False)
        error = client.connect_ex((address, port))
        if error == errno.EINPROGRESS:
            poll = select.poll()
            poll.register(client, select.POLLOUT)
            assert poll.poll(10_000)
            error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connect")


def fast_open(address: str, port: int = SMTP) -> None:
    """sendto(2) with MSG_FASTOPEN: no connect() at all."""
    with socket.socket(_family(address)) as client:
        client.sendto(b"EHLO x\r\n", MSG_FASTOPEN, (address, port))


def deferred_fast_open(address: str, port: int = SMTP) -> None:
    """TCP_FASTOPEN_CONNECT: with a cookie, the SYN waits for the first write."""
    with socket.socket(_family(address)) as client:
        client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        client.connect((address, port))
        client.send(b"EHLO x\r\n")


def multipath(address: str, port: int = SMTP) -> None:
    """Multipath TCP: the socket of the program is not the one on the wire."""
    with socket.socket(_family(address), proto=IPPROTO_MPTCP) as client:
        client.connect((address, port))


def multipath_fast_open(address: str, port: int = SMTP) -> None:
    """sendto(2) with MSG_FASTOPEN on a multipath socket."""
    with socket.socket(_family(address), proto=IPPROTO_MPTCP) as client:
        client.sendto(b"EHLO x\r\n", MSG_FASTOPEN, (address, port))


def after_disconnect(address: str, port: int = SMTP) -> None:
    """A socket that was connected elsewhere, and disconnected by AF_UNSPEC."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as client:
        client.connect(other.getsockname())
        disconnect(client)
        client.connect((address, port))


def disconnect(client: socket.socket) -> None:
    """connect(2) to AF_UNSPEC, which Python's own connect() cannot say."""
    if _libc.connect(client.fileno(), bytes(16), 16):
        raise OSError(ctypes.get_errno(), "disconnect")


def dup_over(address: str, port: int = SMTP) -> None:
    """The descriptor was made by a parent and is used by its child."""
    with socket.socket(_family(address)) as client:
        pid = os.fork()
        if not pid:
            os._exit(client.connect_ex((address, port)))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            raise OSError(status, "connect")


def uring(program: Path, how: str, address: str, port: int = SMTP) -> None:
    """io_uring's connect, see uring.c."""
    status = subprocess.run([program, how, address, str(port)]).returncode
    if status == 255:
        raise RuntimeError("io_uring does not work here")
    if status:
        raise OSError(status, "uring")


def all_routes(uring_program: Path) -> dict[str, Route]:
    """Give every way to reach MX4 or MX6 by name."""
    return {
        "v4": partial(plain, MX4),
        "v6": partial(plain, MX6),
        "mapped": partial(plain, f"::ffff:{MX4}"),
        "non-blocking v4": partial(non_blocking, MX4),
        "non-blocking v6": partial(non_blocking, MX6),
        "fast open v4": partial(fast_open, MX4),
        "fast open v6": partial(fast_open, MX6),
        "fast open mapped": partial(fast_open, f"::ffff:{MX4}"),
        "deferred fast open v4": partial(deferred_fast_open, MX4),
        "deferred fast open v6": partial(deferred_fast_open, MX6),
        "multipath v4": partial(multipath, MX4),
        "multipath v6": partial(multipath, MX6),
        "multipath fast open": partial(multipath_fast_open, MX4),
        "after disconnect": partial(after_disconnect, MX4),
        "inherited descriptor": partial(dup_over, MX4),
        "io_uring inline": partial(uring, uring_program, "inline", MX4),
        "io_uring worker": partial(uring, uring_program, "worker", MX4),
        "io_uring thread": partial(uring, uring_program, "thread", MX6),
    }


ROUTES = tuple(all_routes(Path()))
