# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of others at the cgroups where ours are: after them, or in their place.

The kernel asks every program, those of a cgroup before those of its parents, and one of
several at the same cgroup in the order they came; a later one can take a denial back
(bpf_set_retval) or turn the connection elsewhere.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from guard import libbpf
from guard.errors import KernelError

# BPF_F_ALLOW_OVERRIDE, BPF_F_ALLOW_MULTI, include/uapi/linux/bpf.h: without the second
# the kernel takes no other program at the same cgroup, without either none below it.
_OVERRIDE, _MULTI = 1, 2


def program_label(number: int) -> str:
    """Name a loaded program by its id, as far as this process may; "": it is gone."""
    try:
        return f"{libbpf.program_name(number)} (id {number})"
    except KernelError as error:  # EPERM: it takes CAP_SYS_ADMIN to ask
        return "" if error.errno == errno.ENOENT else f"a program (id {number})"


def runs_after(folder: int, attach_type: int, program_id: int) -> list[str]:
    """Name the programs of others that run after ours at an open cgroup2 folder."""
    others: list[str] = []
    for number in reversed(libbpf.effective_programs(folder, attach_type)):
        if number == program_id:
            return others[::-1]
        if name := program_label(number):
            others.append(name)
    return []  # not attached at all, which is another question


def keeps_out(cgroup: Path, attach_type: int) -> str:
    """Say whose program at a cgroup2 folder, or above it, lets none of ours be there.

    "": nobody's. As hierarchy_allows_attach() has it, kernel/bpf/cgroup.c. Raises
    KernelError.
    """
    for at in (cgroup, *cgroup.parents):
        if not (at / "cgroup.controllers").exists():  # cgroups(7): above the mount
            break
        try:
            folder = os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(f"cannot open {at}", error.errno or 0) from None
        try:
            numbers, flags = libbpf.attached_programs(folder, attach_type)
        finally:
            os.close(folder)
        if flags & _MULTI and at != cgroup:
            break  # then so has all that is above it
        if flags & _MULTI or not numbers:
            continue
        if flags & _OVERRIDE and at != cgroup:
            break
        return f"{program_label(numbers[0]) or 'a program'} at {at}"
    return ""
