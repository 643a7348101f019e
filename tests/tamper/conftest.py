# SPDX-License-Identifier: GPL-2.0-or-later
"""A guardd with a cgroup and a journald of its own, and programs of somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.site import Site, build_connects
from tests.tamper.others import compiled


@pytest.fixture(scope="session")
def connects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_connects(tmp_path_factory.mktemp("connects"))


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("others"))


@pytest.fixture
def site(tmp_path: Path, connects: Path) -> Iterator[Site]:
    with Site(tmp_path, connects) as site:
        yield site
