# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests side by side: as many on a machine as it has processors and memory for."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import psutil

from tests.vm import guest
from tests.vm.guest import End, Guest
from tests.vm.image import cache
from tests.vm.qemu import MEMORY, Machine
from tests.vm.saved import Saved, save

PLACES = max(1, min(os.cpu_count() or 1, psutil.virtual_memory().total // MEMORY))


@contextlib.contextmanager
def place(stop: threading.Event) -> Iterator[None]:
    """Hold one of the places for guests, that all checkouts of this machine share."""
    with contextlib.ExitStack() as files:
        locks = [
            files.enter_context((cache() / f"place-{number}").open("w"))
            for number in range(PLACES)
        ]
        while not any(map(_taken, locks)) and not stop.wait(0.5):
            pass
        yield


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def running(
    guests: Sequence[Guest], say: Callable[[str], None]
) -> Iterator[dict[tuple[str, str], Future[End]]]:
    """Run guests until the end of the context; gives their ends by name and kernel.

    say gets a line as each has ended. What takes longest is begun first, so that no
    processor has nothing to do at the end.
    """
    began, stop, over = time.monotonic(), threading.Event(), itertools.count(1)

    def boot(machine: Machine, folder: Path) -> Saved:
        folder.mkdir()
        with place(stop):
            saved = save(machine, folder, stop)
        say(
            f"booted {machine.boot} {machine.kernel} and saved it after "
            f"{saved.seconds:.0f} s, {saved.processor:.0f} s of processor"
        )
        return saved

    def run(one: Guest, from_: Future[Saved] | None) -> End:
        saved = from_.result() if from_ else None
        with place(stop):
            end = one.run(saved, stop)
        say(
            f"guest {next(over)} of {len(guests)}, {time.monotonic() - began:.0f} s: "
            f"{one.scenario.name} {one.machine.kernel} "
            f"ended with {end.status} {end.cost}"
        )
        return end

    order = sorted(guests, key=lambda one: -guest.head(one.scenario).seconds)
    shared = dict.fromkeys(
        one.machine for one in order if guest.head(one.scenario).saved
    )
    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(PLACES) as pool:
        # before all who wait for one: they can have no thread that it needs
        saved = {
            machine: pool.submit(boot, machine, Path(top, str(number)))
            for number, machine in enumerate(shared)
        }
        ends = {
            (one.scenario.name, one.machine.kernel): pool.submit(
                run, one, saved[one.machine] if guest.head(one.scenario).saved else None
            )
            for one in order
        }
        try:
            yield ends
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
