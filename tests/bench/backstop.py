# SPDX-License-Identifier: GPL-2.0-or-later
"""What the second lock costs: a connect that passes, and one that it refuses.

Hosts and MX are network namespaces; the refused connect stands beside the owner rule
that is usual in the field, which rejects by ICMP.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.backstop.flow import RESET, taker
from tests.backstop.ground import Ground, iptables, policy
from tests.bench.figure import Figure
from tests.faults.site import Site
from tests.kernel.world import MX4, SMTP, World

KINDS = ("off", "nftables", "iptables")
ROUNDS, CONNECTS, SLOW = 15, 400, 3  # SLOW: of those that take a second each


def _lap(count: int, wanted: int) -> Callable[[], float]:
    def lap() -> float:
        began = time.perf_counter()
        for _ in range(count):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                got = sock.connect_ex((MX4, SMTP))
                assert got == wanted, errno.errorcode.get(got, got)
        return (time.perf_counter() - began) / count * 1e6

    return lap


def measure(site: Site) -> list[Figure]:
    """Take turns: no second lock, each kind of it, the usual owner rule."""
    laps: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        grounds = {}
        for kind in KINDS:
            folder = Path(site.folder, kind)
            folder.mkdir()
            ground = Ground(folder, site.connects, kind, served=False)
            grounds[kind] = stack.enter_context(ground)
            stack.enter_context(taker(ground.world, MX4))
            ground.start(policy(kind, window="1h"))
        usual = stack.enter_context(World())
        with usual.inside(usual.host):
            iptables(
                f"-A OUTPUT -p tcp --dport {SMTP} -m owner --uid-owner 0 -j REJECT"
            )
        for number in range(ROUNDS):
            for kind, ground in grounds.items():
                with ground.world.inside(ground.world.host):
                    done = ground.guarded(_lap(CONNECTS, 0))
                laps.setdefault(f"passed {kind}", []).append(done.value)
                if kind != "off":
                    done = ground.free(_lap(CONNECTS, errno.ECONNREFUSED))
                    laps.setdefault(f"refused {kind}", []).append(done.value)
            if number < SLOW:
                with usual.inside(usual.host):
                    done = usual.control(_lap(SLOW, errno.ECONNREFUSED))
                laps.setdefault("refused usual", []).append(done.value)
    us = {name: median(values) for name, values in laps.items()}
    figures = []
    for kind in KINDS[1:]:
        figures.append(
            Figure.at_most(
                f"an allowed connect with the second lock ({kind}) / without",
                1.5,
                us[f"passed {kind}"] / us["passed off"],
                "x",
                f"{us[f'passed {kind}']:.1f} us; {us['passed off']:.1f} us",
            )
        )
        figures.append(
            Figure.at_most(
                f"a connect that only the second lock ({kind}) meets / the usual "
                "owner rule, icmp-port-unreachable",
                0.1,
                us[f"refused {kind}"] / us["refused usual"],
                "x",
                f"{us[f'refused {kind}']:.0f} us; {us['refused usual']:.0f} us",
            )
        )
    return figures
