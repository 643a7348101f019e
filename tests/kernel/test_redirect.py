# SPDX-License-Identifier: GPL-2.0-or-later
"""Redirected to the host's own mail server, and the program does not notice."""

from __future__ import annotations

import errno
import socket
from functools import partial

import pytest

from guard.abi import Counter, Flag, Outcome, Verdict
from tests.kernel.routes import disconnect, plain
from tests.kernel.world import (
    IPPROTO_MPTCP,
    MX4,
    MX6,
    SMTP,
    Child,
    Watch,
    World,
    rule,
)
from tests.lab.lab import PATIENCE

REDIRECT = rule("redirect") + '[redirect]\nto = "{}:{}"\nto6 = "[{}]:{}"\n'
Talk = tuple[bytes, tuple[str, int]]


def converse(address: str, proto: int = 0) -> Talk:
    """Connect, hear who answers, and ask the socket whom it talks to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, proto=proto) as client:
        client.settimeout(PATIENCE)
        client.connect((address, SMTP))
        greeting = client.recv(100)
        return greeting, client.getpeername()[:2]


def greet(child: Child, server: socket.socket) -> Talk:
    connection, _ = server.accept()
    with connection:
        connection.send(b"220 mail server\r\n")
        talk: Talk = child.finish().value
    return talk


@pytest.mark.parametrize("port", [SMTP, 2500])
@pytest.mark.parametrize(
    ("address", "target"),
    [(MX4, "127.0.0.1"), (MX6, "::1"), (f"::ffff:{MX4}", "127.0.0.1")],
    ids=["v4", "v6", "mapped"],
)
def test_a_redirect_is_not_seen(
    world: World, watch: Watch, address: str, target: str, port: int
) -> None:
    """Also to a port that is not guarded: where it is behind a proxy."""
    with (
        world.listen(world.mx, MX6 if address == MX6 else MX4) as mx,
        world.listen(world.host, target, port) as own,
    ):
        control = Child(partial(converse, address), world.free)
        assert greet(control, mx) == (b"220 mail server\r\n", (address, SMTP))
        assert watch.connects() == []

        watch.apply(REDIRECT.format("127.0.0.1", port, "::1", port))
        child = Child(partial(converse, address), world.guarded)
        assert greet(child, own) == (b"220 mail server\r\n", (address, SMTP))
    event = watch.one()
    assert event.verdict is Verdict.REDIRECT
    assert event.outcome is Outcome.SYN_SENT
    assert event.dst == (address.removeprefix("::ffff:"), SMTP)
    assert event.via == (target, port)
    assert event.src[0] == target and event.src[1]
    assert watch.moved(Counter.REDIRECTED) == 1
    assert watch.moved(Counter.HELD) == 0
    closed = watch.closed()
    assert closed.connection == event.connection
    assert closed.via == event.via
    assert closed.bytes_received == len(b"220 mail server\r\n")


def test_a_redirect_of_multipath_is_reported(world: World, watch: Watch) -> None:
    watch.apply(REDIRECT.format("127.0.0.1", SMTP, "::1", SMTP))
    with world.listen(world.host, "127.0.0.1") as own:
        child = Child(partial(converse, MX4, IPPROTO_MPTCP), world.guarded)
        assert greet(child, own) == (b"220 mail server\r\n", (MX4, SMTP))
    event = watch.one()
    assert (event.dst, event.via) == ((MX4, SMTP), ("127.0.0.1", SMTP))
    assert event.src[1]


def test_observe_does_not_redirect(world: World, watch: Watch) -> None:
    watch.apply(REDIRECT.format("127.0.0.1", SMTP, "::1", SMTP), mode="observe")
    with world.listen(world.mx, MX4) as mx:
        child = Child(partial(converse, MX4), world.guarded)
        assert greet(child, mx) == (b"220 mail server\r\n", (MX4, SMTP))
    event = watch.one()
    assert (event.verdict, event.via[1]) == (Verdict.REDIRECT, 0)


def test_a_family_that_cannot_be_redirected_is_denied(
    world: World, watch: Watch
) -> None:
    watch.apply(rule("redirect") + "[redirect]\nto6 = false\n")
    with world.serve(world.mx, MX6):
        assert world.control(partial(plain, MX6)).errno == 0
        assert world.act(partial(plain, MX6)).errno == errno.EPERM
    assert watch.one().verdict is Verdict.DENY


def test_another_namespace_is_denied_instead(world: World, watch: Watch) -> None:
    """Its loopback is not the host's: no mail server of ours is there."""
    watch.apply(REDIRECT.format("127.0.0.1", SMTP, "::1", SMTP))
    with (
        world.inside(world.mx),
        world.serve(world.mx, MX4),
        world.serve(world.mx, "127.0.0.1"),
        world.inside(world.mx),
    ):
        # outbound as the guard sees it: MX4 is no address of its host
        assert world.control(partial(plain, MX4)).errno == 0
        assert world.act(partial(plain, MX4)).errno == errno.EPERM
    event = watch.one()
    assert event.verdict is Verdict.DENY
    assert event.outcome is Outcome.DENIED
    assert event.flags & Flag.FOREIGN_NETNS
    assert event.via[1] == 0


def test_after_a_redirect_the_socket_is_anybodys(world: World, watch: Watch) -> None:
    """A socket that is connected again is told its new peer, not the old."""

    def act() -> list[tuple[str, int]]:
        peers = []
        with socket.socket() as client:
            for address in (MX4, "127.0.0.1"):
                client.connect((address, SMTP))
                peers.append(client.getpeername())
                disconnect(client)
        return peers

    watch.apply(REDIRECT.format("127.0.0.1", SMTP, "::1", SMTP))
    with world.serve(world.host, "127.0.0.1"):
        assert world.act(act).value == [(MX4, SMTP), ("127.0.0.1", SMTP)]
    assert [event.via[1] for event in watch.connects()] == [SMTP, 0]


def test_a_redirect_to_another_host_is_denied_instead(
    world: World, watch: Watch
) -> None:
    """Redirected is to the host's own mail server, whatever the policy names."""
    watch.apply(REDIRECT.format(MX4, SMTP, MX6, SMTP))
    with world.serve(world.mx, MX4):
        assert world.control(partial(plain, MX4)).errno == 0
        assert world.act(partial(plain, "198.51.100.9")).errno == errno.EPERM
    assert watch.one().verdict is Verdict.DENY
