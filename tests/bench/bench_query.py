# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl who-connected against journalctl, over 1,000,000 real entries.

Run as root from the checkout: python -m tests.bench.bench_query. Prints medians
and ratios; `--journal DIR` keeps the journal between runs (some 900 MB).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from guard.finding import Finding, Kind
from guard.journal import JournalWriter
from tests.journal.findings import finding
from tests.journald import Journald

ENTRIES = 1_000_000
# Share of the entries of each user: a tenth, a hundredth, a thousandth, one.
UIDS = {1010: 0.1, 1011: 0.01, 1012: 0.001}
RARE = 1013


def traffic(count: int, rare: bool) -> list[Finding]:
    """Give a day of a mail host in small: most connects local, each one ended."""
    dice = random.Random(25)
    scripts = [f"/srv/www/shop{n}/public" for n in range(300)]
    made: list[Finding] = []
    rare_made = False
    while len(made) < count:
        n = len(made)
        lot = dice.random()
        uid = 2000 + dice.randrange(200)
        for special, share in UIDS.items():
            if lot < share:
                uid = special
                break
            lot -= share
        if rare and not rare_made and n >= count // 2:
            uid, rare_made = RARE, True
        who = {
            "uid": uid,
            "user": f"u{uid}",
            "seq": n,
            "pid": 1000 + n % 30000,
            "connection": f"c3e7caf302f84c289c136585bbc253b9-{n}",
            "cwd": dice.choice(scripts),
            "src": ("127.0.0.1", 32768 + n % 28000),
        }
        if dice.random() < 0.1:
            made.append(finding(Kind.DENIED, **who | {"src": None}))
        else:
            made += [finding(Kind.LOCAL, **who), finding(Kind.CLOSED, **who)]
    return made[:count]


def build(directory: Path) -> None:
    """Have a real journald write the journal."""
    with Journald(directory) as journald:
        writer = JournalWriter(str(journald.socket))
        start = time.monotonic()
        for done in range(0, ENTRIES, 10_000):
            for found in traffic(10_000, rare=done == 0):
                stamped = dataclasses.replace(
                    found,
                    time_us=time.time_ns() // 1000,
                    connection=f"{found.connection}-{done}",
                )
                writer.write(stamped, 30)
        journald.sync()
        print(f"{ENTRIES} entries written in {time.monotonic() - start:.0f} s")


def clock(argv: list[str], runs: int) -> tuple[float, int]:
    """Run argv; give the median seconds and the lines it printed."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        done = subprocess.run(argv, capture_output=True, check=False)
        took.append(time.perf_counter() - start)
        assert done.returncode in (0, 1), done
    return median(took), done.stdout.count(b"\n")


def main() -> None:
    """Print a line per query."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal", type=Path, help="where it is, or shall be kept")
    parser.add_argument("--runs", type=int, default=5)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = flags.journal or Path(scratch, "journal")
        if not place.exists():
            build(place)
        measure(place / "log", flags.runs)


def measure(journal: Path, runs: int) -> None:
    """Time both programs on queries from one row to a hundred thousand entries."""
    since = "1 day ago"
    print("seconds: ours as table, ours --json; journalctl short, verbose, json")
    print("  rows entries   table  --json   short verbose    json  table/verbose")
    for uid in (RARE, 1012, 1011, 1010):
        ours = [sys.executable, "-m", "guard.cli.main", "who-connected"]
        ours += ["--directory", str(journal), "--uid", str(uid), "--since", since]
        theirs = ["journalctl", "-q", "--no-pager", "-D", str(journal)]
        theirs += ["--since", since, "_UID=0", f"SMTPGUARD_UID={uid}"]
        table, rows = clock(ours, runs)
        as_json, _ = clock([*ours, "--json"], runs)
        short, entries = clock(theirs, runs)
        verbose, _ = clock([*theirs, "-o", "verbose"], runs)
        full, _ = clock([*theirs, "-o", "json"], runs)
        times = "".join(
            f"{took:8.3f}" for took in (table, as_json, short, verbose, full)
        )
        print(
            f"{max(rows - 1, 0):6}{entries:8}{times}  {table / verbose:.2f};"
            f" {table / short:.2f} of short; --json {as_json / full:.2f} of json"
        )


if __name__ == "__main__":
    main()
