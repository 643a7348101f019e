# SPDX-License-Identifier: GPL-2.0-or-later
"""One world and one guard for all tests here; a policy and a reader for each."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.hosts import own_addresses
from guard.kernel import Guard
from tests.kernel.world import PROGRAMS, PROGRAMS_PREFIX, Watch, World, compile_c


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(autouse=True)
def on_the_host(world: World) -> Iterator[None]:
    """Every test acts on the test's host, never on this machine's network."""
    with world.inside(world.host):
        yield


@pytest.fixture(scope="session")
def guard(world: World) -> Iterator[Guard]:
    # not till the end: this thread is with all other tests
    with world.inside(world.host):
        guard = Guard.load(world.pin_dir)
    try:
        with world.inside(world.host):
            guard.set_hosts(own_addresses())
            guard.attach(world.guarded)
        yield guard
    finally:
        with world.inside(world.host):
            guard.unload()
        assert not world.pin_dir.exists()


@pytest.fixture
def watch(guard: Guard) -> Iterator[Watch]:
    watch = Watch(guard)
    yield watch
    watch.close()


@pytest.fixture
def local_server(world: World, watch: Watch) -> Iterator[None]:
    """Local connects are let pass and reported, and one server takes them."""
    watch.apply("")
    with world.serve(world.host, "127.0.0.1"):
        yield


@pytest.fixture(scope="session")
def caller(programs: Path) -> Path:
    return compile_c("caller.c", programs / "caller", "-static")


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder that only root can write, all the way up, and all can read."""
    folder = Path(tempfile.mkdtemp("", f"{PROGRAMS_PREFIX}{os.getpid()}-", PROGRAMS))
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)
