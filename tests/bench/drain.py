# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a full ring gets to the journal, in a process of its own.

  python -m tests.bench.drain guard PIN_DIR N   N events of a ring, by the scribe
  python -m tests.bench.drain send PIN_DIR N    the same entries, by journal.send

The second reads one event, and sends the fields that guardd would make of it N
times: the bare loop that the first is compared with. Prints seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from systemd import journal

from guard.event import Event
from guard.finding import Finding
from guard.journal import lines
from guard.kernel import Guard
from guard.origin import Naming
from guard.ring import Ring
from guard.scribe import Scribe


def scribe_seconds(guard: Guard, count: int) -> float:
    """Let the scribe write what is in the ring."""
    scribe = Scribe(guard, Naming(), lambda found: None)
    began = time.perf_counter()
    scribe.start()
    while scribe.written < count:
        time.sleep(0.001)
    return time.perf_counter() - began


def send_seconds(guard: Guard, count: int) -> float:
    """Send one finding's fields with python3-systemd's journal.send()."""
    seen: list[Event] = []
    Ring(guard, seen.append, lambda error: None).consume(1)
    finding: Finding = Naming().finding(seen[0])
    fields = dict(line.split("=", 1) for line in lines(finding))
    text = fields.pop("MESSAGE")
    began = time.perf_counter()
    for _ in range(count):
        journal.send(text, **fields)
    return time.perf_counter() - began


def main() -> None:
    """Print the seconds that one of the two took."""
    how, pin_dir, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    ways = {"guard": scribe_seconds, "send": send_seconds}
    print(ways[how](Guard(pin_dir), count))


if __name__ == "__main__":
    main()
