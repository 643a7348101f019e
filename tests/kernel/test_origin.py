# SPDX-License-Identifier: GPL-2.0-or-later
"""Who called, as the kernel saw it: compared with /proc of a process that lives."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guard import abi
from guard.abi import Flag
from guard.event import Event
from guard.kernel import Guard
from tests.kernel.routes import plain
from tests.kernel.world import Watch, World, compile_c
from tests.lab.lab import CLONE_NEWNS, join_cgroup

HERE = "127.0.0.1"
PR_SET_NAME, PR_SET_DUMPABLE = 15, 4  # prctl(2)
CLONE_NEWUSER = 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")

_libc = ctypes.CDLL(None, use_errno=True)


def call(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


def status(pid: int | str) -> dict[str, list[str]]:
    text = Path(f"/proc/{pid}/status").read_text(errors="surrogateescape")
    return {
        key: value.split()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }


def start_ticks(pid: int | str) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape")
    return int(stat.rpartition(")")[2].split()[19])  # proc(5): the 22nd field


def comm(pid: int | str) -> str:
    return Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape")[:-1]


def facts(pid: int | str = "self") -> dict[str, Any]:
    """Read from /proc what an event must say of a process that lives."""
    home = Path(f"/proc/{pid}")
    own = status(pid)
    parents = []
    parent = int(own["PPid"][0])
    while parent:
        about = status(parent)
        parents.append(
            (parent, int(about["Uid"][1]), comm(parent), start_ticks(parent))
        )
        parent = int(about["PPid"][0])
    cgroup = [
        line[3:]
        for line in (home / "cgroup").read_text().splitlines()
        if line.startswith("0::")
    ]
    return {
        "pid": int(own["Tgid"][0]),
        "real_uid": int(own["Uid"][0]),
        "uid": int(own["Uid"][1]),
        "real_gid": int(own["Gid"][0]),
        "gid": int(own["Gid"][1]),
        "start": start_ticks(pid),
        "loginuid": int((home / "loginuid").read_text()),
        "session": int((home / "sessionid").read_text()),
        "comm": comm(pid),
        "exe": os.readlink(home / "exe"),
        "exe_inode": os.stat(home / "exe").st_ino,
        "exe_nlink": os.stat(home / "exe").st_nlink,
        "cwd": os.readlink(home / "cwd"),
        "cmdline": (home / "cmdline").read_bytes(),
        "cgroup": cgroup[0],
        "netns": os.stat(home / "ns/net").st_ino,
        "parents": parents,
    }


def agree(event: Event, found: dict[str, Any], *, but: Sequence[str] = ()) -> None:
    """Compare an event with facts; but: what the test looks at itself."""
    said: dict[str, Any] = {
        name: getattr(event, name) for name in found if hasattr(event, name)
    }
    said["start"] = event.start_ns // TICK_NS
    said["cmdline"] = b"".join(os.fsencode(arg) + b"\0" for arg in event.args)
    said["parents"] = [
        (a.pid, a.uid, a.comm, a.start_ns // TICK_NS) for a in event.ancestors
    ]
    assert bool(event.flags & Flag.ANCESTORS_CUT) == (
        len(found["parents"]) > abi.ANCESTORS
    )
    found = {**found, "parents": found["parents"][: abi.ANCESTORS]}
    for name in found.keys() - set(but):
        assert said[name] == found[name], name


@pytest.fixture(autouse=True)
def observed(world: World, watch: Watch) -> Iterator[None]:
    """Local connects are let pass and reported; something listens."""
    watch.apply("")
    with world.serve(world.host, HERE):
        yield


@pytest.fixture(scope="module")
def caller(programs: Path) -> Path:
    return compile_c("caller.c", programs / "caller", "-static")


@contextlib.contextmanager
def living(
    world: World,
    argv: Sequence[str | bytes],
    prepare: Callable[[], None] = lambda: None,
    before: Callable[[], None] = lambda: None,
    descriptor: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run caller, do `before`, let it connect, and keep it alive meanwhile.

    descriptor: of the file to execute, if not argv's first.
    """

    def enter() -> None:
        join_cgroup(world.guarded)
        prepare()

    process = subprocess.Popen(
        argv,
        executable=None if descriptor is None else f"/proc/self/fd/{descriptor}",
        pass_fds=() if descriptor is None else (descriptor,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=enter,
    )
    assert process.stdin and process.stdout
    try:
        before()
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"0\n"
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def test_a_child_is_as_proc_says(world: World, watch: Watch, guard: Guard) -> None:
    def act() -> dict[str, Any]:
        plain(HERE)
        return facts()

    found = world.act(act).value
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
            call(_libc.prctl(PR_SET_NAME, b"fake [kthread]"), "prctl")
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
        call(_libc.prctl(PR_SET_DUMPABLE, 1), "prctl")  # /proc/self is ours again
        call(_libc.unshare(CLONE_NEWUSER), "unshare")
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
        call(_libc.prctl(PR_SET_NAME, name), "prctl")
        plain(HERE)
        return {"pid": os.getpid()}

    world.act(act)
    assert os.fsencode(watch.one().comm) == name


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
        call(_libc.unshare(CLONE_NEWNS), "unshare")
        call(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "private")
        source = os.fsencode(caller.parent)
        call(_libc.mount(source, os.fsencode(place), None, MS_BIND, None), "bind")
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
        for name in (top, *names):
            Path(name).mkdir()
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
            _libc.execve(os.fsencode(caller), empty, empty)
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


# ---- the cgroup and the parents


@pytest.mark.parametrize("depth", [1, 11, 20])
def test_a_deep_cgroup(world: World, watch: Watch, depth: int) -> None:
    folder = world.guarded
    for level in range(depth):
        folder = folder / f"level-{level:02}.slice"
        folder.mkdir()
    try:

        def act() -> dict[str, Any]:
            plain(HERE)
            return facts()

        found = world.act(act, folder).value
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
        found = world.act(lambda: (plain(HERE), facts())[1], folder).value
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
