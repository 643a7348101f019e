# SPDX-License-Identifier: GPL-2.0-or-later
"""What every test may count on: root, and hypothesis with no stop-watch."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A slow machine is no bug of the code under test.
settings.register_profile("guard", deadline=None)
settings.load_profile("guard")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say in one line what would else be a hundred strange failures."""
    if os.geteuid() != 0:
        pytest.exit("the tests work on the kernel: run them as root", returncode=1)
