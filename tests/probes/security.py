# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the lists of SECURITY.md from tests/matrix.toml: `make security`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from tests.probes.matrix import Code, Row, Sort, read

SECURITY = Path(__file__).parents[2] / "SECURITY.md"
BEGIN = "<!-- from tests/matrix.toml by `make security`: begin -->\n"
END = "<!-- from tests/matrix.toml by `make security`: end -->\n"
WIDTH = 88
SECOND = """\
### Stopped by the second lock

With the second lock in force (by nftables, as it is unless `[backstop]` says otherwise)
no first packet of these leaves, and a finding of the kind `backstop` tells. Without it
they are not stopped.
"""
HEADS = {
    Sort.NOT_STOPPED: """\
### Not stopped

Nothing is denied and nothing is found.
""",
    Sort.RECORDED: """\
### Recorded, not stopped

It comes through, and a finding says whose it was.
""",
    Sort.STOPPED: """\
### Stopped

Denied, with a finding that names who tried, unless a rule allows it.
""",
}


def lists(rows: Sequence[Row]) -> str:
    """Give the four lists, one line of the table a point."""
    found = {
        head: [row for row in rows if row.sort is sort and not row.by_second]
        for sort, head in HEADS.items()
    }
    second = [row for row in rows if row.by_second]
    *others, stopped = found.items()
    parts = [*others, (SECOND, second), stopped]
    return "\n".join(f"{head}\n{''.join(map(_point, own))}" for head, own in parts)


def _point(row: Row) -> str:
    text = row.what
    if row.why:
        text += f": {row.why}"
    untried = sorted(
        kernel
        for kernel, code in row.codes["first"].items()
        if code is Code.UNTRIED and kernel != "default"
    )
    if untried:
        text += f" (not tried on Linux {', '.join(untried)})"
    return (
        textwrap.fill(
            text,
            WIDTH,
            initial_indent="- ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        + "\n"
    )


def renewed(text: str, rows: Sequence[Row]) -> str:
    """Give SECURITY.md's text with the lists as the table has them."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError("SECURITY.md has lost the marks around its lists")
    return f"{before}{BEGIN}\n{lists(rows)}\n{END}{after}"


if __name__ == "__main__":
    SECURITY.write_text(renewed(SECURITY.read_text(), read()))
