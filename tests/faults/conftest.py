# SPDX-License-Identifier: GPL-2.0-or-later
"""A site of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.site import Site, build_connects


@pytest.fixture(scope="session")
def connects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_connects(tmp_path_factory.mktemp("connects"))


@pytest.fixture
def site(tmp_path: Path, connects: Path) -> Iterator[Site]:
    with Site(tmp_path, connects) as site:
        yield site
