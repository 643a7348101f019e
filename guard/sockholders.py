# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes hold which sockets, asked of the kernel: bpf/holders.bpf.c."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from guard import libbpf
from guard.errors import KernelError
from guard.privileges import KERNEL, missing

OBJECT = Path(__file__).with_name("holders.bpf.o")
_HOLDER = struct.Struct("=QII")  # struct holder
_INITIAL_PIDS = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def socket_holders() -> list[tuple[int, int]] | None:
    """Give inode and pid for each socket that a process has open.

    None: this process may not ask, or this kernel cannot tell. A pid is that of the
    initial namespace, and None is given where /proc shows others.
    """
    link = _iterator()
    if link is None or os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PIDS:
        return None
    try:
        return list(_pairs(libbpf.iterator_output(link)))
    except (KernelError, OSError):
        return None


def _pairs(raw: bytes) -> Iterator[tuple[int, int]]:
    for inode, pid, _ in _HOLDER.iter_unpack(raw):
        yield inode, pid


@functools.cache
def _iterator() -> int | None:
    """Load the program once; its link is kept for as long as this process lives."""
    if missing(*KERNEL):
        return None
    try:
        with libbpf.Object(OBJECT) as obj:
            obj.load()
            return libbpf.iterate(obj.program("holders"))
    except KernelError:
        return None
