# SPDX-License-Identifier: GPL-2.0-or-later
"""No memory for guardd, and none for the maps' rows, under connects."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from guard.abi import Counter
from tests.faults.memory import MemoryGroup
from tests.faults.site import Site, Tally
from tests.faults.trial import Size, Trial

Trials = Callable[..., Trial]
MIB = 1 << 20
OUT_OF_MEMORY = (-signal.SIGKILL, 71)  # killed, or told ENOMEM by the kernel (EX_OSERR)


def test_guardd_out_of_memory(group: MemoryGroup, trial: Trials, size: Size) -> None:
    """Killed while it starts, wherever its limit is met, or later by a neighbour."""
    chance = random.Random(5)
    name = f"guardd out of memory (a limit of cgroup v{group.version})"
    started = refused = 0
    with trial(name) as t:
        t.connecting(100)
        t.guardd.end(signal.SIGKILL)
        t.memory = group.path
        for turn in t.turns(size(5, 100)):
            group.limit(int(chance.uniform(6, 24) * MIB) if turn % 2 else 64 * MIB)
            before = group.kills
            guardd = t.starting()
            while guardd.process.poll() is None and "READY=1" not in guardd.messages:
                pass
            if guardd.process.poll() is None:
                started += 1
                Path(f"/proc/{guardd.process.pid}/oom_score_adj").write_text("1000")
                eat = f"echo $$ >{group.path}/cgroup.procs; exec tail /dev/zero"
                neighbour = subprocess.run(["sh", "-ec", eat], check=False)
                assert neighbour.returncode == -signal.SIGKILL
            assert guardd.process.wait(20) in OUT_OF_MEMORY, guardd.said()
            refused += guardd.process.returncode != -signal.SIGKILL
            assert group.kills > before or guardd.process.returncode == 71
            assert "Traceback" not in guardd.said()
        t.memory = None
        t.note = f"{started} of them after it was ready, {refused} were told ENOMEM"
        t.start()
        t.settled()
    assert started > 0


def test_rows_without_memory(
    group: MemoryGroup, site: Site, trial: Trials, size: Size, flood: Path
) -> None:
    """The maps are charged to whoever made them: no row fits any more."""
    name = f"no memory for the maps' rows (a limit of cgroup v{group.version})"
    with trial(name, "--ring-bytes", str(4 * MIB), memory=group.path) as t:
        group.leave(t.guardd.process.pid)
        t.connecting(500)
        for _ in t.turns(size(1, 10)):
            with subprocess.Popen(
                [flood, site.cgroup, str(site.port), "3", "20000", "5", "400"],
                stdout=subprocess.PIPE,
            ) as flooding:
                # again and again: what guardd gives back meanwhile is room for rows
                while flooding.poll() is None:
                    group.fill()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        flooding.wait(0.1)
                assert flooding.stdout and not flooding.returncode
                t.add(False, Tally(**json.loads(flooding.stdout.read())))
            group.no_limit()
        counters = site.guard.counters()
        short = {
            cause.name: counters[cause]
            for cause in (Counter.NO_FOLD, Counter.NO_STORAGE, Counter.NO_OWNER)
        }
        t.note = ", ".join(f"{name} {times}" for name, times in short.items())
        t.settled()
    assert any(short.values()), "there was memory enough: no test"
