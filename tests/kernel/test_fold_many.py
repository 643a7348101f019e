# SPDX-License-Identifier: GPL-2.0-or-later
"""Who tries thousands of addresses makes a few findings, and the sum is exact."""

from __future__ import annotations

import os
import socket
import threading
from functools import partial

import pytest

from guard.abi import MANY_BURSTS, Counter, Flag, Verdict
from guard.ring import Repeats, finished_repeats
from tests.kernel.world import MX4, SMTP, Child, Watch, World, rule
from tests.lab.lab import wait_until

BURST = 5
MOST = BURST * MANY_BURSTS  # reports of an identity, and rows it has begun
FOLD = f'[fold]\nwindow = "1h"\ndenied = {BURST}\nlocal = 3\n'
DENY_LOOPBACK = '[local]\ndefault = "deny"\n'
DESTINATIONS = 3000


def many(number: int, first: int = 0, times: int = 1, port: int = SMTP) -> None:
    """Connect to so many addresses of 127/8, so often each."""
    for index in range(first, first + number):
        address = f"127.{1 + (index >> 16)}.{index >> 8 & 255}.{index & 255}"
        for _ in range(times):
            with socket.socket() as client:
                client.connect_ex((address, port))


def total(watch: Watch, found: list[Repeats]) -> int:
    return len(watch.connects()) + sum(repeats.folded for repeats in found)


def wide(found: list[Repeats]) -> list[Repeats]:
    return [repeats for repeats in found if repeats.first.flags & Flag.MANY]


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_thousands_of_destinations_are_one_more_finding(
    world: World, watch: Watch, mode: str
) -> None:
    watch.apply(FOLD + DENY_LOOPBACK, mode)
    child = world.act(partial(many, DESTINATIONS))
    events, found = watch.connects(), watch.repeats()
    assert total(watch, found) == DESTINATIONS == watch.moved(Counter.JUDGED)
    assert len(events) == MOST
    (one,) = found
    assert one.folded == DESTINATIONS - MOST
    assert one.first.flags & Flag.MANY and one.first.pid == child.pid
    assert one.first.dst == (f"127.1.{MOST >> 8}.{MOST & 255}", SMTP)
    assert one.first.exe == events[0].exe and one.first.args == events[0].args
    assert not any(event.flags & Flag.MANY for event in events)
    assert watch.repeats() == []  # given once


def test_a_destination_that_had_a_row_of_its_own_keeps_it(
    world: World, watch: Watch
) -> None:
    def act() -> None:
        many(2, times=50)
        many(DESTINATIONS, first=1000)
        many(2, times=10)

    watch.apply(FOLD + DENY_LOOPBACK)
    world.act(act)
    found = watch.repeats()
    assert total(watch, found) == 2 * 50 + DESTINATIONS + 2 * 10
    own = {r.first.dst[0]: r.folded for r in found if not r.first.flags & Flag.MANY}
    assert own == {f"127.1.0.{last}": 55 for last in (0, 1)}
    assert len(wide(found)) == 1
    assert len(watch.connects()) + len(found) <= MOST + 1


def test_identities_and_ports_do_not_mix(world: World, watch: Watch) -> None:
    def act() -> None:
        many(300)
        many(200, port=587)
        os.seteuid(33)
        many(250)

    watch.apply(FOLD + DENY_LOOPBACK)
    first, second = world.act(act), world.act(partial(many, 150))
    found = wide(watch.repeats())
    rows = {(r.first.pid, r.first.uid, r.first.dst[1]): r.folded for r in found}
    assert rows == {
        (first.pid, 0, SMTP): 300 - MOST,
        (first.pid, 0, 587): 200 - MOST,
        (first.pid, 33, SMTP): 250 - MOST,
        (second.pid, 0, SMTP): 150 - MOST,
    }


def test_what_is_let_pass_has_a_finding_a_destination(
    world: World, watch: Watch
) -> None:
    """A mail server's deliveries are what who-connected answers from."""
    watch.apply(FOLD + rule(to=["127.0.0.0/8", MX4]))
    world.act(partial(many, 400))
    events = watch.connects()
    assert watch.repeats() == []
    assert len(events) == len({event.dst for event in events}) == 400
    assert all(event.verdict is Verdict.ALLOW for event in events)


def test_windows_that_end_give_what_they_counted(world: World, watch: Watch) -> None:
    watch.apply(
        f'[fold]\nwindow = "200ms"\ndenied = 1\n{DENY_LOOPBACK}',
    )
    children = [
        Child(partial(many, DESTINATIONS, number * 10_000), world.guarded)
        for number in range(2)
    ]
    found: list[Repeats] = []

    def all_told() -> bool:
        found.extend(finished_repeats(watch.guard))
        return total(watch, found) == 2 * DESTINATIONS

    wait_until(all_told, "all that was folded", 30)
    for child in children:
        child.finish()
    assert wide(found)
    assert watch.moved(Counter.JUDGED) == 2 * DESTINATIONS


def test_the_sum_is_exact_in_a_race(world: World, watch: Watch) -> None:
    """Threads of one process reach the limit together."""

    def act() -> None:
        crowd = [
            threading.Thread(target=many, args=(500, number * 1000))
            for number in range(8)
        ]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()

    watch.apply(FOLD + DENY_LOOPBACK)
    world.act(act)
    (one,) = watch.repeats()
    assert len(watch.connects()) == MOST
    assert one.folded == 8 * 500 - MOST
    assert watch.moved(Counter.DENIED) == 8 * 500
