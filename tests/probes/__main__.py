# SPDX-License-Identifier: GPL-2.0-or-later
"""Try every route of tests/matrix.toml here and print a line for each.

Exit status 123 says that all went as the table has it, so that a crash cannot be
taken for that; 1 that something did not. Needs gcc, iproute2, nft and root.
"""

from __future__ import annotations

import sys

from tests.probes.box import LOCKED, Box, compare
from tests.probes.matrix import Code, Row, read

AS_EXPECTED = 123


def main(names: list[str]) -> int:
    """Try the routes of these names, or all."""
    rows = [row for row in read() if not names or row.name in names]
    wrong = 0
    with Box() as box:
        for locks, locked in LOCKED.items():
            with locked(box):
                wrong += sum([not as_expected(box, row, locks) for row in rows])
    return 1 if wrong or not rows else AS_EXPECTED


def as_expected(box: Box, row: Row, locks: str) -> bool:
    """Try a route, and print what became of it."""
    result = box.try_row(row)
    fault = compare(row, result, locks)
    parts = [f"{row.name}: {result.code.name}", f"{len(result.events)} findings"]
    if result.code is Code.UNTRIED:
        parts.append(result.said)
    parts.append(f"WRONG: {fault}" if fault else "as expected")
    print(f"{locks}: {', '.join(parts)}", flush=True)
    return not fault


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
