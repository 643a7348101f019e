# SPDX-License-Identifier: GPL-2.0-or-later
"""connect(): who was judged carries the mark and passes, who was not is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Callable
from statistics import median

import pytest

from guard.finding import Finding
from tests.backstop.ground import MARK, NOBODY, Ground, host_of, nft
from tests.kernel.world import (
    IPPROTO_MPTCP,
    MSG_FASTOPEN,
    MX4,
    SMTP,
    TCP_FASTOPEN_CONNECT,
    World,
)

SO_MARK = 36  # include/uapi/asm-generic/socket.h
THEIRS = 0x0000_5A01  # a mark of policy routing or a VPN

# At the MX: of the SYNs the first is lost, so that it is sent again.
LOSES_ONE = """
table inet loses {
  chain input { type filter hook input priority 0;
    tcp flags & (syn | ack) == syn limit rate over 1/day burst 1 packets accept
    tcp flags & (syn | ack) == syn drop
  }
}
"""


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def mark_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, SO_MARK)


def plain(to: str) -> int:
    with socket.socket(family_of(to)) as sock:
        sock.settimeout(5)
        sock.connect((to, SMTP))
        return mark_of(sock)


def mapped(to: str) -> int:
    return plain(f"::ffff:{to}") if ":" not in to else plain(to)


def mptcp(to: str) -> int:
    with socket.socket(family_of(to), proto=IPPROTO_MPTCP) as sock:
        sock.settimeout(5)
        sock.connect((to, SMTP))
        return mark_of(sock)


def fast_open(to: str) -> int:
    with socket.socket(family_of(to)) as sock:
        sock.sendto(b"EHLO host\r\n", MSG_FASTOPEN, (to, SMTP))
        return after_an_answer(sock)


def fast_open_connect(to: str) -> int:
    with socket.socket(family_of(to)) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.connect((to, SMTP))
        sock.send(b"EHLO host\r\n")
        return after_an_answer(sock)


def non_blocking(to: str) -> int:
    with socket.socket(family_of(to)) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect((to, SMTP))
        return after_an_answer(sock)


def after_an_answer(sock: socket.socket) -> int:
    """Wait until it is connected: a SYN that carries data is not waited for."""
    with selectors.DefaultSelector() as ready:
        ready.register(sock, selectors.EVENT_WRITE)
        assert ready.select(5), "neither connected nor refused"
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))
    sock.getpeername()
    return mark_of(sock)


WAYS = [plain, mapped, mptcp, fast_open, fast_open_connect, non_blocking]
by_each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@by_each_way
def test_an_allowed_connect_passes_and_its_socket_carries_the_mark(
    standing: Ground, mx: str, way: Callable[[str], int]
) -> None:
    with standing.found() as found:
        done = standing.guarded(lambda: way(mx))
    assert done.errno == 0, done
    assert not found
    # the one that MPTCP's socket stands for carries it, which cannot be asked
    assert done.value & MARK or way is mptcp


def test_a_socket_keeps_the_marks_it_had(standing: Ground, mx: str) -> None:
    def marked() -> int:
        with socket.socket(family_of(mx)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, THEIRS)
            sock.connect((mx, SMTP))
            return mark_of(sock)

    done = standing.guarded(marked)
    assert done.errno == 0 and done.value == THEIRS | MARK


def test_what_the_policy_does_not_let_pass_gets_no_mark(standing: Ground) -> None:
    def denied() -> tuple[int, int]:
        with socket.socket() as sock:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            return sock.connect_ex((MX4, SMTP)), mark_of(sock)

    with standing.found() as found:
        done = standing.guarded(denied)
    assert done.value == (errno.EPERM, 0)
    assert not found  # the first lock's finding, not also the second's


@by_each_way
def test_one_that_no_hook_saw_is_refused_and_a_finding(
    standing: Ground, bare: World, mx: str, way: Callable[[str], int]
) -> None:
    with bare.inside(bare.host):
        assert bare.control(lambda: way(mx)).errno == 0
    with standing.found() as found, standing.wire() as wire:
        done = standing.free(lambda: way(mx))
        came = [head for head in wire.heads() if head.dst[1] == SMTP]
    assert done.errno == errno.ECONNREFUSED, done
    assert not came
    check(found[0], standing, mx)
    # a SYN with data that netfilter drops is followed by one without, at once
    # (tcp_send_syn_data() in net/ipv4/tcp_output.c): two packets of a connection
    assert len(found) == 1 or way in (fast_open, fast_open_connect)
    assert len(found) <= 2 and {(one.src, one.dst) for one in found} == {
        (found[0].src, (mx, SMTP))
    }


def check(one: Finding, ground: Ground, mx: str) -> None:
    assert one.lock == f"{ground.kind}-output"
    assert one.src and one.src[0] == host_of(mx) and one.src[1]
    assert (one.verdict, one.mode, one.outcome) == ("deny", "enforce", "denied")
    assert (one.direction, one.uid, one.user) == ("outbound", 0, "root")
    assert "from-proc" in one.incomplete


def test_the_finding_names_who_made_the_socket(standing: Ground, mx: str) -> None:
    def refused() -> int:
        with socket.socket(family_of(mx)) as sock:
            return sock.connect_ex((mx, SMTP))

    def as_nobody() -> int:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return refused()

    with standing.found() as found:
        assert standing.free(as_nobody).value == errno.ECONNREFUSED
    assert [(one.uid, one.gid, one.dst) for one in found] == [
        (NOBODY, NOBODY, (mx, SMTP))
    ]


def test_the_refusal_is_as_quick_as_that_of_a_closed_port(
    standing: Ground, mx: str
) -> None:
    """A SYN that is sent again shows as a second; REJECT by ICMP was 1.01 s."""

    def both() -> tuple[list[float], list[float]]:
        def seconds(port: int) -> float:
            with socket.socket(family_of(mx)) as sock:
                began = time.perf_counter()
                assert sock.connect_ex((mx, port)) == errno.ECONNREFUSED
                return time.perf_counter() - began

        pairs = [(seconds(SMTP), seconds(2626)) for _ in range(50)]
        return [one for one, _ in pairs], [other for _, other in pairs]

    locked, closed = standing.free(both).value
    assert median(locked) < 20 * median(closed)
    assert max(locked) < 0.9  # none was sent again: TCP_TIMEOUT_INIT is 1 s


@pytest.mark.parametrize("way", [plain, mptcp], ids=["plain", "mptcp"])
def test_a_first_packet_that_is_sent_again_passes_too(
    standing: Ground, mx: str, way: Callable[[str], int]
) -> None:
    with standing.world.inside(standing.world.mx):
        nft("-f", "-", text=LOSES_ONE)
    try:
        with standing.found() as found, standing.wire() as wire:
            assert standing.guarded(lambda: way(mx)).errno == 0
            assert sum(head.dst[1] == SMTP for head in wire.heads()) > 2
        assert not found
    finally:
        with standing.world.inside(standing.world.mx):
            nft("delete", "table", "inet", "loses")
