# SPDX-License-Identifier: GPL-2.0-or-later
"""Who called, as the kernel saw it: ids, names, cgroup and parents."""

from __future__ import annotations

import os
import pickle
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guard import abi
from guard.abi import Flag
from guard.kernel import Guard
from tests.kernel.proc import (
    CLONE_NEWUSER,
    HERE,
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    agree,
    call,
    facts,
    libc,
)
from tests.kernel.routes import plain
from tests.kernel.world import Watch, World

pytestmark = pytest.mark.usefixtures("local_server")


def connect_and_look() -> dict[str, Any]:
    plain(HERE)
    return facts()


def test_a_child_is_as_proc_says(world: World, watch: Watch, guard: Guard) -> None:
    found = world.act(connect_and_look).value
    event = watch.one()
    agree(event, found)
    identity = guard.identify(Path(found["exe"]))
    assert event.exe_device == identity.inode.device
    assert event.exe_generation == identity.inode.generation
    assert event.tid == event.pid
    assert event.cgroup_id == os.stat(world.guarded).st_ino
    assert not event.flags & ~Flag.ANCESTORS_CUT & ~Flag.ARGS_CUT


def test_a_thread_is_named(world: World, watch: Watch) -> None:
    def act() -> tuple[dict[str, Any], int]:
        tids = []

        def work() -> None:
            call(libc.prctl(PR_SET_NAME, b"fake [kthread]"), "prctl")
            plain(HERE)
            tids.append(threading.get_native_id())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return facts(), tids[0]

    found, tid = world.act(act).value
    event = watch.one()
    agree(event, found, but=["comm"])
    assert (event.tid, event.comm) == (tid, "fake [kthread]")
    assert event.tid != event.pid


def test_effective_and_real_ids(world: World, watch: Watch) -> None:
    def act() -> dict[str, Any]:
        os.setgroups([])
        os.setresgid(1001, 33, 33)
        os.setresuid(1000, 102, 0)
        plain(HERE)
        os.setuid(0)  # /proc/self is root's again
        os.setresuid(1000, 102, 0)
        return {"uid": os.geteuid(), "gid": os.getegid()}

    assert world.act(act).value == {"uid": 102, "gid": 33}
    event = watch.one()
    assert (event.uid, event.real_uid) == (102, 1000)
    assert (event.gid, event.real_gid) == (33, 1001)


def test_a_user_namespace_does_not_make_root(world: World, watch: Watch) -> None:
    def act() -> int:
        os.setgroups([])
        os.setresgid(33, 33, 33)
        os.setresuid(33, 33, 33)
        call(libc.prctl(PR_SET_DUMPABLE, 1), "prctl")  # /proc/self is ours again
        call(libc.unshare(CLONE_NEWUSER), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text("0 33 1")
        Path("/proc/self/gid_map").write_text("0 33 1")
        plain(HERE)
        return os.geteuid()

    assert world.act(act).value == 0
    event = watch.one()
    assert (event.uid, event.gid) == (33, 33)


def test_login_uid_and_session(world: World, watch: Watch) -> None:
    def act() -> dict[str, Any]:
        Path("/proc/self/loginuid").write_text("1000")
        plain(HERE)
        return facts()

    found = world.act(act).value
    assert found["loginuid"] == 1000
    assert found["session"] != abi.UNSET
    agree(watch.one(), found)


def test_a_name_that_was_changed(world: World, watch: Watch) -> None:
    name = b"\xff\n smtp"

    def act() -> dict[str, Any]:
        call(libc.prctl(PR_SET_NAME, name), "prctl")
        plain(HERE)
        return {"pid": os.getpid()}

    world.act(act)
    assert os.fsencode(watch.one().comm) == name


@pytest.mark.parametrize("depth", [1, 11, 20])
def test_a_deep_cgroup(world: World, watch: Watch, depth: int) -> None:
    folder = world.guarded
    for level in range(depth):
        folder = folder / f"level-{level:02}.slice"
        folder.mkdir()
    try:
        found = world.act(connect_and_look, folder).value
        event = watch.one()
        agree(event, found)
        assert event.cgroup_id == folder.stat().st_ino
    finally:
        while folder != world.guarded:
            folder.rmdir()
            folder = folder.parent


def test_a_cgroup_too_long_is_cut_at_its_front(world: World, watch: Watch) -> None:
    folder = world.guarded
    for _ in range(3):
        folder = folder / ("c" * 180)
        folder.mkdir()
    try:
        found = world.act(connect_and_look, folder).value
        event = watch.one()
        assert event.flags & Flag.CGROUP_CUT
        assert event.cgroup.startswith(".../ccc")
        assert found["cgroup"].endswith(event.cgroup[3:])
    finally:
        while folder != world.guarded:
            folder.rmdir()
            folder = folder.parent


@pytest.mark.parametrize("depth", [0, 12])
def test_the_chain_of_parents(world: World, watch: Watch, depth: int) -> None:
    def act(left: int) -> dict[str, Any]:
        if not left:
            plain(HERE)
            return facts()
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(write, pickle.dumps(act(left - 1)))
            os._exit(0)
        os.waitpid(pid, 0)
        return dict(pickle.loads(os.read(read, 1 << 16)))

    found = world.act(partial(act, depth)).value
    event = watch.one()
    agree(event, found)
    if depth:
        assert len(event.ancestors) == abi.ANCESTORS
        assert event.flags & Flag.ANCESTORS_CUT


def test_a_parent_that_has_ended(world: World, watch: Watch) -> None:
    """An orphan belongs to init (or a subreaper) when it connects, as in /proc."""

    def act() -> tuple[int, int]:
        read, write = os.pipe()
        parent = os.fork()
        if not parent:
            mother = os.getpid()
            if not os.fork():
                while os.getppid() == mother:
                    time.sleep(0.001)
                plain(HERE)
                os.write(write, b"%d %d" % (os.getpid(), os.getppid()))
            os._exit(0)
        os.close(write)
        os.waitpid(parent, 0)
        pid, ppid = os.read(read, 100).split()
        return int(pid), int(ppid)

    pid, ppid = world.act(act).value
    event = watch.one()
    assert (event.pid, event.ancestors[0].pid) == (pid, ppid)
