# SPDX-License-Identifier: GPL-2.0-or-later
"""What it ran, where and with which arguments, as the kernel saw it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from guard import abi
from guard.abi import Flag
from guard.kernel import Guard
from tests.kernel.proc import (
    HERE,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    agree,
    call,
    facts,
    libc,
    living,
)
from tests.kernel.routes import plain
from tests.kernel.world import Watch, World
from tests.lab.lab import CLONE_NEWNS

pytestmark = pytest.mark.usefixtures("local_server")


# ---- the executable


def test_a_program_is_as_proc_says(world: World, watch: Watch, caller: Path) -> None:
    with living(world, [str(caller), HERE, "25"]) as process:
        agree(watch.one(), facts(process.pid))
        assert watch.one().exe == str(caller)


def test_a_deleted_executable(world: World, watch: Watch, caller: Path) -> None:
    copy = caller.with_name("gone")
    shutil.copy(caller, copy)
    with living(world, [str(copy)], before=copy.unlink) as process:
        event = watch.one()
        agree(event, facts(process.pid), but=["exe"])
        assert os.readlink(f"/proc/{process.pid}/exe") == f"{copy} (deleted)"
        assert (event.exe, event.exe_nlink) == (str(copy), 0)


def test_a_hard_link_is_counted(world: World, watch: Watch, caller: Path) -> None:
    other = caller.with_name("other")
    other.hardlink_to(caller)
    try:
        with living(world, [str(other)]) as process:
            agree(watch.one(), facts(process.pid))
            assert (watch.one().exe, watch.one().exe_nlink) == (str(other), 2)
    finally:
        other.unlink()


def test_a_program_in_memory(
    world: World, watch: Watch, caller: Path, guard: Guard
) -> None:
    with open(os.memfd_create("kworker"), "wb") as memory:
        memory.write(caller.read_bytes())
        memory.flush()
        # a file that is open for writing is not executed: ETXTBSY
        reading = os.open(f"/proc/self/fd/{memory.fileno()}", os.O_RDONLY)
    try:
        with living(world, ["[kworker/0:1]"], descriptor=reading) as process:
            event = watch.one()
            agree(event, facts(process.pid), but=["exe"])
            assert (event.exe, event.exe_nlink) == ("/memfd:kworker", 0)
            identity = guard.identify(Path(f"/proc/{process.pid}/exe"))
            assert event.exe_device == identity.inode.device
    finally:
        os.close(reading)


@pytest.mark.skipif(
    not shutil.which("bash"), reason="bash is not installed: no other interpreter"
)
def test_an_interpreter_is_the_executable(
    world: World, watch: Watch, programs: Path
) -> None:
    script = programs / "script"
    script.write_text(f"#!/bin/bash\nexec 3<>/dev/tcp/{HERE}/25\n")
    script.chmod(0o755)
    assert world.act(partial(subprocess.check_call, [str(script)])).errno == 0
    event = watch.one()
    assert event.exe == os.path.realpath("/bin/bash")
    assert event.args == ("/bin/bash", str(script))
    assert event.comm == "script"


def test_a_bind_mount_shows_the_path_the_caller_sees(
    world: World, watch: Watch, caller: Path
) -> None:
    """The path lies, by a mount; device and inode do not."""
    place = caller.with_name("place")
    place.mkdir()

    def prepare() -> None:
        call(libc.unshare(CLONE_NEWNS), "unshare")
        call(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "private")
        source = os.fsencode(caller.parent)
        call(libc.mount(source, os.fsencode(place), None, MS_BIND, None), "bind")
        os.chdir(place)

    try:
        with living(world, [f"{place}/caller"], prepare) as process:
            event = watch.one()
            agree(event, facts(process.pid), but=["exe", "cwd"])
            assert event.exe == f"{place}/caller"
            assert event.cwd == str(place)
            assert event.exe_inode == caller.stat().st_ino
    finally:
        place.rmdir()


def test_a_chroot_is_seen_from_outside(
    world: World, watch: Watch, caller: Path
) -> None:
    def prepare() -> None:
        os.chroot(caller.parent)
        os.chdir("/")

    with living(world, ["/caller"], prepare) as process:
        event = watch.one()
        agree(event, facts(process.pid))
        assert (event.exe, event.cwd) == (str(caller), str(caller.parent))
        assert event.args == ("/caller",)


# ---- the working directory


def test_a_deleted_folder(world: World, watch: Watch, programs: Path) -> None:
    folder = programs / "folder"
    folder.mkdir()

    def act() -> str:
        os.chdir(folder)
        folder.rmdir()
        plain(HERE)
        return os.readlink("/proc/self/cwd")

    assert world.act(act).value == f"{folder} (deleted)"
    assert watch.one().cwd == str(folder)


def test_the_root_folder(world: World, watch: Watch) -> None:
    def act() -> None:
        os.chdir("/")
        plain(HERE)

    world.act(act)
    assert watch.one().cwd == "/"


@pytest.mark.parametrize("over", [0, 1, 700])
def test_a_deep_folder_is_cut_at_its_front(
    world: World, watch: Watch, programs: Path, over: int
) -> None:
    """Components with their separators fill CWD_LEN exactly, or do not fit."""
    top = programs / "deep"
    rest = abi.CWD_LEN + over - len(str(top))
    names = []
    while rest:
        length = min(rest, 200)
        if rest - length == 1:  # a lone separator is no component
            length -= 1
        names.append("d" * (length - 1))
        rest -= length

    def act() -> str:
        for name in (str(top), *names):
            os.mkdir(name)
            os.chdir(name)
        plain(HERE)
        return os.readlink("/proc/self/cwd")

    try:
        path = world.act(act).value
    finally:
        shutil.rmtree(top)
    assert len(path) == abi.CWD_LEN + over
    event = watch.one()
    assert bool(event.flags & Flag.CWD_CUT) == bool(over)
    if over:
        mark, kept = event.cwd[:4], event.cwd[4:]
        assert (mark, path.endswith(f"/{kept}")) == (".../", True)
        assert len(kept) > abi.CWD_LEN - abi.COMPONENT_LEN
    else:
        assert event.cwd == path


# ---- the arguments


@pytest.mark.parametrize("over", [0, 1, 100_000])
def test_long_arguments_are_cut_at_their_end(
    world: World, watch: Watch, caller: Path, over: int
) -> None:
    argv = [str(caller), HERE, "25"]
    left = abi.ARGS_LEN + over - sum(len(arg) + 1 for arg in argv)
    argv.append("x" * (left - 1))
    with living(world, argv) as process:
        event = watch.one()
        assert bool(event.flags & Flag.ARGS_CUT) == bool(over)
        cmdline = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        kept = cmdline[: abi.ARGS_LEN].removesuffix(b"\0").decode().split("\0")
        assert list(event.args) == kept


def test_no_arguments_at_all(world: World, watch: Watch, caller: Path) -> None:
    """execve(2) with an empty argv: the kernel puts an empty one there (5.18)."""

    def act() -> None:
        go, said = os.pipe(), os.pipe()
        os.write(go[1], b"go\n")
        os.close(go[1])
        pid = os.fork()
        if not pid:
            os.dup2(go[0], 0)
            os.dup2(said[1], 1)
            empty = (ctypes.c_char_p * 1)(None)
            libc.execve(os.fsencode(caller), empty, empty)
            os._exit(127)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert os.read(said[0], 10) == b"0\n"

    assert world.act(act).errno == 0
    event = watch.one()
    assert event.exe == str(caller)
    assert event.args == ("",)
    assert not event.flags & (Flag.NO_ARGS | Flag.ARGS_CUT)


def test_arguments_that_were_overwritten(
    world: World, watch: Watch, caller: Path
) -> None:
    title = "postfix: master"
    argv = [str(caller), HERE, "25", f"title:{title}"]
    with living(world, argv) as process:
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert shown.split(b"\0")[0] == title.encode()
        event = watch.one()
        assert event.args[0] == title
        assert event.exe == str(caller)


def test_arguments_that_are_not_text(world: World, watch: Watch, caller: Path) -> None:
    odd = b"\xff\xfe\n\x1b[31m\xc3"
    with living(world, [os.fsencode(caller), HERE, "25", odd, b""]) as process:
        agree(watch.one(), facts(process.pid))
        assert os.fsencode(watch.one().args[3]) == odd
        assert watch.one().args[4] == ""
