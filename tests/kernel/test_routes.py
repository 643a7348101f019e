# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way to connect is judged, once: denied without a rule, let pass with one.

Each denial has its control: the same act in a cgroup beside the guarded one.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from guard.abi import Counter, Direction, Flag, Outcome, Verdict
from tests.kernel import routes
from tests.kernel.routes import ROUTES, plain
from tests.kernel.world import (
    ALLOW_MX,
    HOST4,
    IPPROTO_MPTCP,
    MX4,
    MX6,
    NOWHERE4,
    SMTP,
    TCP_FASTOPEN_CONNECT,
    Done,
    Watch,
    World,
    compile_c,
    rule,
)
from tests.lab.lab import wait_until


@pytest.fixture(scope="module", autouse=True)
def servers(world: World) -> Iterator[None]:
    with world.serve(world.mx, MX4, MX6):
        yield


@pytest.fixture(scope="module")
def every(programs: Path) -> dict[str, routes.Route]:
    return routes.all_routes(compile_c("uring.c", programs / "uring", "-luring"))


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_is_denied_unless_a_rule_allows_it(
    world: World, watch: Watch, every: dict[str, routes.Route], name: str
) -> None:
    route = every[name]
    address = MX6 if "v6" in name or "thread" in name else MX4
    for _ in range(2):  # the first leaves a fast open cookie for the second
        assert world.control(route).errno == 0
    assert watch.connects() == []

    watch.apply("")
    done = world.act(route)
    assert done.errno == errno.EPERM
    denied = watch.one()
    assert denied.dst == (address, SMTP)
    assert denied.verdict is Verdict.DENY
    assert denied.outcome is Outcome.DENIED
    assert denied.direction is Direction.OUTBOUND
    assert denied.src[1] == 0
    assert watch.moved(Counter.DENIED) == 1

    watch.forget()
    watch.apply(ALLOW_MX)
    assert world.act(route).errno == 0
    allowed = watch.one()
    assert allowed.dst == (address, SMTP)
    assert allowed.verdict is Verdict.ALLOW
    assert allowed.outcome is Outcome.SYN_SENT
    assert allowed.src[0] != "::" and allowed.src[1] >= 1024
    assert watch.closed().connection == allowed.connection
    assert watch.closed().outcome is Outcome.CLOSED
    assert watch.guard.owner(allowed.src, allowed.dst) is None


def test_observe_lets_pass_and_says_what_would_be(world: World, watch: Watch) -> None:
    watch.apply("", mode="observe")
    assert world.act(partial(plain, MX4)).errno == 0
    event = watch.one()
    assert event.verdict is Verdict.DENY
    assert event.outcome is Outcome.SYN_SENT
    assert event.src[1]
    assert watch.moved(Counter.WOULD_DENY) == 1
    assert watch.moved(Counter.DENIED) == 0


@pytest.mark.parametrize("port", [25, 465, 587])
def test_every_guarded_port(world: World, watch: Watch, port: int) -> None:
    watch.apply("")
    with contextlib.ExitStack() as stack:
        if port != SMTP:
            stack.enter_context(world.serve(world.mx, MX6, port=port))
        assert world.control(partial(plain, MX6, port)).errno == 0
        assert world.act(partial(plain, MX6, port)).errno == errno.EPERM
    assert watch.one().dst == (MX6, port)


def test_no_other_port_is_judged(world: World, watch: Watch) -> None:
    watch.apply("")
    with world.listen(world.mx, MX4, 2525):
        assert world.act(partial(plain, MX4, 2525)).errno == 0
    assert watch.connects() == []
    assert watch.moved(Counter.JUDGED) == 0


@pytest.mark.parametrize("address", ["::", "0.0.0.0", "127.0.0.1", "::1"])
def test_the_any_address_is_this_host(world: World, watch: Watch, address: str) -> None:
    """To connect to it is to connect to loopback: local, and no way around."""
    act = partial(plain, address)
    loopback = "::1" if ":" in address else "127.0.0.1"
    with world.listen(world.host, loopback):
        assert world.control(act).errno == 0
        watch.apply('[local]\ndefault = "deny"\n')
        assert world.act(act).errno == errno.EPERM
        denied = watch.one()
        assert denied.direction is Direction.LOCAL
        assert denied.dst == (address, SMTP)
        watch.forget()
        watch.apply("")
        assert world.act(act).errno == 0
        assert watch.one().direction is Direction.LOCAL
        assert watch.one().src[0] == loopback


@pytest.mark.parametrize("address", [MX4, "127.0.0.1"])
def test_another_network_namespace_is_no_way_out(
    world: World, watch: Watch, address: str
) -> None:
    """A process of the guarded cgroup, in a namespace that it may have made."""

    def act() -> Done:
        with world.inside(world.mx):
            return world.act(partial(plain, address))

    with world.listen(world.mx, "127.0.0.1"):
        with world.inside(world.mx):
            assert world.control(partial(plain, address)).errno == 0
        watch.apply('[local]\ndefault = "deny"\n')
        assert act().errno == errno.EPERM
        event = watch.one()
        assert event.flags & Flag.FOREIGN_NETNS
        assert event.netns_cookie != 0
        watch.forget()
        watch.apply(ALLOW_MX)
        assert act().errno == 0
        assert watch.one().flags & Flag.FOREIGN_NETNS
        assert watch.one().src[1]


NOWHERE = rule(name="nowhere", to=[NOWHERE4])

# ---- let pass, and then nothing was sent


def not_sent(watch: Watch) -> None:
    event = watch.one()
    assert event.outcome is Outcome.NOT_SENT
    assert event.src[1] == 0
    assert watch.moved(Counter.HELD) == 0
    assert watch.moved(Counter.ALLOWED) == 1


def test_no_route_is_told_at_close(world: World, watch: Watch) -> None:
    watch.apply(NOWHERE)
    assert world.control(partial(plain, NOWHERE4)).errno == errno.ENETUNREACH
    assert world.act(partial(plain, NOWHERE4)).errno == errno.ENETUNREACH
    not_sent(watch)


def test_no_route_by_multipath_is_told_at_close(world: World, watch: Watch) -> None:
    watch.apply(NOWHERE)
    act = partial(routes.multipath, NOWHERE4)
    assert world.control(act).errno == errno.ENETUNREACH
    assert world.act(act).errno == errno.ENETUNREACH
    not_sent(watch)


def test_no_route_is_told_at_the_next_connect(world: World, watch: Watch) -> None:
    watch.apply(ALLOW_MX + NOWHERE)

    def act() -> int:
        with socket.socket() as client:
            first = client.connect_ex((NOWHERE4, SMTP))
            client.connect((MX4, SMTP))
            return first

    assert world.act(act).value == errno.ENETUNREACH
    first, second = watch.connects()
    assert (first.dst[0], first.outcome) == (NOWHERE4, Outcome.NOT_SENT)
    assert (second.dst[0], second.outcome) == (MX4, Outcome.SYN_SENT)
    assert first.connection != second.connection
    assert watch.moved(Counter.HELD) == 0


def test_a_deferred_syn_that_never_leaves_is_told(world: World, watch: Watch) -> None:
    watch.apply(ALLOW_MX)

    def act() -> None:
        with socket.socket() as client:
            client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            client.connect((MX4, SMTP))

    for _ in range(2):
        world.control(partial(routes.fast_open, MX4))  # there is a cookie now
    assert world.act(act).errno == 0
    not_sent(watch)


@pytest.mark.parametrize("proto", [0, IPPROTO_MPTCP])
def test_a_second_connection_of_one_socket_is_its_own(
    world: World, watch: Watch, proto: int
) -> None:
    watch.apply(ALLOW_MX)

    def act() -> list[int]:
        ports = []
        with socket.socket(proto=proto) as client:
            for _ in range(3):
                client.connect((MX4, SMTP))
                ports.append(client.getsockname()[1])
                routes.disconnect(client)
        return ports

    ports = world.act(act).value
    assert [event.src[1] for event in watch.connects()] == ports
    assert len({event.connection for event in watch.connects()}) == 3
    wait_until(lambda: len(watch.closes()) == 3, "three ends")
    assert [e.connection for e in watch.closes()] == [
        e.connection for e in watch.connects()
    ]


def test_connecting_twice_is_one_attempt(world: World, watch: Watch) -> None:
    """The second connect() of a socket is refused by the kernel, unjudged."""
    watch.apply(ALLOW_MX)

    def act() -> int:
        with socket.create_connection((MX4, SMTP)) as client:
            return client.connect_ex((MX4, SMTP))

    assert world.act(act).value == errno.EISCONN
    watch.one()


def test_a_socket_that_goes_on_as_a_server_is_told_at_close(
    world: World, watch: Watch
) -> None:
    """Its connect() was let pass and never sent a SYN; then it listens."""

    def act() -> None:
        with socket.socket() as client:
            assert client.connect_ex((NOWHERE4, SMTP)) == errno.ENETUNREACH
            client.bind((HOST4, 0))
            client.listen()

    watch.apply(rule())
    assert world.act(act).errno == 0
    assert watch.one().outcome is Outcome.NOT_SENT
    assert watch.moved(Counter.HELD) == 0
