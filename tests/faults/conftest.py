# SPDX-License-Identifier: GPL-2.0-or-later
"""A site of its own for each test, and how much a soak test does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.faults.memory import MemoryGroup
from tests.faults.site import Site, build, build_connects
from tests.faults.trial import Figure, Size, Trial


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="tests/faults: everything as often as docs/faults.md says",
    )
    parser.addoption(
        "--figures", metavar="FILE", help="tests/faults: append the figures, as JSON"
    )


@pytest.fixture(scope="session")
def connects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_connects(tmp_path_factory.mktemp("connects"))


@pytest.fixture(scope="session")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("flood"), "flood")


@pytest.fixture(scope="session")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("hold"), "hold")


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    """A memory cgroup; asked for before the site, it is removed after it."""
    try:
        group = MemoryGroup(f"smtp-guard-faults-{os.getpid()}")
    except LookupError as error:
        pytest.skip(str(error))
    yield group
    group.close()


@pytest.fixture
def site(tmp_path: Path, connects: Path) -> Iterator[Site]:
    with Site(tmp_path, connects) as site:
        yield site


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Size:
    # not registered when pytest was started for all of tests/
    return Size(bool(request.config.getoption("--full", default=False)))


@pytest.fixture
def trial(request: pytest.FixtureRequest, site: Site) -> Iterator[Callable[..., Trial]]:
    """Make the trials of a test; their figures are kept, also of one that fails."""
    figures: list[Figure] = []

    def make(fault: str, *options: str, **more: Any) -> Trial:
        return Trial(site, figures, fault, *options, **more)

    yield make
    if path := request.config.getoption("--figures", default=None):
        with Path(path).open("a") as file:
            file.writelines(f"{json.dumps(asdict(figure))}\n" for figure in figures)
