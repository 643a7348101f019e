# SPDX-License-Identifier: GPL-2.0-or-later
"""A journald of each test's own, what writes to it, and guardctl."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guard.finding import Finding
from guard.journal import Found, JournalWriter
from guard.query import Filter, Journal, connections
from tests.journald import Journald

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    """Give a journald that the test may stop, restart and kill."""
    with Journald(tmp_path / "j") as journald:
        yield journald


@pytest.fixture
def writer(journald: Journald) -> Iterator[JournalWriter]:
    made = JournalWriter(str(journald.socket))
    yield made
    made.close()


@pytest.fixture
def store(journald: Journald, writer: JournalWriter) -> Callable[..., Journal]:
    """Give what writes findings and waits until they are in the journal."""

    def write(*found: Found) -> Journal:
        for one in found:
            writer.write(one, 5)
        journald.sync()
        return Journal(str(journald.directory))

    return write


def rows(journal: Journal, **kwargs: object) -> list[Finding]:
    """Ask for connections; an entry that cannot be read fails the test."""
    how = {
        name: kwargs.pop(name) for name in ("newest_first", "ends") if name in kwargs
    }

    def torn(error: Exception) -> None:
        raise AssertionError(error)

    return list(connections(journal, Filter(**kwargs), torn, **how))  # type: ignore


def guardctl(
    *argv: str | Path, columns: int = 80, **kwargs: object
) -> subprocess.CompletedProcess[str]:
    """Run guardctl as a user would, in a terminal so wide."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-m", "guard.cli.main", *map(str, argv)],
        cwd=CHECKOUT,
        env=os.environ | {"COLUMNS": str(columns), "TZ": "Europe/Berlin"},
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,  # type: ignore[call-overload]
    )
    return done
