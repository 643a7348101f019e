# SPDX-License-Identifier: GPL-2.0-or-later
"""What every test may count on: root, a BPF file system, no stop-watch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from guard import pins

# A slow machine is no bug of the code under test.
settings.register_profile("guard", deadline=None)
settings.load_profile("guard")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say in one line what would else be a hundred strange failures."""
    if os.geteuid() != 0:
        pytest.exit("the tests work on the kernel: run them as root", returncode=1)
    # A guardd of a test has a mount namespace of its own: what it would mount
    # there itself, the test could not see.
    pins.ensure_bpffs(Path("/sys/fs/bpf"))
