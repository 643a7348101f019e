# SPDX-License-Identifier: GPL-2.0-or-later
"""A guardd with a cgroup and a journald of its own, and programs of somebody else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.site import Site, build_connects
from tests.tamper.others import SOURCE


@pytest.fixture(scope="session")
def connects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_connects(tmp_path_factory.mktemp("connects"))


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the programs of others."""
    target = tmp_path_factory.mktemp("others") / "others.bpf.o"
    machine = subprocess.run(
        ["gcc", "-print-multiarch"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", f"-I/usr/include/{machine}"]
        + ["-c", str(SOURCE), "-o", str(target)],
        check=True,
    )
    return target


@pytest.fixture
def site(tmp_path: Path, connects: Path) -> Iterator[Site]:
    with Site(tmp_path, connects) as site:
        yield site
