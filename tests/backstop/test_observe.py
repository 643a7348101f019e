# SPDX-License-Identifier: GPL-2.0-or-later
"""Observe mode: all of it passes, each is recorded once, and plan says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.backstop.container import INSIDE4, INSIDE6, connect, container
from tests.backstop.ground import Ground, new_port, policy
from tests.backstop.packets import Frames, Syn, send_raw
from tests.backstop.test_connects import WAYS
from tests.kernel.world import MX4, MX6, SMTP


@pytest.fixture
def watched(ground: Ground) -> Ground:
    ground.start(policy(ground.kind, mode="observe"))
    return ground


def test_everything_passes_and_is_recorded_once(watched: Ground, mx: str) -> None:
    frames = Frames.of(watched.world)

    def raw() -> None:
        send_raw(mx, [Syn(mx, port).whole()])

    def packet() -> None:
        frames.raw([Syn(mx, port).whole()], Syn(mx, port).ethertype)

    acts: list[Callable[[], object]] = [lambda way=way: way(mx) for way in WAYS]
    for act in acts:
        with watched.found() as found:
            assert watched.free(act).errno == 0
        assert [one.lock for one in found] == [f"{watched.kind}-output"], found
    for act, where in ((raw, "output"), (packet, "egress")):
        port = new_port()
        with watched.found() as found, watched.wire() as wire:
            assert watched.free(act).errno == 0
            assert wire.first_packets(port) == 1 and wire.answers(port)
        seen = [one.lock for one in found]
        missed = watched.kind == "iptables" and where == "egress"
        assert seen == ([] if missed else [f"{watched.kind}-{where}"])
    for one in found:
        assert (one.verdict, one.mode, one.outcome) == ("deny", "observe", "syn-sent")


def test_plan_says_what_would_be_refused(watched: Ground) -> None:
    with container(watched.world) as box, watched.found() as found:
        for to in (MX4, MX6):
            assert box.connect(to).errno == 0
        assert watched.free(lambda: connect(MX4)).errno == 0
    assert {(one.lock, one.dst[0]) for one in found} == {
        (f"{watched.kind}-{chain}", to)
        for chain, to in (("forward", MX4), ("forward", MX6), ("output", MX4))
    }
    said = watched.ctl(
        "plan",
        "--since",
        "1 hour ago",
        "--directory",
        str(watched.site.journald.directory),
    )
    assert said.returncode == 0, said
    text = " ".join(said.stdout.replace("#", " ").split())
    for source in (INSIDE4, INSIDE6):
        assert f"add {source} or its network to forward in [backstop]" in text
    assert "of a way that no connect() shows" in text
    assert "[[rule]]" not in said.stdout
    assert SMTP == 25


def test_enforce_follows_at_once(watched: Ground) -> None:
    assert watched.free(lambda: connect(MX4)).errno == 0
    watched.apply(policy(watched.kind))
    assert watched.free(lambda: connect(MX4)).errno
