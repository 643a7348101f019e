# SPDX-License-Identifier: GPL-2.0-or-later
"""A denied connect, beside one owner rule of iptables that rejects with a reset.

Both in a network namespace of their own with nothing but lo in it; the loop of
socket(), connect(), close() is connects.c's, as the same ordinary user.
"""

from __future__ import annotations

import shutil
import subprocess
from statistics import median

from tests.bench.figure import Figure
from tests.faults.site import Site, policy
from tests.lab.lab import Namespaces

ROUNDS, CONNECTS, UID = 15, 3000, 65534
BACKENDS = ("iptables", "iptables-legacy")


def _space(site: Site, *commands: str) -> Namespaces:
    space = Namespaces(["--net"], site.cgroup.parent)
    for command in ("ip link set lo up", *commands):
        inside = ["nsenter", "-t", str(space.pid), "--net", *command.split()]
        subprocess.run(inside, check=True)
    return space


def measure(site: Site) -> list[Figure]:
    """Take turns: nothing, a rule of each iptables there is, the guard."""
    rule = (
        f"-A OUTPUT -p tcp --dport {site.port} -m owner --uid-owner {UID}"
        " -j REJECT --reject-with tcp-reset"
    )
    backends = [name for name in BACKENDS if shutil.which(name)]
    spaces = {"nothing": _space(site)}
    spaces |= {name: _space(site, f"{name} {rule}") for name in backends}
    laps: dict[str, list[float]] = {}

    def lap(name: str, space: str, guarded: bool, count: int = CONNECTS) -> None:
        tally = site.connect(
            count,
            cgroup=None if guarded else "-",
            uid=UID,
            netns=spaces[space].pid,
        )
        wanted = tally.denied if guarded else tally.passed
        assert wanted == tally.tried, tally
        laps.setdefault(name, []).append(tally.ns / tally.tried)

    try:
        for window in ("1h", "0s"):
            site.write_policy(policy(site.port, window=window))
            guardd = site.start()
            name = "folded" if window == "1h" else "unfolded"
            for _ in range(ROUNDS):
                for space in ("nothing", *backends):
                    lap(space, space, guarded=False)
                lap(name, "nothing", guarded=True)
            guardd.end()
    finally:
        for made in spaces.values():
            made.keeper.kill()
            made.close()
    ns = {name: median(values) for name, values in laps.items()}
    rival = backends[0]
    both = " ".join(f"{name} {ns[name]:.0f} ns," for name in ("nothing", *backends))
    return [
        Figure.at_most(
            f"a denied connect, repeats folded / one {rival} owner rule, tcp-reset",
            0.6,
            ns["folded"] / ns[rival],
            "x",
            f"guard {ns['folded']:.0f} ns; {both} the whole of socket, connect, close",
        ),
        Figure.told(
            f"the same, each one a finding of its own, guardd running / {rival}",
            f"{ns['unfolded'] / ns[rival]:.2f}x",
            f"guard {ns['unfolded']:.0f} ns, with all that an event holds",
        ),
    ]
