# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd itself: how soon it enforces, how much memory it holds, how fast it writes."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from guard.ringbuf import ring_backlog
from tests.bench.figure import Figure
from tests.faults.site import CHECKOUT, Site, policy
from tests.faults.test_notify import resident_kb
from tests.journald import RUNTIME, VOLATILE

STARTS, FINDINGS = 7, 20_000
DRAINS, EVENTS = 5, 20_000
RING_BYTES = 64 << 20


def starts(site: Site) -> list[Figure]:
    """Time from before exec to the first EPERM, seen by a process that connects."""
    took: dict[str, list[float]] = {"fresh": [], "adopted": []}
    for _ in range(STARTS):
        for how in took:
            if how == "adopted":  # what is in force lets pass, the new one denies
                site.write_policy(policy(site.port, allow="user = 0", window="1h"))
                site.start().end()
            site.write_policy(policy(site.port, window="1h"))
            load = site.load(pause_us=200)
            time.sleep(0.05)
            began = time.monotonic_ns()
            guardd = site.start()
            tally = site.tally(load)
            assert tally.passed and tally.denied, tally
            took[how].append((tally.first_denied_ns - began) / 1e9)
            guardd.end()
            site.guard.unload()
    return [
        Figure.at_most(
            f"from exec to enforcing, {how}",
            0.5,
            median(values),
            " s",
            f"{min(values):.2f} to {max(values):.2f} s in {STARTS} starts",
        )
        for how, values in took.items()
    ]


def memory(site: Site) -> list[Figure]:
    """Read guardd's resident memory after many findings."""
    site.write_policy(policy(site.port))
    guardd = site.start()
    at_start = resident_kb(guardd.process.pid) / 1024
    ring = site.guard.map("ring")
    for _ in range(FINDINGS // 1000):
        site.connect(1000)
        guardd.until(lambda: not ring_backlog(ring.fd), "an empty ring", 60)
    return [
        Figure.at_most(
            f"guardd's resident memory after {FINDINGS} findings",
            45,
            resident_kb(guardd.process.pid) / 1024,
            " MB",
            f"{at_start:.1f} MB when it was ready; the ring's pages included",
        )
    ]


def to_journal(site: Site) -> list[Figure]:
    """Drain a ring that was filled before, and send as much by a bare loop."""
    site.write_policy(policy(site.port))
    site.start("--ring-bytes", str(RING_BYTES)).end()
    site.connect(1)
    rates: dict[str, list[float]] = {"send": [], "guard": []}
    for _ in range(DRAINS):
        for how, values in rates.items():
            if how == "guard":
                assert site.connect(EVENTS).denied == EVENTS
            else:
                site.connect(1)
            values.append(EVENTS / _drain(site, how))
            site.journald.sync()
    ledger = site.ledger()
    assert ledger.kernel_lost == ledger.lost == 0
    written = sum(n for n in ledger.findings.values() if n == 1)
    assert written >= DRAINS * EVENTS, "findings were lost"
    rate = {how: median(values) for how, values in rates.items()}
    return [
        Figure.at_least(
            "events from the ring to the journal / a bare loop of journal.send",
            0.6,
            rate["guard"] / rate["send"],
            "x",
            f"{rate['guard']:,.0f} a second / {rate['send']:,.0f}, none lost",
        )
    ]


def _drain(site: Site, how: str) -> float:
    script = f'mount --bind "$0" {RUNTIME} && mount --bind "$1" {VOLATILE}'
    script += ' && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
        + [str(site.journald.runtime), str(site.journald.directory)]
        + [sys.executable, "-m", "tests.bench.drain"]
        + [how, str(site.pin_dir), str(EVENTS)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(done.stdout)
