# SPDX-License-Identifier: GPL-2.0-or-later
"""Every route of tests/matrix.toml does here what the table says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.probes.box import LOCKED, Box, compare, kernel_release
from tests.probes.matrix import Code, Row, read
from tests.probes.security import SECURITY, renewed

ROWS = read()


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with Box() as box:
        yield box


@pytest.fixture(scope="module", params=LOCKED)
def locks(request: pytest.FixtureRequest, box: Box) -> Iterator[str]:
    with LOCKED[request.param](box):
        yield request.param


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_route(box: Box, locks: str, row: Row) -> None:
    result = box.try_row(row)
    fault = compare(row, result, locks)
    assert not fault, fault
    if result.code is Code.UNTRIED:
        pytest.skip(f"could not try on Linux {kernel_release()}: {result.said}")


def test_security_md_says_what_the_table_says() -> None:
    text = SECURITY.read_text()
    assert text == renewed(text, ROWS), "run `make security`"
