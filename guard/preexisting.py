# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to guarded ports that were open before the guard was loaded.

No hook saw their connect(), so this is the one place that asks /proc, and says so
in the finding (`from-proc`): what it tells is what their owner looks like now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from guard.finding import Finding, Kind, Process
from guard.hosts import is_own
from guard.origin import Naming, cgroup2_path, container_of, unit_of

# Those that no packet belongs to any more, or not yet: tcp(7).
_NOT_OPEN = {psutil.CONN_LISTEN, psutil.CONN_TIME_WAIT, psutil.CONN_CLOSE}


def pre_existing(
    ports: frozenset[int], mode: str, naming: Naming, addresses: set[str]
) -> Iterator[Finding]:
    """Give the open TCP connections of this network namespace to these ports.

    addresses are the host's own. A process that ends meanwhile is given as far
    as it was seen; one without a process is the kernel's, or another namespace's.
    """
    for connection in psutil.net_connections("tcp"):
        if not connection.raddr or connection.status in _NOT_OPEN:
            continue
        if connection.raddr.port in ports:
            src = (_plain(connection.laddr.ip), connection.laddr.port)
            dst = (_plain(connection.raddr.ip), connection.raddr.port)
            local = is_own(dst[0], addresses)
            yield _finding(connection.pid or 0, src, dst, local, mode, naming)


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:").split("%", 1)[0]


def _finding(
    pid: int,
    src: tuple[str, int],
    dst: tuple[str, int],
    local: bool,
    mode: str,
    naming: Naming,
) -> Finding:
    asked = _ask(pid)
    uids, gids = asked.get("uids"), asked.get("gids")
    uid, gid = (uids.effective if uids else 0), (gids.effective if gids else 0)
    file, cgroup = asked.get("file"), str(asked.get("cgroup") or "/")
    device = (os.major(file.st_dev), os.minor(file.st_dev)) if file else (0, 0)
    parents: list[psutil.Process] = asked.get("parents") or []
    return Finding(
        kind=Kind.PRE_EXISTING,
        time_us=time.time_ns() // 1000,
        seq=0,
        connection=f"{naming.boot}-before-{src[0]}-{src[1]}-{dst[0]}-{dst[1]}",
        verdict="allow",
        mode=mode,
        direction="local" if local else "outbound",
        rule=None,
        outcome="established",
        pid=pid,
        tid=pid,
        ppid=parents[0].pid if parents else None,
        start_us=int(float(asked.get("create_time") or 0) * 1e6),
        uid=uid,
        user=naming.user(uid) if uids else None,
        gid=gid,
        group=naming.group(gid) if gids else None,
        real_uid=uids.real if uids else 0,
        real_gid=gids.real if gids else 0,
        loginuid=None,
        session=None,
        comm=str(asked.get("name") or ""),
        exe=asked.get("exe") or None,
        exe_device=f"{device[0]}:{device[1]}",
        exe_inode=file.st_ino if file else 0,
        exe_nlink=file.st_nlink if file else 0,
        args=tuple(asked.get("cmdline") or ()),
        cwd=str(asked.get("cwd") or "/"),
        unit=unit_of(cgroup),
        container=container_of(cgroup),
        cgroup=cgroup,
        netns=os.stat("/proc/self/ns/net").st_ino,
        ancestors=tuple(Process(p.pid, 0, "", 0) for p in parents[:8]),
        src=src,
        dst=dst,
        via=None,
        error=None,
        bytes_sent=0,
        bytes_received=0,
        duration_us=None,
        incomplete=("from-proc",) if asked else ("from-proc", "no-process"),
    )


def _ask(pid: int) -> dict[str, Any]:
    """Give what /proc says of a process; {}: there is none, or not any more."""
    try:
        process = psutil.Process(pid)
        asked: dict[str, Any] = process.as_dict(
            ["name", "exe", "cwd", "cmdline", "uids", "gids", "create_time"]
        )
        asked["parents"] = process.parents()
        asked["file"] = os.stat(f"/proc/{pid}/exe")
        asked["cgroup"] = cgroup2_path(Path(f"/proc/{pid}/cgroup").read_bytes())
    except (psutil.Error, OSError):
        return {}
    return asked
