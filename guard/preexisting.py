# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to guarded ports that were open before the guard was loaded.

No hook saw their connect(), so it is /proc that is asked, see procfs.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil

from guard.finding import Finding, Kind
from guard.hosts import is_own
from guard.origin import Naming
from guard.procfs import finding, look

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
            yield finding(
                Kind.PRE_EXISTING,
                look(connection.pid) if connection.pid else None,
                naming,
                connection=f"{naming.boot}-before-{src[0]}-{src[1]}-{dst[0]}-{dst[1]}",
                src=src,
                dst=dst,
                verdict="allow",
                mode=mode,
                direction="local" if is_own(dst[0], addresses) else "outbound",
                outcome="established",
                netns=os.stat("/proc/self/ns/net").st_ino,
            )


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:").split("%", 1)[0]
