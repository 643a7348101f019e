# SPDX-License-Identifier: GPL-2.0-or-later
"""The built wheel, not the checkout: what a mail host gets is whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "*.o", "__pycache__", "tests"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build one from a copy: setuptools would pack what an old build left."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(CHECKOUT, source, ignore=LEFT_OUT)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps"]
        + ["--no-build-isolation", "--wheel-dir", source.parent, "."],
        cwd=source,
        check=True,
    )
    [wheel] = source.parent.glob("*.whl")
    return wheel


def test_the_wheel_has_all_modules_policies_and_the_object(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(CHECKOUT)) for p in CHECKOUT.glob("guard/**/*.py")}
    policies = {f"guard/policies/{p.name}" for p in CHECKOUT.glob("policies/*.toml")}
    assert policies
    assert modules | policies | {"guard/guard.bpf.o"} <= packed


def test_both_programs_start_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    for program in ("guard.daemon", "guard.cli.main"):
        code = (
            f"import sys; from {program} import main; sys.argv[1:] = ['--help']; main()"
        )
        done = subprocess.run(
            ["/usr/bin/python3", "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "usage:" in done.stdout.lower()
