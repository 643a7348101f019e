# SPDX-License-Identifier: GPL-2.0-or-later
"""An executable that a process only says it is, in a user namespace of its own."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
from functools import partial
from pathlib import Path

import pytest

from guard.abi import Flag
from tests.kernel.test_match import ROGUE, become
from tests.kernel.world import MX4, SMTP, Watch, World, compile_c, rule

TRUSTED = "/usr/bin/true"


def as_rogue(program: Path, *how: str) -> int:
    """Connect while /proc/PID/exe is TRUSTED; give the errno, 99 for no spoof."""
    become(ROGUE, ROGUE)
    argv = [str(program), TRUSTED, MX4, str(SMTP), *how]
    return os.spawnv(os.P_WAIT, program, argv)


@pytest.mark.parametrize("how", [(), ("shared",)])
def test_an_executable_set_by_the_process_itself_matches_no_rule(
    world: World, watch: Watch, programs: Path, how: tuple[str, ...]
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("spoof.c makes its system calls by x86-64 instructions")
    program = compile_c("spoof.c", programs / "spoof")
    watch.apply(rule(exe=TRUSTED))
    with world.serve(world.mx, MX4):
        assert world.control(partial(as_rogue, program, *how)).value == 0
        assert world.act(partial(as_rogue, program, *how)).value == errno.EPERM
        event = watch.one()
        # what it says of itself is recorded, and marked
        assert event.exe == TRUSTED
        assert event.flags & Flag.EXE_SET
        assert bool(event.flags & Flag.FOREIGN_USERNS) != bool(how)
        assert event.uid == ROGUE

        watch.forget()
        watch.apply(rule(exe=TRUSTED) + rule(name="user", user=ROGUE))
        assert world.act(partial(as_rogue, program, *how)).value == 0


def test_an_ordinary_process_is_not_marked(world: World, watch: Watch) -> None:
    watch.apply("")
    done = world.act(
        lambda: subprocess.run(["curl", "-s", f"smtp://{MX4}"], check=False).returncode
    )
    assert done.value
    assert not watch.one().flags & (Flag.FOREIGN_USERNS | Flag.EXE_SET)
