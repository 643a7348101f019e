# SPDX-License-Identifier: GPL-2.0-or-later
"""Every package, built once, from a copy of the checkout without what builds leave."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "*.o", "__pycache__"
)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("packages") / "source"
    shutil.copytree(CHECKOUT, source, ignore=LEFT_OUT)
    return source


def make(source: Path, target: str, pattern: str) -> Path:
    """Run make; give the one file that it made."""
    done = subprocess.run(
        ["make", target],
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"make {target}:\n{done.stdout[-4000:]}"
    (made,) = source.glob(f"dist/{pattern}")
    return made


@pytest.fixture(scope="session")
def deb(source: Path) -> Path:
    return make(source, "deb", "*.deb")


@pytest.fixture(scope="session")
def rpm(source: Path) -> Path:
    return make(source, "rpm", "*.rpm")


@pytest.fixture(scope="session")
def wheel(source: Path) -> Path:
    return make(source, "wheel", "*.whl")


@pytest.fixture(scope="session")
def sdist(wheel: Path) -> Path:
    (made,) = wheel.parent.glob("*.tar.gz")  # the wheel was built from it
    return made
