# SPDX-License-Identifier: GPL-2.0-or-later
"""Multipath TCP that is spoken by both ends, and further paths of the kernel's.

test_routes.py has the same program against a server that speaks TCP alone.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from guard.abi import Counter, Flag, Outcome, Verdict
from tests.kernel.world import (
    HOST4,
    IPPROTO_MPTCP,
    MX4,
    SMTP,
    Child,
    Watch,
    World,
    rule,
)
from tests.lab.lab import PATIENCE, wait_until

SOL_MPTCP, MPTCP_INFO = 284, 1  # linux/socket.h, uapi/linux/mptcp.h
SECOND4 = "192.0.2.11"  # another address of the host's


def converse(linger: int) -> tuple[int, int]:
    """Send, receive and wait for the end; gives source port and extra paths."""
    with socket.socket(proto=IPPROTO_MPTCP) as client:
        client.settimeout(PATIENCE)
        client.connect((MX4, SMTP))
        client.sendall(b"EHLO x\r\n")
        assert len(client.recv(100)) == 4
        if linger:
            wait_until(lambda: paths(client) == linger, "further paths", 5)
        port = client.getsockname()[1]
        extra = paths(client)
        assert client.recv(1) == b""
        return port, extra


def paths(client: socket.socket) -> int:
    """Give how many further paths there are; raises OSError where it is TCP."""
    raw = client.getsockopt(SOL_MPTCP, MPTCP_INFO, 64)
    return int(struct.unpack_from("B", raw)[0])  # mptcpi_subflows


def take(server: socket.socket, child: Child, until: int, watch: Watch) -> Any:
    connection, _ = server.accept()
    with connection:
        assert connection.recv(100) == b"EHLO x\r\n"
        connection.sendall(b"250\n")
        if until:
            wait_until(lambda: len(watch.connects()) == until, "all paths judged")
    return child.finish().value


def test_one_path(world: World, watch: Watch) -> None:
    watch.apply(rule(to=MX4))
    with world.listen(world.mx, MX4, proto=IPPROTO_MPTCP) as server:
        child = Child(partial(converse, 0), world.guarded)
        port, extra = take(server, child, 0, watch)
    assert extra == 0
    assert watch.one().src == (HOST4, port)
    closed = watch.closed()
    assert closed.connection == watch.one().connection
    assert closed.outcome is Outcome.CLOSED
    assert (closed.bytes_sent, closed.bytes_received) == (8, 4)
    assert watch.moved(Counter.HELD) == 0
    assert list(watch.guard.map("owners").keys()) == []


@pytest.fixture
def two_paths(world: World) -> Iterator[None]:
    """Have the kernel open a second path to every multipath peer, by itself."""
    batch = f"addr add {SECOND4}/24 dev host0\nmptcp limits set subflow 2\n"
    add = f"mptcp endpoint add {SECOND4} dev host0 subflow\n"
    with world.inside(world.mx):
        ip("mptcp limits set subflow 2\n")
    ip(batch + add)
    yield
    ip(f"mptcp endpoint flush\naddr del {SECOND4}/24 dev host0\n")


def ip(batch: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)


def test_a_further_path_is_judged_by_itself(
    world: World, watch: Watch, two_paths: None
) -> None:
    """The kernel connects it, so nobody's rule fits; the first is told as ever."""
    watch.apply(rule(to=MX4))
    with world.listen(world.mx, MX4, proto=IPPROTO_MPTCP) as server:
        child = Child(partial(converse, 1), world.guarded)
        port, extra = take(server, child, 2, watch)
    assert extra == 1
    first, second = watch.connects()
    assert (first.src, first.pid) == ((HOST4, port), child.pid)
    assert second.src[0] == SECOND4
    assert second.flags & Flag.KTHREAD
    wait_until(lambda: len(watch.closes()) == 2, "both ends", 20)
    assert {e.connection for e in watch.closes()} == {
        first.connection,
        second.connection,
    }
    assert watch.moved(Counter.HELD) == 0
    assert list(watch.guard.map("owners").keys()) == []


def test_a_further_path_of_a_users_is_denied(
    world: World, watch: Watch, two_paths: None
) -> None:
    """The kernel is not that user; mail goes on by the first path."""

    def act() -> tuple[int, int]:
        os.setresuid(33, 33, 33)
        return converse(0)

    watch.apply(rule(user=33))
    with world.listen(world.mx, MX4, proto=IPPROTO_MPTCP) as server:
        child = Child(act, world.guarded)
        port, extra = take(server, child, 2, watch)
    assert extra == 0
    first, second = watch.connects()
    assert (first.verdict, first.src) == (Verdict.ALLOW, (HOST4, port))
    assert second.verdict is Verdict.DENY
    assert watch.closed().connection == first.connection


def test_a_further_path_does_not_undo_a_redirect(
    world: World, watch: Watch, two_paths: None
) -> None:
    """The program is told of the peer it asked for, however many paths there are."""

    def act() -> tuple[tuple[str, int], tuple[str, int]]:
        os.setresuid(33, 33, 33)
        with socket.socket(proto=IPPROTO_MPTCP) as client:
            client.settimeout(PATIENCE)
            client.connect((MX4, SMTP))
            client.sendall(b"EHLO x\r\n")
            first = client.getpeername()
            assert client.recv(100) == b"250\n"
            client.recv(1)
            return first, client.getpeername()

    watch.apply(rule("redirect", user=33) + f'[redirect]\nto = "{HOST4}:{SMTP}"\n')
    with world.listen(world.host, HOST4, proto=IPPROTO_MPTCP) as server:
        child = Child(act, world.guarded)
        peers = take(server, child, 2, watch)
    assert peers == ((MX4, SMTP), (MX4, SMTP))
    first, second = watch.connects()
    assert (first.via, second.via[1]) == ((HOST4, SMTP), 0)
