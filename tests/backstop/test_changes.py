# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy changes again and again while connects go on."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.backstop.flow import LAWFUL, STRANGER, flows, taker
from tests.backstop.ground import Ground, policy
from tests.journald import until
from tests.kernel.world import MX4, MX6

CHANGES = 60  # of each test


def _policy(kind: str, **more: str) -> str:
    return policy(kind, window="5s", **more)  # not a finding for each connect


# What both sides of each change refuse or allow is the same for the flows.
ENFORCED = [
    _policy("nftables"),
    _policy("nftables", more="ports = [25]"),
    _policy("nftables", backstop="mark = 0x40000000\n"),
    _policy("iptables"),
    _policy("iptables", backstop="mark = 0x40000000\n", more="ports = [25, 465]"),
    _policy("nftables", backstop='forward = ["198.51.100.0/24"]\ngroup = 2600\n'),
]
LOOSER = [
    _policy("off"),
    _policy("nftables", mode="observe"),
    _policy("nftables", more="ports = [465]"),
    _policy("iptables", mode="observe", backstop="mark = 0x20000000\n"),
]


@pytest.fixture
def ground(tmp_path: Path, connects: Path) -> Iterator[Ground]:
    with (
        Ground(tmp_path, connects, "nftables", served=False) as ground,
        taker(ground.world, MX4, MX6),
    ):
        yield ground


def orders(kinds: list[str]) -> Iterable[str]:
    """Give every policy after every other, in turns, without end."""
    pairs = list(itertools.permutations(kinds, 2))
    return itertools.chain.from_iterable(itertools.cycle(pairs))


@pytest.mark.parametrize("to", [MX4, MX6], ids=["ipv4", "ipv6"])
def test_what_all_policies_refuse_is_never_let_through(ground: Ground, to: str) -> None:
    ground.start(ENFORCED[0])
    world, guarded = ground.world, ground.site.cgroup
    places = [(guarded, to, LAWFUL), (guarded, to, STRANGER), (world.free, to, LAWFUL)]
    with flows(*places) as (lawful, stranger, around):
        for text in itertools.islice(orders(ENFORCED), CHANGES):
            wanted = {flow: flow.made + 1 for flow in (lawful, stranger, around)}
            ground.apply(text)
            until(
                lambda wanted=wanted: all(  # type: ignore[misc]
                    flow.made >= made for flow, made in wanted.items()
                ),
                "a connect of each",
            )
        assert set(lawful.end()) == {0}, lawful.end()
        assert set(stranger.end()) == {errno.EPERM}, stranger.end()
        assert set(around.end()) == {errno.ECONNREFUSED}, around.end()


@pytest.mark.parametrize("to", [MX4, MX6], ids=["ipv4", "ipv6"])
def test_what_all_policies_allow_is_never_refused(ground: Ground, to: str) -> None:
    ground.start(ENFORCED[0])
    with flows((ground.site.cgroup, to, LAWFUL)) as (lawful,):
        for text in itertools.islice(orders(ENFORCED + LOOSER), CHANGES):
            before = lawful.made
            ground.apply(text)
            until(lambda made=before: lawful.made > made, "a connect")
        assert set(lawful.end()) == {0}, lawful.end()
