# SPDX-License-Identifier: GPL-2.0-or-later
"""Grounds to act on: one for many tests, or one of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backstop.ground import KINDS, Ground
from tests.faults.site import build_connects
from tests.kernel.world import MX4, MX6, World


@pytest.fixture(scope="session")
def connects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_connects(tmp_path_factory.mktemp("connects"))


@pytest.fixture(scope="module", params=KINDS)
def standing(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    connects: Path,
) -> Iterator[Ground]:
    """A ground whose lock is in force, for all tests of a module."""
    folder = tmp_path_factory.mktemp("ground")
    with Ground(folder, connects, request.param) as ground:
        ground.start()
        yield ground


@pytest.fixture(params=KINDS)
def ground(
    request: pytest.FixtureRequest, tmp_path: Path, connects: Path
) -> Iterator[Ground]:
    """A ground of the test's own, where no guardd runs yet."""
    with Ground(tmp_path, connects, request.param) as ground:
        yield ground


@pytest.fixture
def nftables_ground(tmp_path: Path, connects: Path) -> Iterator[Ground]:
    """The same, of nftables alone."""
    with Ground(tmp_path, connects, "nftables") as ground:
        yield ground


@pytest.fixture(scope="session")
def bare() -> Iterator[World]:
    """The same two hosts without any lock: the control of every refusal."""
    with World() as world, world.serve(world.mx, MX4, MX6):
        yield world


@pytest.fixture(params=[MX4, MX6], ids=["ipv4", "ipv6"])
def mx(request: pytest.FixtureRequest) -> str:
    """The MX's address, of each family."""
    return str(request.param)
