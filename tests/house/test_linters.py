# SPDX-License-Identifier: GPL-2.0-or-later
"""Linters as tests: their own output is the message of the failure."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
# The tables of the contract are laid out by hand, to be read as tables.
LAID_BY_HAND = {"guard.h"}


def lint(*argv: str | Path) -> None:
    """Run a linter from the checkout; it must find nothing."""
    program = shutil.which(argv[0], path=f"{Path(sys.executable).parent}:/usr/bin")
    if not program:
        pytest.skip(f"{argv[0]} is not installed: make setup")
    done = subprocess.run(
        [program, *argv[1:]], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{argv[0]} says:\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    lint("ruff", "check", ".")


def test_ruff_would_change_no_layout() -> None:
    lint("ruff", "format", "--check", "--diff", ".")


def test_types_hold() -> None:
    lint(sys.executable, "-m", "mypy")
    for package in (
        "tests.lab",
        "tests.house",
        "tests.probes",
        "tests.vm",
        "tests.fuzz",
        "tests.packages",
        "tests.docs",
        "tests.mail",
    ):
        lint(sys.executable, "-m", "mypy", "-p", package)


def test_clang_format_would_change_nothing() -> None:
    sources = [p for p in CHECKOUT.glob("bpf/*.[ch]") if p.name not in LAID_BY_HAND]
    assert sources
    lint("clang-format", "--dry-run", "-Werror", *sources)


def test_shellcheck_finds_nothing() -> None:
    scripts = [
        path
        for top in ("tests", "debian", "units", "vagrant", "docs", ".ci")
        for path in CHECKOUT.glob(f"{top}/**/*")
        if path.is_file() and _is_shell(path)
    ]
    assert CHECKOUT / ".ci/run" in scripts
    lint("shellcheck", *scripts)


def _is_shell(path: Path) -> bool:
    if path.suffix == ".bash":  # is read by a shell, and does not begin with #!
        return True
    with path.open("rb") as file:
        first = file.readline()
    return first.startswith(b"#!") and first.split(b"/")[-1].strip() in (b"sh", b"bash")
