# SPDX-License-Identifier: GPL-2.0-or-later
"""A flood is folded: the first findings at once, the rest counted, the sum exact."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections import Counter as Tally
from functools import partial
from pathlib import Path

import pytest

from guard.abi import Counter, Verdict
from guard.ring import Repeats, _is_over, finished_repeats
from tests.kernel.world import MX4, MX6, SMTP, Child, Watch, World, compile_c
from tests.lab.lab import wait_until

# Windows begin at full hours since boot: none ends within a test but by a rare
# chance, which would only make more events; so sums are compared, and no less.
FOLD = '[fold]\nwindow = "1h"\ndenied = 5\nlocal = 3\n'


def attempts(times: int, address: str = MX4, wanted: int = errno.EPERM) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for _ in range(times):
        with socket.socket(family) as client:
            assert client.connect_ex((address, SMTP)) == wanted


def in_threads(threads: int, times: int) -> None:
    crowd = [threading.Thread(target=attempts, args=(times,)) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()


def test_the_first_at_once_and_the_rest_counted(world: World, watch: Watch) -> None:
    watch.apply(FOLD)
    child = world.act(partial(attempts, 50))
    events = watch.connects()
    assert len(events) == 5
    assert watch.moved(Counter.JUDGED) == 50
    assert watch.moved(Counter.DENIED) == 50
    assert watch.moved(Counter.FOLDED) == 45
    assert list(finished_repeats(watch.guard)) == []  # the window is not over
    (repeats,) = watch.repeats()
    assert repeats.folded == 45
    assert repeats.first.connection not in {event.connection for event in events}
    assert repeats.first.exe == events[0].exe
    assert repeats.first.pid == child.pid
    assert repeats.first.args == events[0].args
    assert events[-1].time_ns < repeats.last_ns
    assert watch.repeats() == []  # given once


def test_another_program_in_the_same_process_is_another_identity(
    world: World, watch: Watch
) -> None:
    again = f"""
import socket
for _ in range(20):
    with socket.socket() as client:
        client.connect_ex(("{MX4}", {SMTP}))
"""

    def same_process() -> None:
        if not (pid := os.fork()):
            attempts(20)
            os.execv(sys.executable, [sys.executable, "-c", again])
        os.waitpid(pid, 0)

    watch.apply(FOLD)
    world.act(same_process)
    events = watch.connects()
    assert len({event.pid for event in events}) == 1
    assert Tally(again in event.args for event in events) == {False: 5, True: 5}
    assert sorted(r.folded for r in watch.repeats()) == [15, 15]


def test_an_attempt_that_is_not_repeated_makes_no_row(
    world: World, watch: Watch
) -> None:
    watch.apply(FOLD)
    world.act(partial(attempts, 5))
    assert len(watch.connects()) == 5
    assert watch.repeats() == []
    assert list(watch.guard.map("folds").keys()) == []


def test_local_connects_have_a_burst_of_their_own(world: World, watch: Watch) -> None:
    """Counted ones are not followed to their end either."""
    watch.apply(FOLD)
    with world.serve(world.host, "127.0.0.1"):
        world.act(partial(attempts, 20, "127.0.0.1", 0))
        assert len(watch.connects()) == 3
        wait_until(lambda: len(watch.closes()) == 3, "three ends")
    (repeats,) = watch.repeats()
    assert repeats.folded == 17
    assert repeats.first.verdict is Verdict.ALLOW
    assert len(watch.closes()) == 3
    assert {e.connection for e in watch.closes()} == {
        e.connection for e in watch.connects()
    }


def test_what_an_identity_is(world: World, watch: Watch) -> None:
    """Process, effective user, verdict and destination; not the thread."""

    def act() -> None:
        attempts(7)
        attempts(7, MX6)
        in_threads(1, 7)
        os.seteuid(33)
        attempts(7)

    watch.apply(FOLD)
    world.act(act)
    world.act(partial(attempts, 7))
    keys = Tally((e.pid, e.uid, e.dst[0]) for e in watch.connects())
    assert sorted(keys.values()) == [5, 5, 5, 5]
    assert sorted(r.folded for r in watch.repeats()) == [2, 2, 2, 9]


@pytest.mark.parametrize(("processes", "threads"), [(1, 8), (8, 1), (4, 4)])
def test_the_sum_is_exact_in_a_race(
    world: World, watch: Watch, programs: Path, processes: int, threads: int
) -> None:
    watch.apply(FOLD)
    times = 40_000 // processes // threads
    program = compile_c("crowd.c", programs / "crowd", "-pthread")
    argv = [str(program), MX4, str(SMTP), str(threads), str(times)]
    crowd = [
        Child(partial(os.execv, program, argv), world.guarded) for _ in range(processes)
    ]
    for child in crowd:
        child.ends_well()
    assert watch.moved(Counter.JUDGED) == processes * threads * times
    sent = Tally(event.pid for event in watch.connects())
    folded = {repeats.first.pid: repeats.folded for repeats in watch.repeats()}
    assert sent.keys() == {child.pid for child in crowd}
    for child in crowd:
        assert sent[child.pid] == 5
        assert folded[child.pid] == threads * times - 5


def test_windows_that_end_give_what_they_counted(world: World, watch: Watch) -> None:
    """Read while it goes on: nothing is counted twice or dropped."""
    watch.apply('[fold]\nwindow = "100ms"\ndenied = 2\n')
    crowd = [Child(partial(in_threads, 2, 3000), world.guarded) for _ in range(2)]
    found: list[Repeats] = []

    def total() -> int:
        found.extend(finished_repeats(watch.guard))
        return len(watch.connects()) + sum(repeats.folded for repeats in found)

    wait_until(lambda: total() == 12_000, "all that was folded", 20)
    for child in crowd:
        child.finish()
    assert total() == 12_000
    assert watch.moved(Counter.JUDGED) == 12_000


@pytest.mark.parametrize("window", ["0s", "1s"])
def test_another_window_after_a_reload_loses_nothing(
    world: World, watch: Watch, window: str
) -> None:
    watch.apply(FOLD)
    world.act(partial(attempts, 20))
    watch.apply(FOLD.replace("1h", window))
    world.act(partial(attempts, 20))
    found = sum(repeats.folded for repeats in finished_repeats(watch.guard))
    assert len(watch.connects()) == (25 if window == "0s" else 10)
    left = sum(repeats.folded for repeats in watch.repeats())
    assert len(watch.connects()) + found + left == 40


SECOND = 10**9


@pytest.mark.parametrize(
    ("number", "at", "window", "now", "over"),
    [
        (100, 100.3, 1, 100.9, False),
        (100, 100.3, 1, 101.0, True),
        # of a policy with windows of 1 s, while another is in force: the first may
        # be put in force again within them, and its rows count on
        (100, 100.3, 2, 100.9, False),
        (100, 100.3, 0, 100.9, False),
        (100, 100.3, 2, 101.4, True),
        (100, 100.3, 0, 101.4, True),
        (0, 100.3, 3600, 3599.0, False),  # since boot
        (0, 100.3, 3600, 3600.0, True),
        (0, 100.3, 0, 100.4, True),  # nobody knows how long
    ],
)
def test_a_window_is_over_when_its_own_time_is(
    number: int, at: float, window: int, now: float, over: bool
) -> None:
    moments = [int(t * SECOND) for t in (at, window, now)]
    assert _is_over(number, *moments) is over
