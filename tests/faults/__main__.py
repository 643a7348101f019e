# SPDX-License-Identifier: GPL-2.0-or-later
"""make soak: every fault at its full size, one after the other, and its figures.

The table of docs/faults.md is written when all that was asked for has passed; what
was not asked for keeps its row. The exit status is pytest's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.bench.__main__ import machine
from tests.faults.site import CHECKOUT
from tests.faults.trial import Figure

REPORT = CHECKOUT / "docs/faults.md"
BEGIN, END = "<!-- begin of what make soak writes -->", "<!-- end -->"
HEAD = """\
| fault | times | connects | leaked | lawful denied | judged | in the journal | of \
those lost, told | doubles | seconds | |
|---|---|---|---|---|---|---|---|---|---|---|
"""
SUM = "**sum**"


def row(figure: Figure) -> str:
    """Write a figure as a row of the table."""
    numbers = (
        *(figure.times, figure.tried, figure.leaked, figure.lawful_denied),
        *(figure.judged, figure.accounted, figure.lost, figure.doubles),
    )
    cells = [figure.fault, *(f"{number:,}" for number in numbers)]
    return "| " + " | ".join([*cells, f"{figure.seconds:.0f}", figure.note]) + " |"


def rows(text: str) -> dict[str, str]:
    """Give the rows that a report has, by their fault."""
    table = text.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def total(table: list[str]) -> str:
    """Write the last row: what can be added up."""
    cells = [line.strip("| ").split(" | ")[1:9] for line in table]
    sums = [
        sum(int(cell.replace(",", "")) for cell in column)
        for column in zip(*cells, strict=True)
    ]
    return "| " + " | ".join([SUM, *(f"{number:,}" for number in sums), "", ""]) + " |"


def main() -> int:
    """Run what was asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="as pytest's -k; default: all")
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile("r") as file:
        choice = ["-k", " or ".join(options.parts)] if options.parts else []
        tests = sorted(map(str, Path(__file__).parent.glob("test_soak_*.py")))
        status = pytest.main(
            ["-v", "-s", "-p", "no:cacheprovider", "--full", "--figures", file.name]
            + [*choice, *tests]
        )
        figures = [Figure(**json.loads(line)) for line in file]
    text = REPORT.read_text()
    table = rows(text) if options.parts else {}
    table.pop(SUM, None)
    table |= {figure.fault: row(figure) for figure in figures}
    lines = list(table.values())
    if status == pytest.ExitCode.OK:
        head, _, rest = text.partition(BEGIN)
        body = "\n".join([*lines, total(lines)])
        REPORT.write_text(
            f"{head}{BEGIN}\nMeasured {machine()}.\n\n{HEAD}{body}\n{END}"
            f"{rest.partition(END)[2]}"
        )
    else:
        print("\n".join(lines))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
