# SPDX-License-Identifier: GPL-2.0-or-later
"""make bench: every figure that the guard is held to, measured on this machine.

All ratios come from one run that takes turns, all values are medians, so that a
machine that is busy with something else does both sides the same wrong. With --write
the table also goes to docs/benchmarks.md. The exit status is 1 when a target is
missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import backstop, daemon, denied, hooks, mail, php, verdict
from tests.bench.figure import Figure
from tests.faults.site import CHECKOUT, Site, build_connects

REPORT = CHECKOUT / "docs/benchmarks.md"
BEGIN, END = "<!-- begin of what make bench writes -->", "<!-- end -->"
PARTS: dict[str, Callable[[Site], list[Figure]]] = {
    "hooks": hooks.measure,
    "denied": denied.measure,
    "backstop": backstop.measure,
    "verdict": verdict.measure,
    "journal": daemon.to_journal,
    "start": daemon.starts,
    "memory": daemon.memory,
    "mail": mail.measure,
    "php": php.measure,
}
QUERY = "query"
MANY = 1000
MARKS = {True: "", False: " **missed**", None: ""}


@contextlib.contextmanager
def made_site(part: str) -> Iterator[Site]:
    """Make a site; the verdict's caller runs where systemd puts its units."""
    with tempfile.TemporaryDirectory(prefix="smtp-guard-bench-") as scratch:
        folder = Path(scratch)
        site = Site(folder, build_connects(folder))
        folder.chmod(0o755)  # the ordinary user of denied.py executes from it
        slice_ = site.cgroup.with_name("system.slice")
        ours = part == "verdict" and not slice_.exists()
        if part == "verdict":
            slice_.mkdir(exist_ok=True)
            site.cgroup = slice_ / f"{site.cgroup.name}.service"
        try:
            with site:
                yield site
        finally:
            if ours:
                slice_.rmdir()


def query() -> tuple[list[Figure], str]:
    """Run bench_query, which prints a table of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_query"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    # rows, entries, then seconds: table, --json, journalctl short, verbose, json
    rows = [
        [float(word) for word in line.split(";")[0].split()]
        for line in done.stdout.splitlines()
        if ";" in line and " of short" in line
    ]
    many = [row for row in rows if row[1] >= MANY]
    few = [row for row in rows if row[1] < MANY]
    return [
        Figure.at_most(
            "who-connected --uid over 1,000,000 entries / journalctl -o verbose",
            1.5,
            max(row[2] / row[5] for row in many),
            "x",
            f"the worst of {len(many)} queries that {MANY} entries or more match",
        ),
        Figure.told(
            "the same / journalctl, which then reads only the messages",
            f"{max(row[2] / row[4] for row in many):.2f}x",
        ),
        Figure.told(
            "the same, where next to nothing matches",
            f"{max(row[2] for row in few):.2f} s",
            f"journalctl: {max(row[5] for row in few):.2f} s; the start of Python",
        ),
    ], done.stdout


def machine() -> str:
    """Say what this was measured on."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return (
        f"{time.strftime('%Y-%m-%d')}, Linux {platform.release()}, {os.cpu_count()} "
        f"CPUs ({model}), Python {platform.python_version()}"
    )


def report(figures: list[Figure], extra: str) -> str:
    """Make the part of docs/benchmarks.md that is measured."""
    rows = "".join(
        f"| {f.what} | {f.target} | {f.measured}{MARKS[f.good]} | {f.detail} |\n"
        for f in figures
    )
    text = (
        f"Measured {machine()}.\n\n"
        f"| figure | target | measured | made of |\n|---|---|---|---|\n{rows}"
    )
    return text + (f"\n```text\n{extra.rstrip()}\n```\n" if extra else "")


def write(text: str) -> None:
    """Put the measured part between its two marks of the report."""
    old = REPORT.read_text()
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    REPORT.write_text(f"{head}{BEGIN}\n{text}{END}{tail}")


def main() -> int:
    """Run what was asked for; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all of them")
    parser.add_argument("--write", action="store_true", help=f"update {REPORT.name}")
    options = parser.parse_args()
    known = [*PARTS, QUERY]
    if unknown := set(options.parts) - set(known):
        parser.error(f"no {', '.join(unknown)}; there are: {', '.join(known)}")
    if options.write and options.parts:
        parser.error("--write takes all parts: the report is one run")
    figures: list[Figure] = []
    extra = ""
    for part in options.parts or known:
        print(f"{part} ...", file=sys.stderr, flush=True)
        if part == QUERY:
            found, extra = query()
        else:
            with made_site(part) as site:
                found = PARTS[part](site)
        for figure in found:
            verdict_ = {True: "ok", False: "MISSED", None: ""}[figure.good]
            print(
                f"{figure.measured:>9} {figure.target:>10} {verdict_:6} {figure.what}"
            )
            print(f"{'':27} {figure.detail}", flush=True)
        figures += found
    if extra:
        print(extra)
    if options.write:
        write(report(figures, extra))
    return int(any(figure.good is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
