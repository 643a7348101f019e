# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a connection, and whose it is while it is open."""

from __future__ import annotations

import errno
import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from guard.abi import Counter, Outcome
from tests.kernel.routes import multipath, plain
from tests.kernel.world import (
    ALLOW_MX,
    HOST4,
    HOST6,
    IPPROTO_MPTCP,
    MX4,
    MX6,
    SILENT4,
    SMTP,
    Child,
    Watch,
    World,
    rule,
)
from tests.lab.lab import PATIENCE, wait_until

TCP_USER_TIMEOUT = 18  # include/uapi/linux/tcp.h
REJECT = """\
table inet test {
    chain in {
        type filter hook input priority 0
        tcp dport 25 ip saddr 192.0.2.10 """


@contextmanager
def filtered(world: World, verdict: str) -> Iterator[None]:
    """Have a packet filter on the other host."""
    with world.inside(world.mx):
        text = f"{REJECT}{verdict}\n    }}\n}}\n"
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    try:
        yield
    finally:
        with world.inside(world.mx):
            subprocess.run(["nft", "delete table inet test"], check=True)


@pytest.mark.parametrize("address", [MX4, MX6])
def test_refused(world: World, watch: Watch, address: str) -> None:
    watch.apply(ALLOW_MX)
    assert world.control(partial(plain, address)).errno == errno.ECONNREFUSED
    assert world.act(partial(plain, address)).errno == errno.ECONNREFUSED
    closed = watch.closed()
    assert closed.outcome is Outcome.REFUSED
    assert closed.error == errno.ECONNREFUSED
    assert closed.connection == watch.one().connection
    assert closed.established_ns == 0
    assert (closed.bytes_sent, closed.bytes_received) == (0, 0)


def test_refused_by_multipath(world: World, watch: Watch) -> None:
    watch.apply(ALLOW_MX)
    assert world.act(partial(multipath, MX4)).errno == errno.ECONNREFUSED
    assert watch.closed().outcome is Outcome.REFUSED


def test_timed_out(world: World, watch: Watch) -> None:
    def act() -> None:
        with socket.socket() as client:
            client.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 300)
            client.connect((MX4, SMTP))

    watch.apply(ALLOW_MX)
    with filtered(world, "drop"):
        start = time.monotonic()
        assert world.act(act).errno == errno.ETIMEDOUT
        took = time.monotonic() - start
    closed = watch.closed()
    assert closed.outcome is Outcome.TIMED_OUT
    assert closed.error == errno.ETIMEDOUT
    assert 0.2 < (closed.ended_ns - closed.time_ns) / 1e9 <= took


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        ("reject with icmp type host-unreachable", errno.EHOSTUNREACH),
        ("reject with icmp type admin-prohibited", errno.EHOSTUNREACH),
        ("reject with icmp type prot-unreachable", errno.ENOPROTOOPT),
    ],
)
def test_any_other_error_is_failed(
    world: World, watch: Watch, verdict: str, error: int
) -> None:
    watch.apply(ALLOW_MX)
    with filtered(world, verdict):
        assert world.act(partial(plain, MX4)).errno == error
    closed = watch.closed()
    assert closed.outcome is Outcome.FAILED
    assert closed.error == error


def test_given_up(world: World, watch: Watch) -> None:
    """Closed by the program before anybody answered."""

    def act() -> None:
        with socket.socket() as client:
            client.setblocking(False)
            assert client.connect_ex((SILENT4, SMTP)) == errno.EINPROGRESS

    watch.apply(rule(to=[SILENT4]))
    assert world.act(act).errno == 0
    closed = watch.closed()
    assert closed.outcome is Outcome.FAILED
    assert closed.error == 0
    assert watch.one().src[1]


def receive(connection: socket.socket, count: int) -> None:
    got = 0
    while got < count:
        data = connection.recv(1 << 16)
        assert data
        got += len(data)


def client_of(address: str, proto: int, send: int, first: bool, expect: int) -> int:
    """Send and receive so many bytes, then close first or last."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, proto=proto) as client:
        client.settimeout(PATIENCE)
        client.connect((address, SMTP))
        client.sendall(bytes(send))
        receive(client, expect)
        if not first:
            assert client.recv(1) == b""
        return int(client.getsockname()[1])


@pytest.mark.parametrize("first", [True, False], ids=["client", "server"])
@pytest.mark.parametrize("address", [MX4, MX6, "127.0.0.1"])
def test_bytes_and_time_are_exact(
    world: World, watch: Watch, address: str, first: bool
) -> None:
    """Whoever closes first, neither SYN nor FIN counts as a byte."""
    sizes = random.Random(address)
    local = address.startswith("127")
    watch.apply(ALLOW_MX)
    with world.listen(world.host if local else world.mx, address) as server:
        for number in range(8):
            up, down = (sizes.choice((0, 1, 999, 300_000)) for _ in range(2))
            if number == 0:
                up = down = 0
            elif first and not down:
                down = 1  # else the client is gone before the server looks
            before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            child = Child(
                partial(client_of, address, 0, up, first, down), world.guarded
            )
            connection, _ = server.accept()
            with connection:
                connection.settimeout(PATIENCE)
                # One after the other: if both sent first, both might wait for
                # the other to make room.
                receive(connection, up)
                connection.sendall(bytes(down))
                if first:
                    assert connection.recv(1) == b""
            port = child.finish().value
            wait_until(watch.closes, "the end")
            after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            closed = watch.closed()
            assert closed.outcome is Outcome.CLOSED
            assert (closed.bytes_sent, closed.bytes_received) == (up, down)
            assert closed.src[1] == port
            assert closed.connection == watch.one().connection
            assert closed.pid == child.pid
            assert (
                before
                < closed.time_ns
                < closed.established_ns
                < closed.ended_ns
                < after
            )
            watch.forget()


def test_a_reset_is_the_end_with_its_error(world: World, watch: Watch) -> None:
    watch.apply(ALLOW_MX)

    def act() -> None:
        with socket.create_connection((MX4, SMTP), timeout=PATIENCE) as client:
            client.sendall(b"EHLO x\r\n")
            client.recv(1)

    with world.listen(world.mx, MX4) as server:
        child = Child(act, world.guarded)
        connection, _ = server.accept()
        assert connection.recv(100) == b"EHLO x\r\n"
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        connection.close()
        assert child.finish().errno == errno.ECONNRESET
    closed = watch.closed()
    assert closed.outcome is Outcome.CLOSED
    assert closed.error == errno.ECONNRESET
    assert closed.bytes_sent == 8


@pytest.mark.parametrize("proto", [0, IPPROTO_MPTCP], ids=["tcp", "mptcp"])
@pytest.mark.parametrize(
    ("address", "source"), [(MX4, HOST4), (MX6, HOST6), ("127.0.0.1", "127.0.0.1")]
)
def test_the_owner_is_known_when_the_server_asks(
    world: World, watch: Watch, address: str, source: str, proto: int
) -> None:
    """From the moment accept(2) returns: what a policy server relies on."""
    local = address.startswith("127")
    watch.apply(ALLOW_MX)
    netns = world.host if local else world.mx
    with world.listen(netns, address) as server:
        for _ in range(20):
            child = Child(
                partial(client_of, address, proto, 1, False, 0), world.guarded
            )
            connection, peer = server.accept()
            owner = watch.guard.owner(peer[:2], (address, SMTP))
            assert owner is not None
            assert owner.pid == child.pid
            assert owner.src == (source, peer[1])
            assert owner.outcome in (Outcome.SYN_SENT, Outcome.ESTABLISHED)
            assert connection.recv(1)
            owner = watch.guard.owner(peer[:2], (address, SMTP))
            assert owner and owner.outcome is Outcome.ESTABLISHED
            assert owner.established_ns > owner.time_ns
            connection.close()
            child.finish()
            wait_until(partial(no_owner, watch, peer, address), "no owner")
    assert list(watch.guard.map("owners").keys()) == []


def no_owner(watch: Watch, peer: tuple[str, int], address: str) -> bool:
    return watch.guard.owner(peer[:2], (address, SMTP)) is None


def reset_from(port: int) -> int:
    """Connect from a port (0: any) until the server closes, and leave it free."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.settimeout(PATIENCE)
        client.bind(("127.0.0.1", port))
        client.connect(("127.0.0.1", SMTP))
        client.recv(1)
        return int(client.getsockname()[1])


def test_who_takes_a_port_again_is_not_taken_for_who_had_it(
    world: World, watch: Watch
) -> None:
    """A policy server is asked about a connection that was there when it was asked."""
    watch.apply(ALLOW_MX)
    server = "127.0.0.1", SMTP
    with world.listen(world.host, server[0]) as listener:
        first = Child(partial(reset_from, 0), world.guarded)
        connection, client = listener.accept()
        asked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        connection.close()
        assert first.finish().value == client[1]
        assert closed_pid(watch, client, server, asked_ns) == first.pid
        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

        second = Child(partial(reset_from, client[1]), world.guarded)
        connection, again = listener.accept()
        assert again == client
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        owner = watch.guard.sender(client, server, now_ns)
        assert owner and owner.pid == second.pid
        assert watch.guard.sender(client, server, before_ns) is None
        connection.close()
        second.finish()
        assert closed_pid(watch, client, server, now_ns) == second.pid
        assert watch.guard.sender(client, server, before_ns) is None


def closed_pid(
    watch: Watch, client: tuple[str, int], server: tuple[str, int], at_ns: int
) -> int:
    """Give who made a connection, asked for when it has ended."""
    wait_until(partial(no_owner, watch, client, server[0]), "no owner")
    owner = watch.guard.sender(client, server, at_ns)
    assert owner
    return owner.pid


def test_a_port_that_is_unguarded_meanwhile_is_forgotten(
    world: World, watch: Watch
) -> None:
    """A reload that takes a port out must not leave its connections behind."""
    watch.apply(ALLOW_MX)
    with world.listen(world.mx, MX4) as server:
        child = Child(partial(client_of, MX4, 0, 1, False, 0), world.guarded)
        connection, _ = server.accept()
        assert connection.recv(1)
        watch.apply("ports = [587]\n")
        connection.close()
        child.finish()
    assert watch.closed().outcome is Outcome.CLOSED
    assert list(watch.guard.map("owners").keys()) == []
    assert watch.moved(Counter.HELD) == 0
