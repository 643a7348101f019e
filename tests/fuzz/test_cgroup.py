# SPDX-License-Identifier: GPL-2.0-or-later
"""A cgroup of v1 whose name reads like the line of another cgroup of v2."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.origin import cgroup2_path, unit_of

FORGED = "system.slice/postfix.service"


@pytest.fixture
def hierarchy(tmp_path: Path) -> Iterator[Path]:
    """Give a hierarchy of cgroup v1 that nobody else uses."""
    name = f"smtpguardfuzz{os.getpid()}"
    mount = ["mount", "-t", "cgroup", "-o", f"none,name={name}", "none", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no cgroup v1 here: {done.stderr.strip()}")
    yield tmp_path
    for folder, _, _ in os.walk(tmp_path, topdown=False):
        if folder != str(tmp_path):
            os.rmdir(folder)
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("end", ["\x0b", "\r", "\u2028", "\x85"])
def test_it_is_not_believed(hierarchy: Path, end: str) -> None:
    true = cgroup2_path(Path("/proc/self/cgroup").read_bytes())
    folder = hierarchy / f"x{end}0::" / FORGED
    folder.mkdir(parents=True)
    # A child that ends when its stdin does, moved there.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        (folder / "cgroup.procs").write_text(str(child.pid))
        given = Path(f"/proc/{child.pid}/cgroup")
        forged = [
            line for line in given.read_text().splitlines() if line.startswith("0::")
        ]
        assert forged[0] == f"0::/{FORGED}", "the control: read as text it is forged"
        assert cgroup2_path(given.read_bytes()) == true
        assert unit_of(true) != "postfix.service"
