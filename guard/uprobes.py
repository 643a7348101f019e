# SPDX-License-Identifier: GPL-2.0-or-later
"""Our programs attached to places in programs, in every process that runs them.

Two ways: by one link to many places, which Linux 6.6 has and for which CAP_BPF and
CAP_PERFMON are enough, and by a perf event, a link for each place. libbpf 1.1 does
not know the first; of the second it makes links that cannot be pinned. These can.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guard import libbpf
from guard.bpfstructs import PerfEventAttr, UprobeMulti
from guard.errors import KernelError

MULTI = 48  # BPF_TRACE_UPROBE_MULTI, enum bpf_attach_type, include/uapi/linux/bpf.h
_LINK_CREATE = 28  # enum bpf_cmd
_UPROBE = Path("/sys/bus/event_source/devices/uprobe/type")
_CLOEXEC = 8  # PERF_FLAG_FD_CLOEXEC
_SEMAPHORE_SHIFT = 32  # ref_ctr_offset in attr.config, format/ref_ctr_offset there
# perf_event_open(2) and bpf(2): asm/unistd_64.h of x86, asm-generic/unistd.h
_NUMBERS = {"x86_64": (298, 321)}
_OTHERS_NUMBERS = 241, 280

_libc = c.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program of ours is to run; offsets are in the file, in bytes."""

    offset: int
    semaphore: int = 0  # a 16-bit counter of who listens; 0: it has none
    cookie: int = 0  # what bpf_get_attach_cookie() gives there, 64 bits


def _syscall(which: int, *arguments: object) -> int:
    """Call perf_event_open (0) or bpf (1); gives a negative errno for an error."""
    number = _NUMBERS.get(platform.machine(), _OTHERS_NUMBERS)[which]
    result = int(_libc.syscall(c.c_long(number), *arguments))
    return -c.get_errno() if result < 0 else result


def attach_multi(program: int, path: Path, places: Sequence[Place]) -> int:
    """Attach a program to places of the file at path, by one link.

    Its object said expect(name, MULTI) before load(). Gives the link's descriptor,
    which the caller owns; the attachment ends with it unless it is pinned. Raises
    KernelError, EINVAL where the kernel does not know this.
    """
    name = c.create_string_buffer(os.fsencode(path))
    offsets, semaphores, cookies = (
        (c.c_uint64 * len(places))(*column)
        for column in (
            (place.offset for place in places),
            (place.semaphore for place in places),
            (place.cookie for place in places),
        )
    )
    wanted = UprobeMulti(
        prog_fd=program,
        attach_type=MULTI,
        path=c.addressof(name),
        offsets=c.addressof(offsets),
        ref_ctr_offsets=c.addressof(semaphores),
        cookies=c.addressof(cookies),
        cnt=len(places),
    )
    size = c.c_ulong(c.sizeof(wanted))
    link = _syscall(1, c.c_long(_LINK_CREATE), c.byref(wanted), size)
    if link < 0:
        raise KernelError(f"cannot attach to a probe in {path}", -link)
    return link


def attach_perf(program: int, path: Path, place: Place) -> int:
    """As attach_multi(), to one place by a perf event: Linux 6.1.

    Debian and Ubuntu refuse it (EACCES) to who has CAP_PERFMON and not
    CAP_SYS_ADMIN: there kernel.perf_event_paranoid is above 2, the highest that
    others know.
    """
    try:
        kind = int(_UPROBE.read_text())
    except OSError:
        raise KernelError(
            "this kernel has no uprobes", errno.ENOENT, hint="CONFIG_UPROBE_EVENTS=y"
        ) from None
    name = c.create_string_buffer(os.fsencode(path))
    attributes = PerfEventAttr(
        type=kind,
        size=c.sizeof(PerfEventAttr),
        config=place.semaphore << _SEMAPHORE_SHIFT,
        config1=c.addressof(name),
        config2=place.offset,
    )
    # every process, and one CPU: its programs run on all
    process, cpu, group, flags = -1, 0, -1, _CLOEXEC
    event = _syscall(
        0,
        c.byref(attributes),
        *map(c.c_long, (process, cpu, group, flags)),
    )
    if event < 0:
        raise KernelError(
            f"cannot open a probe in {path}",
            -event,
            hint="systemctl restart smtp-guard-load smtp-guard",
        )
    try:
        return libbpf.attach_perf(program, event, place.cookie)
    finally:
        os.close(event)  # the link keeps it
