# SPDX-License-Identifier: GPL-2.0-or-later
"""The built wheel and sdist, not the checkout: what others get is whole."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.house.test_house import files
from tests.packages.conftest import CHECKOUT

LOAD = """\
from guard import kernel, libbpf, lsm
for path in (kernel.OBJECT, lsm.OBJECT):
    with libbpf.Object(path) as found:
        if path == kernel.OBJECT:
            found.load()
        print(path)
"""


def test_the_sdist_has_every_file_of_the_project(sdist: Path) -> None:
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    wanted = {str(path.relative_to(CHECKOUT)) for path in files()}
    lacking = {name for name in wanted - names if "/." not in f"/{name}"}
    assert not lacking, "not in MANIFEST.in"
    assert not [name for name in names if name.endswith((".o", ".pyc"))]


def test_the_wheel_has_all_modules_policies_and_the_objects(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(CHECKOUT)) for p in CHECKOUT.glob("guard/**/*.py")}
    policies = {f"guard/policies/{p.name}" for p in CHECKOUT.glob("policies/*.toml")}
    assert policies
    objects = {f"guard/{path.stem}.o" for path in CHECKOUT.glob("bpf/*.bpf.c")}
    assert modules | policies | objects <= packed


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the programs of a fresh environment with the wheel, and Debian's modules."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run(
        ["/usr/bin/python3", "-m", "venv", "--system-site-packages", venv], check=True
    )
    pip: list[str | Path] = [venv / "bin/python", "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True)
    return venv / "bin"


def test_both_programs_start_from_the_wheel(venv: Path, tmp_path: Path) -> None:
    for program in ("guardd", "guardctl"):
        done = subprocess.run(
            [venv / program, "--help"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "usage:" in done.stdout.lower()


def test_the_kernel_takes_the_object_of_the_wheel(venv: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [venv / "python", "-I", "-c", LOAD],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert len(found) == 2
    assert all(path.startswith(str(venv.parent)) for path in found)
