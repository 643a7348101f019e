# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab for each test file, and a Postfix running in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, Postfix


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def postfix(lab: Lab) -> Postfix:
    postfix = Postfix(lab)
    postfix.start()
    return postfix
