# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd killed, stopped, reloaded, swapped, without its pins, under connects."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable

import pytest

from guard import libbpf
from guard.kernel import HOOKS, Guard, is_loaded
from tests.faults.site import Site
from tests.faults.trial import Size, Trial

Trials = Callable[..., Trial]


@pytest.mark.parametrize(
    ("how", "window", "pause_us", "options"),
    [
        ("each connect a finding", "0s", 2000, []),
        ("each a finding, a small ring", "0s", 500, ["--ring-bytes", "65536"]),
        ("repeats folded", "1s", 50, []),
    ],
    ids=["findings", "small-ring", "folded"],
)
def test_killed_at_random_moments(
    site: Site,
    trial: Trials,
    size: Size,
    how: str,
    window: str,
    pause_us: int,
    options: list[str],
) -> None:
    """At any moment: at its start, in the middle of a swap, with events in hand."""
    chance = random.Random(9)
    early = 0
    with trial(f"kill -9 of guardd ({how})", *options, window=window) as t:
        t.connecting(pause_us)
        for _ in t.turns(size(5, 334)):
            time.sleep(chance.uniform(0.03, 1.2))
            t.guardd.end(signal.SIGKILL)
            early += "READY=1" not in t.guardd.messages
            t.starting()
        t.guardd.ready()
        t.note = f"{early} of them before guardd was ready"
        ledger = t.settled()
    if "small" not in how:
        assert ledger.lost == 0
    assert ledger.doubles <= t.times, "more than the one entry in hand was repeated"


def test_programs_swapped(site: Site, trial: Trials, size: Size) -> None:
    """LINK_UPDATE, to and fro between two generations of programs, then to new ones."""
    with trial("LINK_UPDATE of all six links") as t:
        t.connecting(20)
        pinned = [site.guard.home / hook for hook in HOOKS]
        links = [libbpf.get_pinned(site.guard.link_path(hook)) for hook in HOOKS]
        first = [libbpf.get_pinned(pin) for pin in pinned]
        Guard.load(site.pin_dir)
        second = [libbpf.get_pinned(pin) for pin in pinned]
        for turn in t.turns(size(500, 10_000)):
            for link, program in zip(links, (first, second)[turn % 2], strict=True):
                libbpf.swap(link, program)
        for _ in t.turns(size(5, 100)):
            Guard.load(site.pin_dir).attach(site.cgroup)
        t.settled()


def test_policies_reloaded(site: Site, trial: Trials, size: Size) -> None:
    """They differ in all but who is lawful, also in how long they fold; one is bad."""
    with trial("policy reload, alternating") as t:
        other = t.policy.replace(f"ports = [{site.port}]", f"ports = [25, {site.port}]")
        other += f'[[rule]]\nname = "x"\nverdict = "deny"\nports = {site.port + 1}\n'
        texts = (other, t.policy, "nonsense", t.policy.replace('"1s"', '"2s"'))
        t.connecting(20)
        for turn in t.turns(size(40, 1000)):
            site.write_policy(texts[turn % len(texts)])
            t.guardd.reload()
        t.settled()


def test_stopped_for_a_while(trial: Trials, size: Size) -> None:
    seconds = size(2, 60)
    with trial(f"SIGSTOP of guardd for {seconds} s", window="5s") as t:
        t.connecting(50)
        for _ in t.turns(1):
            t.guardd.send(signal.SIGSTOP)
            time.sleep(seconds)  # the fault itself
            t.guardd.send(signal.SIGCONT)
        ledger = t.settled()
    assert ledger.lost == ledger.doubles == 0


def test_pins_removed(site: Site, trial: Trials, size: Size) -> None:
    def whole() -> bool:
        links = (site.pin_dir / f"link-{hook}" for hook in HOOKS)
        return is_loaded(site.pin_dir) and all(link.exists() for link in links)

    with trial("pins removed by hand, one or all") as t:
        t.connecting(50)
        hooks = list(HOOKS)
        for turn in t.turns(size(4, 60)):
            if turn % 2:
                shutil.rmtree(site.pin_dir, ignore_errors=True)
            else:
                (site.pin_dir / f"link-{hooks[turn // 2 % len(hooks)]}").unlink()
            t.guardd.until(whole, "the pins are back")
        t.settled()
