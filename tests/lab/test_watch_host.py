# SPDX-License-Identifier: GPL-2.0-or-later
"""make run on a host without journald: findings appear, and it leaves nothing."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest

from tests.kernel.world import HOST4, World
from tests.watch_host import CHECKOUT, PINS


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_findings_appear_and_nothing_is_left(how: signal.Signals) -> None:
    with World() as world, world.inside(world.host):
        run = subprocess.Popen(
            [sys.executable, "-m", "tests.watch_host", "--cgroup", str(world.guarded)],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert run.stdout
            _read_until(run.stdout, "policy loaded")

            def connect() -> None:
                socket.create_connection((HOST4, 25), timeout=5).close()

            with world.serve(world.host, HOST4):
                assert world.act(connect).errno == 0
            line = _read_until(run.stdout, "local: ")
            assert f"{HOST4}:25" in line
        finally:
            run.send_signal(how)
            if how is signal.SIGINT:  # a terminal sends it to guardd as well
                subprocess.run(["pkill", "-INT", "-P", str(run.pid)], check=True)
            rest, _ = run.communicate(timeout=30)
    assert run.returncode == 0
    assert "unloaded" in rest
    assert subprocess.run(["test", "-e", PINS], check=False).returncode == 1


def _read_until(lines: object, text: str) -> str:
    for line in lines:  # type: ignore[attr-defined]
        if text in line:
            return str(line)
    raise AssertionError(f"ended without {text!r}")
