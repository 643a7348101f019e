# SPDX-License-Identifier: GPL-2.0-or-later
"""Local or outbound: the host's own addresses, and what changes them."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from guard.abi import Direction
from guard.hosts import AddressNews, own_addresses
from tests.kernel.routes import plain
from tests.kernel.world import HOST4, HOST6, Watch, World

NEW4, NEW6 = "198.51.100.7", "2001:db8:9::7"  # RFC 5737, RFC 3849


@pytest.fixture(autouse=True)
def own_again(watch: Watch) -> Iterator[None]:
    yield
    watch.guard.set_hosts(own_addresses())


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.mark.parametrize("address", [HOST4, HOST6, f"::ffff:{HOST4}"])
def test_the_hosts_public_address_is_local(
    world: World, watch: Watch, address: str
) -> None:
    watch.apply("")
    with world.serve(world.host, address.removeprefix("::ffff:")):
        assert world.act(partial(plain, address)).errno == 0
    assert watch.one().direction is Direction.LOCAL


@pytest.mark.parametrize("address", [NEW4, NEW6, f"::ffff:{NEW4}"])
def test_an_address_that_comes_and_goes(
    world: World, watch: Watch, address: str
) -> None:
    """Outbound until it is the host's, and again when it is so no more."""
    plainly = address.removeprefix("::ffff:")
    prefix = f"{plainly}/{128 if ':' in plainly else 32}"
    watch.apply("")

    def direction(wanted: int) -> Direction:
        watch.forget()
        assert world.act(partial(plain, address)).errno == wanted
        return watch.one().direction

    assert direction(errno.EPERM) is Direction.OUTBOUND
    ip("addr", "add", prefix, "dev", "lo", *(["nodad"] if ":" in plainly else []))
    try:
        with world.serve(world.host, plainly):
            # the guard has not been told yet
            assert direction(errno.EPERM) is Direction.OUTBOUND
            watch.guard.set_hosts(own_addresses())
            assert direction(0) is Direction.LOCAL
    finally:
        ip("addr", "del", prefix, "dev", "lo")
    watch.guard.set_hosts(own_addresses())
    assert direction(errno.EPERM) is Direction.OUTBOUND


def test_loopback_needs_no_table(world: World, watch: Watch) -> None:
    watch.apply("")
    watch.guard.set_hosts(set())
    with world.serve(world.host, "127.0.0.1", "::1"):
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            assert world.act(partial(plain, address)).errno == 0
        assert world.act(partial(plain, HOST4)).errno == errno.EPERM
    assert [event.direction for event in watch.connects()] == [
        *[Direction.LOCAL] * 3,
        Direction.OUTBOUND,
    ]


def test_the_kernel_tells_of_addresses(world: World) -> None:
    news = AddressNews()
    try:
        assert not select.select([news], [], [], 0)[0]
        for prefix in (f"{NEW4}/32", f"{NEW6}/128"):
            for verb in ("add", "del"):
                ip("addr", verb, prefix, "dev", "lo")
                assert select.select([news], [], [], 10)[0] == [news]
                news.drain()
                assert not select.select([news], [], [], 0)[0]
    finally:
        news.close()


def test_an_address_of_a_link_that_is_down_is_nobodys(world: World) -> None:
    """Its address stays, but its route is gone; without a carrier it is there."""
    ip("link", "add", "idle0", "type", "veth", "peer", "name", "idle1")
    try:
        ip("addr", "add", f"{NEW4}/32", "dev", "idle0", "label", "idle0:1")
        assert NEW4 not in own_addresses()
        news = AddressNews()
        ip("link", "set", "idle0", "up")
        assert select.select([news], [], [], 10)[0] == [news]
        news.close()
        assert {NEW4, HOST4, "127.0.0.1"} <= own_addresses()
    finally:
        ip("link", "del", "idle0")


def test_a_link_local_address_of_one_link_is_nobody_on_another(
    world: World, watch: Watch
) -> None:
    """fe80::1 is the host's own on one link and the MX's on another: not local."""
    with world.inside(world.mx):
        ip("addr", "add", "fe80::1/64", "dev", "mx0", "nodad")
    ip("link", "add", "dummy-ll0", "type", "veth", "peer", "name", "dummy-ll1")
    try:
        ip("addr", "add", "fe80::1/64", "dev", "dummy-ll0", "nodad")
        for link in ("dummy-ll0", "dummy-ll1"):
            ip("link", "set", link, "up")
        watch.apply("")
        watch.guard.set_hosts(own_addresses())
        scope = socket.if_nametoindex("host0")

        def connect() -> None:
            with socket.socket(socket.AF_INET6) as client:
                client.settimeout(5)
                client.connect(("fe80::1", 25, 0, scope))

        with world.serve(world.mx, "::"):
            assert world.control(connect).errno == 0
            assert world.act(connect).errno == errno.EPERM
        assert watch.one().direction is Direction.OUTBOUND
    finally:
        ip("link", "del", "dummy-ll0")
        with world.inside(world.mx):
            ip("addr", "del", "fe80::1/64", "dev", "mx0")
