# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc says of a process that lives: the measure for what an event says."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from guard import abi
from guard.abi import Flag
from guard.event import Event
from tests.kernel.world import World
from tests.lab.lab import join_cgroup

HERE = "127.0.0.1"
PR_SET_NAME, PR_SET_DUMPABLE = 15, 4  # prctl(2)
CLONE_NEWUSER = 0x10000000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18  # mount(2)
TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")

libc = ctypes.CDLL(None, use_errno=True)


def call(result: int, what: str) -> None:
    """Raise OSError for what a system call by `libc` returned, if it failed."""
    if result:
        raise OSError(ctypes.get_errno(), what)


def status(pid: int | str) -> dict[str, list[str]]:
    """Read /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text(errors="surrogateescape")
    return {
        key: value.split()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }


def start_ticks(pid: int | str) -> int:
    """Give when a process began, in clock ticks since boot."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape")
    return int(stat.rpartition(")")[2].split()[19])  # proc(5): the 22nd field


def comm(pid: int | str) -> str:
    """Give a process's name, which it may have chosen itself."""
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
