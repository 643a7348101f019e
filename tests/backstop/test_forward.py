# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host forwards for containers, out and in."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests.backstop.container import (
    GATE4,
    GATE6,
    INSIDE4,
    INSIDE6,
    NETWORK4,
    NETWORK6,
    ON_WIRE4,
    ON_WIRE6,
    Container,
    container,
    inside_of,
)
from tests.backstop.container import connect as connect_plainly
from tests.backstop.ground import MARK, Ground, host_of, nft, policy
from tests.kernel.world import HOST4, HOST6, MX4, MX6, SMTP, World


@pytest.fixture
def box(standing: Ground) -> Iterator[Container]:
    with container(standing.world) as made:
        yield made


@pytest.fixture
def bare_box(bare: World) -> Iterator[Container]:
    with container(bare) as made:
        yield made


def refused(ground: Ground, box: Container, mx: str, **more: object) -> None:
    """See that a connect from inside is refused, and found once."""
    with ground.found() as found:
        done = box.connect(mx, **more)  # type: ignore[arg-type]
    assert done.errno == errno.ECONNREFUSED
    (one,) = found
    assert one.lock == f"{ground.kind}-forward"
    assert one.src and one.src[0] == inside_of(mx) and one.dst == (mx, SMTP)
    assert (one.verdict, one.outcome, one.pid, one.user) == ("deny", "denied", 0, None)
    assert {"forwarded", "no-process", "no-user"} <= set(one.incomplete)


def test_a_container_is_refused_and_found_by_its_address(
    standing: Ground, box: Container, bare_box: Container, mx: str
) -> None:
    assert bare_box.connect(mx).errno == 0
    assert box.connect(mx, 2626).errno == errno.ECONNREFUSED  # nobody listens
    refused(standing, box, mx)


def test_what_the_first_lock_lets_pass_is_still_forwarded(
    standing: Ground, box: Container, mx: str
) -> None:
    """A policy rule is about processes, `forward` about who is routed through."""
    refused(standing, box, mx, cgroup=standing.site.cgroup)


def test_a_mark_that_the_container_sets_itself_does_not_count(
    standing: Ground, box: Container, mx: str
) -> None:
    refused(standing, box, mx, mark=MARK)


def test_a_dnat_of_the_containers_own_does_not_help_it(
    standing: Ground, box: Container, bare_box: Container, mx: str
) -> None:
    for one in (box, bare_box):
        with one.world.inside(one.netns):
            nft("-f", "-", text=DNAT_OUT)
    assert bare_box.connect(mx, 2525).errno == 0
    refused(standing, box, mx, port=2525)


DNAT_OUT = f"""
table inet own {{
  chain output {{ type nat hook output priority -100;
    tcp dport 2525 ip daddr {MX4} dnat ip to {MX4}:25
    tcp dport 2525 ip6 daddr {MX6} dnat ip6 to [{MX6}]:25
  }}
}}
"""


def test_a_dnat_of_the_hosts_own_does_not_help_anybody(
    standing: Ground, bare: World, mx: str
) -> None:
    """A port that nobody guards becomes one that is: a way around the first lock."""
    with bare.inside(bare.host):
        nft("-f", "-", text=DNAT_OUT)
        try:
            assert bare.control(lambda: connect_plainly(mx, 2525)).errno == 0
        finally:
            nft("delete", "table", "inet", "own")
    nft("-f", "-", text=DNAT_OUT)
    try:
        with standing.found() as found:
            done = standing.guarded(lambda: connect_plainly(mx, 2525))
        assert done.errno == errno.ECONNREFUSED
        assert [(one.lock, one.dst) for one in found] == [
            (f"{standing.kind}-output", (mx, SMTP))
        ]
    finally:
        nft("delete", "table", "inet", "own")


def test_a_published_port_of_a_container_is_not_disturbed(
    standing: Ground, box: Container, mx: str
) -> None:
    """From the MX through the host into the container's port 25."""
    world = standing.world
    nft("-f", "-", text=DNAT_IN)
    try:
        with (
            world.serve(box.netns, inside_of(mx)),
            world.inside(world.mx),
            standing.found() as found,
        ):
            done = world.control(lambda: connect_plainly(host_of(mx), SMTP))
            assert done.errno == 0
            done = world.control(lambda: connect_plainly(inside_of(mx), SMTP))
            assert done.errno == 0
        assert not found
    finally:
        nft("delete", "table", "inet", "published")


DNAT_IN = f"""
table inet published {{
  chain prerouting {{ type nat hook prerouting priority -100;
    iifname host0 tcp dport 25 ip daddr {HOST4} dnat ip to {INSIDE4}:25
    iifname host0 tcp dport 25 ip6 daddr {HOST6} dnat ip6 to [{INSIDE6}]:25
  }}
}}
"""


def test_to_the_containers_and_between_host_and_them_all_passes(
    standing: Ground, box: Container, mx: str
) -> None:
    gate = GATE6 if ":" in mx else GATE4
    world = standing.world
    with (
        world.serve(box.netns, inside_of(mx)),
        world.serve(world.host, gate),
        standing.found() as found,
    ):
        assert box.connect(gate).errno == 0
        # leaves by an interface: a packet of this host that no hook judged
        done = standing.free(lambda: connect_plainly(inside_of(mx), SMTP))
        assert done.errno == errno.ECONNREFUSED
    assert [(one.lock, one.dst) for one in found] == [
        (f"{standing.kind}-output", (inside_of(mx), SMTP))
    ]


def test_forward_names_who_may(ground: Ground, mx: str) -> None:
    ground.start()
    with container(ground.world) as box:
        for networks in (
            f'["{NETWORK4}", "{NETWORK6}"]',
            f'["{INSIDE4}", "198.51.100.0/30", "{INSIDE6}"]',  # that overlap
        ):
            ground.apply(policy(ground.kind, backstop=f"forward = {networks}\n"))
            with ground.found() as found:
                assert box.connect(mx).errno == 0
            assert not found
        ground.apply(policy(ground.kind, backstop='forward = ["198.51.100.9"]\n'))
        refused(ground, box, mx)
        ground.apply(policy(ground.kind))
        refused(ground, box, mx)


def test_a_macvlan_of_a_containers_own_is_not_met(ground: Ground) -> None:
    """Not stopped: it is on the wire without being forwarded, and the egress of the
    interface below knows no user of another namespace's socket.
    """
    ground.start()
    with container(ground.world) as box:
        box.wire("macvlan")
        with ground.found() as found:
            for to, source in ((MX4, ON_WIRE4), (MX6, ON_WIRE6)):
                assert box.connect(to, source=source).errno == 0
    assert not found
