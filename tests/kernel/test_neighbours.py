# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose program keeps ours out of a cgroup: what we say is what the kernel does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from guard import libbpf
from guard.errors import KernelError
from guard.kernel import has_room
from guard.neighbours import keeps_out
from tests.kernel.world import World
from tests.tamper import others as act


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return act.compiled(tmp_path_factory.mktemp("others"))


def refused(program: int, cgroup: Path) -> bool:
    """Tell whether the kernel takes no link there."""
    try:
        with act.linked(program, cgroup):
            return False
    except KernelError as error:
        assert error.errno == errno.EPERM
        return True


@pytest.mark.parametrize("above", [None, act.ALONE, act.OVERRIDE, act.MULTI])
@pytest.mark.parametrize("there", [None, act.ALONE, act.OVERRIDE, act.MULTI])
def test_what_is_said_is_what_the_kernel_does(
    world: World, others: Path, above: int | None, there: int | None
) -> None:
    parent = world.base / f"above-{above}-{there}"
    cgroup = parent / "there"
    cgroup.mkdir(parents=True)
    try:
        with act.loaded(others, "guard_connect4") as program:
            # from below: what is above may forbid it
            for at, flags in ((cgroup, there), (parent, above)):
                if flags is not None:
                    act.attach(program, at, flags)
            said = keeps_out(cgroup, act.CONNECT4)
            assert bool(said) is refused(program, cgroup)
            if said:
                name, _, at = said.rpartition(" at ")
                assert name.startswith("guard_connect4 (id ")
                assert Path(at) in (cgroup, parent)
                with pytest.raises(KernelError) as caught:
                    has_room(cgroup)
                assert caught.value.errno == errno.EBUSY
                assert "bpftool cgroup tree" in caught.value.hint
            else:
                has_room(cgroup)
    finally:
        cgroup.rmdir()
        parent.rmdir()


def test_what_is_attached_is_counted(world: World, others: Path) -> None:
    folder = os.open(world.free, os.O_RDONLY)
    try:
        before, _ = libbpf.attached_programs(folder, act.CONNECT4)
        with (
            act.loaded(others, "guard_connect4") as program,
            act.linked(program, world.free),
        ):
            numbers, flags = libbpf.attached_programs(folder, act.CONNECT4)
        assert len(numbers) == len(before) + 1 and flags == act.MULTI
    finally:
        os.close(folder)
