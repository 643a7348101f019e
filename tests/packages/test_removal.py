# SPDX-License-Identifier: GPL-2.0-or-later
"""What removing the package does where the guard cannot be taken out: it is refused.

The package's own script, with the checkout's programs, in a mount namespace that has a
BPF file system of its own: the guard under its usual pins, for a cgroup of the test's.
That dpkg and systemd take it so is shown in guests (tests/vm/scenarios/deb-postfix).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import cgroup2_mount, kill_cgroup
from tests.packages.conftest import CHECKOUT

ENFORCE = 'mode = "enforce"\n'
PROGRAMS = {"guardctl": "guard.cli.main", "guardd": "guard.daemon"}
# Systemd is said to run, and nothing of what is pinned here is seen elsewhere.
BEGIN = """\
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run/systemd
mkdir /run/systemd/system
mkdir -p /run/smtp-guard
mount -t tmpfs tmpfs /run/smtp-guard
"""
GUARDED = """\
guardctl load --policy "$POLICY" --cgroup "$CGROUP" >&2
guardd --policy "$POLICY" --cgroup "$CGROUP" >&2 2>&1 &
guardd=$!
until guardctl status --json | grep -q '"pid": [0-9]'; do sleep 0.2; done
remove || echo "refused $?"
guardctl status >&2 && echo "in force"
kill $guardd
wait $guardd
remove && echo removed
guardctl status >&2 || echo "not in force $?"
"""
BY_HAND = """\
guardctl load --policy "$POLICY" --cgroup "$CGROUP" >&2
guardctl() { echo "broken" >&2; return 1; }
remove || echo "refused $?"
rm -rf /sys/fs/bpf/smtp-guard /run/smtp-guard/smtp-guard.json
remove && echo removed
"""
NOTHING = "remove && echo removed\n"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    folder = cgroup2_mount() / f"smtp-guard-removal-{os.getpid()}"
    folder.mkdir()
    yield folder
    kill_cgroup(folder)


def script(package: str) -> str:
    """Give what a package runs before it is removed, as a shell function."""
    if package == "deb":
        text = (CHECKOUT / "debian/prerm").read_text().replace("#DEBHELPER#", "")
        return f"remove() (\nset -- remove\n{text}\n)\n"
    spec = (CHECKOUT / "smtp-guard.spec").read_text()
    found = re.search(r"^%preun\n(.*?)^%postun$", spec, re.MULTILINE | re.DOTALL)
    assert found
    lines = [line for line in found[1].splitlines() if not line.startswith("%")]
    text = "\n".join(lines).replace("%{units}", "UNITS")
    return f"remove() (\nset -e -- 0\n{text}\n)\n"


def run(
    package: str, acts: str, cgroup: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    folder.chmod(0o755)
    policy = folder / "policy.toml"
    policy.write_text(ENFORCE)
    for name, module in PROGRAMS.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
    return subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private"]
        + ["sh", "-c", f"set -e\n{BEGIN}{script(package)}set +e\n{acts}"],
        env={
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "POLICY": str(policy),
            "CGROUP": str(cgroup),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("package", ["deb", "rpm"])
def test_a_guard_that_cannot_be_taken_out_keeps_its_package(
    package: str, cgroup: Path, tmp_path: Path
) -> None:
    done = run(package, GUARDED, cgroup, tmp_path)
    said = ["refused 1", "in force", "removed", "not in force 69"]
    assert done.stdout.splitlines() == said, done
    assert "stop it first" in done.stderr and "not removed" in done.stderr


@pytest.mark.parametrize("package", ["deb", "rpm"])
def test_where_guardctl_cannot_run_the_way_by_hand_is_said(
    package: str, cgroup: Path, tmp_path: Path
) -> None:
    done = run(package, BY_HAND, cgroup, tmp_path)
    assert done.stdout.splitlines() == ["refused 1", "removed"], done
    assert "rm -rf /sys/fs/bpf/smtp-guard /run/smtp-guard" in done.stderr


@pytest.mark.parametrize("package", ["deb", "rpm"])
def test_with_nothing_in_force_it_goes_quietly(
    package: str, cgroup: Path, tmp_path: Path
) -> None:
    done = run(package, NOTHING, cgroup, tmp_path)
    assert (done.stdout, done.stderr) == ("removed\n", ""), done
