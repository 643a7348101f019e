# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes that a program was built with (USDT): where they are, and their arguments.

An ELF note tells where each is, where its semaphore is and where its arguments are:
sys/sdt.h, "User Space Probe Implementation" of SystemTap. libbpf, which reads them as
well, keeps to itself where arguments are: here the cookie of the attachment says it.
"""

from __future__ import annotations

import errno
import platform
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from guard.elf import Elf
from guard.errors import KernelError
from guard.uprobes import Place

_NT_STAPSDT = 3
_PLACES = struct.Struct("=3Q")  # of the probe, the base, the semaphore

# Number of a register in struct pt_regs, counted in words, arch/*/include/asm/ptrace.h.
_X86 = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi"
_REGISTERS = {
    "x86_64": {**{name: n for n, name in enumerate(_X86.split())}, "rsp": 19},
    "aarch64": {**{f"x{n}": n for n in range(31)}, "sp": 31},
}
# "8@%rax", "8@-16(%rbp)"; "8@x0", "8@[sp, 16]"
_ARGUMENTS = {
    "x86_64": re.compile(r"(-?\d)@(?:(-?\d*)(\())?%(\w+)\)?(?: |$)"),
    "aarch64": re.compile(r"(-?\d)@()(\[)?(\w+)(?:, ?(-?\d+))?\]?(?: |$)"),
}
# As bpf/php.bpf.c reads a cookie.
_ARG_BITS, _ARG_POINTS, _OFFSET_SHIFT, _OFFSET_BITS = 21, 0x40, 7, 14
_COOKIE_ARGS = 3


@dataclass(frozen=True, slots=True)
class Probe:
    """One place in a program; offsets are in the file, in bytes."""

    name: str
    offset: int
    semaphore: int  # a 16-bit counter of who listens; 0: it has none
    arguments: str  # as the note writes them

    def cookie(self) -> int:
        """Say where the first three arguments are, as bpf/php.bpf.c reads it.

        Raises ValueError for a place that this cannot say, and KernelError on a machine
        whose registers we do not know.
        """
        machine = platform.machine()
        if machine not in _ARGUMENTS:
            raise KernelError(
                f"what probes say cannot be read on {machine}",
                errno.EOPNOTSUPP,
                hint=f"it can on {' and '.join(_ARGUMENTS)}",
            )
        made = 0
        found = _ARGUMENTS[machine].findall(self.arguments)
        if len(found) != _COOKIE_ARGS:
            raise ValueError(f"arguments {self.arguments!r}")
        for number, (size, before, points, register, *after) in enumerate(found):
            away = int(before or "".join(after) or 0)
            if size.lstrip("-") != "8" or register not in _REGISTERS[machine]:
                raise ValueError(f"arguments {self.arguments!r}")
            if away and not -(1 << _OFFSET_BITS - 1) <= away < 1 << _OFFSET_BITS - 1:
                raise ValueError(f"arguments {self.arguments!r}")
            how = _REGISTERS[machine][register]
            if points:
                how |= _ARG_POINTS
                how |= (away & (1 << _OFFSET_BITS) - 1) << _OFFSET_SHIFT
            made |= how << _ARG_BITS * number
        return made

    def place(self) -> Place:
        """Give it as a place to attach to. Raises as cookie() does."""
        return Place(self.offset, self.semaphore, self.cookie())


def probes(file: BinaryIO, provider: str) -> list[Probe]:
    """Read the probes of a provider from an ELF file of this machine.

    [] for a file that has none or is none. Raises OSError.
    """
    try:
        return list(_probes(Elf(file), provider.encode()))
    except (ValueError, struct.error):
        return []  # not an ELF file of 64 bits, or a damaged one


def _probes(elf: Elf, provider: bytes) -> Iterator[Probe]:
    bases = [elf.sections[at].address for at in elf.named(b".stapsdt.base")]
    for note in elf.notes(b".note.stapsdt", b"stapsdt", _NT_STAPSDT):
        where, base, semaphore = _PLACES.unpack_from(note)
        by, what, arguments = note[_PLACES.size :].split(b"\0")[:3]
        if by != provider:
            continue
        moved = bases[0] - base if bases else 0  # by prelink(8)
        yield Probe(
            what.decode(),
            elf.offset(where + moved),
            elf.offset(semaphore + moved) if semaphore else 0,
            arguments.decode(),
        )
