# SPDX-License-Identifier: GPL-2.0-or-later
"""An upgrade to programs and Python of another contract, and back, with both locks.

A checkout with another GUARD_ABI and another struct policy, compiled for this; its own
guardctl takes over from ours, and ours from it. With packages and units, under other
kernels: tests/vm/scenarios/deb-upgrade.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from guard import abi
from guard.backstop.keeper import remove_all
from guard.kernel import take_out
from tests.backstop.flow import RESET
from tests.kernel.world import MX4, MX6, SMTP, Child, World
from tests.packages.conftest import CHECKOUT
from tests.vm.debs import change_contract

POLICY = f"""\
mode = "enforce"
[[rule]]
name = "lawful"
to = ["{MX4}"]
verdict = "allow"
[backstop]
kind = "nftables"
"""


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a checkout of another contract, with its objects."""
    tree = tmp_path_factory.mktemp("later")
    for name in ("guard", "bpf", "policies"):
        shutil.copytree(CHECKOUT / name, tree / name)
    shutil.copy(CHECKOUT / "Makefile", tree)
    change_contract(tree)
    subprocess.run(["make", "-C", tree, "object"], check=True, capture_output=True)
    return tree


def until_told(told: mmap.mmap) -> dict[tuple[str, int], int]:
    """Connect to both addresses until told to stop: how each ended, and how often."""
    ends: dict[tuple[str, int], int] = {}
    while not told[0]:
        for family, address in ((socket.AF_INET, MX4), (socket.AF_INET6, MX6)):
            with socket.socket(family) as client:
                client.settimeout(30)
                # closed by a reset: ports in TIME_WAIT would be used up
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end = address, client.connect_ex((address, SMTP))
            ends[end] = ends.get(end, 0) + 1
    return ends


def unseen(address: str) -> None:
    """Connect where no hook sees it."""
    with socket.create_connection((address, SMTP), timeout=5):
        pass


def test_it_takes_over_with_nothing_between(
    world: World, later: Path, tmp_path: Path
) -> None:
    # of its own: other tests' guard, whatever it denies by now, is at world.guarded
    pins, cgroup = world.pin_dir.with_name(f"{world.name}-contract"), world.base / "own"
    cgroup.mkdir()
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)

    def load(tree: Path) -> None:
        netns = f"/proc/{os.getpid()}/fd/{world.host}"
        argv = [sys.executable, "-m", "guard.cli.main", "--pin-dir", str(pins), "load"]
        done = subprocess.run(
            ["nsenter", f"--net={netns}", *argv, "--policy", file, "--cgroup", cgroup],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            pass_fds=[world.host],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done

    stop = mmap.mmap(-1, 1)
    with world.serve(world.mx, MX4, MX6):
        try:
            load(CHECKOUT)
            child = Child(partial(until_told, stop), cgroup)
            try:
                for tree, number in 2 * ((later, abi.ABI + 1), (CHECKOUT, abi.ABI)):
                    load(tree)
                    assert [path.name for path in pins.glob("v*")] == [f"v{number}"]
            finally:
                stop[0] = 1
                ends = child.finish().value
            free = world.control(partial(unseen, MX4))
            assert free.errno == errno.ECONNREFUSED, "the second lock is in force"
        finally:
            with world.inside(world.host):
                remove_all(pins)
            take_out(pins)
        assert world.control(partial(unseen, MX4)).errno == 0
    assert ends.keys() == {(MX4, 0), (MX6, errno.EPERM)}, ends
    assert min(ends.values()) > 20
