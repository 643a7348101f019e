# SPDX-License-Identifier: GPL-2.0-or-later
"""What /proc says of a process now: for findings whose connect() no hook saw.

It tells what the owner of a connection looks like when it is asked, which may be
another program than the one that connected; every such finding says `from-proc`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from guard.abi import ANCESTORS, ARGS_LEN, NAME_LEN, UNSET
from guard.finding import Finding, Kind, Process
from guard.origin import Naming, cgroup2_path, container_of, unit_of
from guard.policy.evaluate import Caller, Executable, ExeId
from guard.policy.files import device_number, is_trusted
from guard.script import Script, script_of
from guard.sockholders import socket_holders

_DELETED = " (deleted)"  # proc_pid_exe(5)


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as /proc shows it."""

    pid: int
    ppid: int
    start_us: int  # CLOCK_REALTIME
    uids: tuple[int, int]  # real, effective
    gids: tuple[int, int]  # real, effective
    loginuid: int | None
    session: int | None
    comm: str
    exe: str | None
    file: os.stat_result | None  # of the executable; None: it has none
    executable: Executable | None  # as rules compare it
    args: tuple[str, ...]
    cwd: str
    cgroup: str  # from the root of cgroup2
    netns: int  # inode
    ancestors: tuple[Process, ...]
    incomplete: tuple[str, ...]

    @property
    def caller(self) -> Caller:
        """Give what a policy judges; what is not known matches no rule."""
        return Caller(self.uids[1], self.gids[1], self.executable, self.cgroup)


def look(pid: int) -> Seen | None:
    """Look at a process; None: there is none, or it ended meanwhile."""
    try:
        process = psutil.Process(pid)
        seen = _look(process)
        # not another one that has got its number since
        return seen if process.is_running() else None
    except (psutil.Error, OSError, ValueError):
        return None


def _look(process: psutil.Process) -> Seen:
    pid = process.pid
    parents = process.parents()
    uids, gids = process.uids(), process.gids()
    cwd = os.readlink(f"/proc/{pid}/cwd")
    args, args_cut = _args(pid)
    file = exe = None
    with contextlib.suppress(OSError):  # a kernel thread has none
        file = os.stat(f"/proc/{pid}/exe")
        exe = os.readlink(f"/proc/{pid}/exe")
        if not file.st_nlink:
            exe = exe.removesuffix(_DELETED)
    return Seen(
        pid=pid,
        ppid=process.ppid(),
        start_us=int(process.create_time() * 1e6),
        uids=(uids.real, uids.effective),
        gids=(gids.real, gids.effective),
        loginuid=_set_number(pid, "loginuid"),
        session=_set_number(pid, "sessionid"),
        comm=_text(pid, "comm").removesuffix("\n"),
        exe=exe,
        file=file,
        executable=_executable(pid, file, exe) if file and exe else None,
        args=args,
        cwd=process.cwd() or "/",
        cgroup=cgroup2_path(Path(f"/proc/{pid}/cgroup").read_bytes()),
        netns=os.stat(f"/proc/{pid}/ns/net").st_ino,
        ancestors=tuple(_ancestor(parent) for parent in parents[:ANCESTORS]),
        incomplete=(
            *(("ancestors-cut",) if len(parents) > ANCESTORS else ()),
            *(("args-cut",) if args_cut else ()),
            # not by stat(), which a file system of a user's could let hang
            *(("cwd-gone",) if cwd.endswith(_DELETED) else ()),
        ),
    )


def _args(pid: int) -> tuple[tuple[str, ...], bool]:
    """Give the arguments, and whether they are cut, where the kernel programs cut them.

    By PR_SET_MM_MAP anybody may have gigabytes of them, which psutil would read.
    """
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        raw = file.read(ARGS_LEN + 1)
    cut, raw = len(raw) > ARGS_LEN, raw[:ARGS_LEN]
    texts = raw.removesuffix(b"\0").split(b"\0") if raw else []
    return tuple(map(os.fsdecode, texts)), cut


def _executable(pid: int, file: os.stat_result, exe: str) -> Executable:
    """Describe an executable as the kernel's rows do: inode, name in its folder.

    In a user namespace of its own a process may say which file is its
    executable (bpf/match.bpf.h): not trusted there.
    """
    inode: ExeId = (device_number(file), file.st_ino, 0, b"")
    path = Path(exe)
    name, raw = inode, os.fsencode(path.name)
    with contextlib.suppress(OSError):
        # The path is one of its own mount namespace, so its folder is asked there.
        root = "/" if _same_namespace(pid, "mnt") else f"/proc/{pid}/root"
        folder = os.stat(f"{root}{path.parent}")
        if is_trusted(folder) and len(raw) < NAME_LEN:
            name = (device_number(folder), folder.st_ino, 0, raw)
    return Executable(inode, name, is_trusted(file) and _same_namespace(pid, "user"))


def _same_namespace(pid: int, kind: str) -> bool:
    mine, theirs = os.stat(f"/proc/self/ns/{kind}"), os.stat(f"/proc/{pid}/ns/{kind}")
    return os.path.samestat(mine, theirs)


def _ancestor(process: psutil.Process) -> Process:
    pid = process.pid
    comm, uid, ticks = "", 0, 0
    with contextlib.suppress(psutil.Error, OSError, ValueError):  # it ended
        uid = process.uids().effective
        comm = _text(pid, "comm").removesuffix("\n")
        ticks = int(_text(pid, "stat").rpartition(")")[2].split()[19])
    return Process(pid, uid, comm, ticks * 10**9 // os.sysconf("SC_CLK_TCK"))


def _text(pid: int, name: str) -> str:
    return os.fsdecode(Path(f"/proc/{pid}/{name}").read_bytes())


def _set_number(pid: int, name: str) -> int | None:
    """Read a number that audit sets at login; None: not set, or no audit."""
    with contextlib.suppress(FileNotFoundError):
        number = int(_text(pid, name))
        return None if number == UNSET else number
    return None


def holders(inodes: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Give the pids that hold each of these sockets, by the sockets' inodes.

    One that nobody holds is not in it: it was closed, or it waits in a message
    to another process (SCM_RIGHTS).
    """
    told = socket_holders()
    pairs = _open_sockets(inodes) if told is None else told
    found: dict[int, dict[int, None]] = {}
    for inode, pid in pairs:
        if inode in inodes:
            found.setdefault(inode, {})[pid] = None
    return {inode: tuple(pids) for inode, pids in found.items()}


def _open_sockets(inodes: Collection[int]) -> Iterator[tuple[int, int]]:
    """Give inode and pid of those that /proc shows: of others, to root alone."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it ended
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # it closed this one
                    inode = wanted.get(os.readlink(entry.path))
                    if inode is not None:
                        yield inode, pid


def finding(
    kind: Kind,
    seen: Seen | None,
    naming: Naming,
    *,
    connection: str,
    src: tuple[str, int] | None,
    dst: tuple[str, int],
    verdict: str,
    mode: str,
    direction: str,
    outcome: str,
    rule: str | None = None,
    error: str | None = None,
    uid: int | None = None,
    netns: int = 0,
) -> Finding:
    """Make a finding of now, attributed to what /proc said.

    connection names it for ever (boot id first, see Naming.boot). Where no
    process is known (seen is None), uid and netns (inode) are what else is;
    `incomplete` says `no-process`, and `no-user` where not even the uid is known.
    """
    if seen:
        uid, gid = seen.uids[1], seen.gids[1]
        incomplete: tuple[str, ...] = ("from-proc", *seen.incomplete)
    else:
        gid = 0
        incomplete = ("from-proc", "no-process")
        incomplete += ("no-user",) if uid is None else ()
    file = seen.file if seen else None
    cgroup = seen.cgroup if seen else "/"
    unit = unit_of(cgroup)
    script = Script()
    if seen:
        script = script_of(seen.exe, seen.args, seen.cwd, unit, incomplete)
    return Finding(
        kind=kind,
        time_us=time.time_ns() // 1000,
        seq=0,
        connection=connection,
        verdict=verdict,
        mode=mode,
        direction=direction,
        rule=rule,
        outcome=outcome,
        pid=seen.pid if seen else 0,
        tid=seen.pid if seen else 0,
        ppid=seen.ppid if seen else None,
        start_us=seen.start_us if seen else 0,
        uid=uid or 0,
        user=None if uid is None else naming.user(uid),
        gid=gid,
        group=naming.group(gid) if seen else None,
        real_uid=seen.uids[0] if seen else uid or 0,
        real_gid=seen.gids[0] if seen else 0,
        loginuid=seen.loginuid if seen else None,
        session=seen.session if seen else None,
        comm=seen.comm if seen else "",
        exe=seen.exe if seen else None,
        exe_device=f"{os.major(file.st_dev)}:{os.minor(file.st_dev)}"
        if file
        else "0:0",
        exe_inode=file.st_ino if file else 0,
        exe_nlink=file.st_nlink if file else 0,
        args=seen.args if seen else (),
        cwd=seen.cwd if seen else "/",
        unit=unit,
        container=container_of(cgroup),
        cgroup=cgroup,
        netns=netns or (seen.netns if seen else 0),
        ancestors=seen.ancestors if seen else (),
        src=src,
        dst=dst,
        via=None,
        error=error,
        bytes_sent=0,
        bytes_received=0,
        duration_us=None,
        incomplete=incomplete,
        script=script.path,
        script_from=script.known_from,
        pool=script.pool,
    )
