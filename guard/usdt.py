# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes that a program was built with (USDT), and our programs attached to them.

An ELF note tells where each is, where its semaphore is and where its arguments are:
sys/sdt.h, "User Space Probe Implementation" of SystemTap. libbpf can attach to them,
but not so that it lasts longer than the process: its link cannot be pinned, and where
arguments are it keeps to itself. A link to a plain uprobe can, and its cookie says
where they are.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import platform
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guard import libbpf
from guard.errors import KernelError

_UPROBE = Path("/sys/bus/event_source/devices/uprobe/type")
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}  # asm/unistd.h
_CLOEXEC = 8  # PERF_FLAG_FD_CLOEXEC
_BPF = {"x86_64": 321, "aarch64": 280}
_LINK_CREATE = 28  # enum bpf_cmd, include/uapi/linux/bpf.h
_SEMAPHORE_SHIFT = 32  # ref_ctr_offset in attr.config, format/ref_ctr_offset there
_MOST = 1 << 20  # bytes of notes and headers that are read
_NT_STAPSDT = 3
_SHT_NOTE, _PT_LOAD = 7, 1  # elf(5)

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

_libc = c.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Probe:
    """One place in a program; offsets are in the file, in bytes."""

    name: str
    offset: int
    semaphore: int  # a 16-bit counter of who listens; 0: it has none
    arguments: str  # as the note writes them

    def cookie(self) -> int:
        """Say where the first three arguments are, as bpf/php.bpf.c reads it.

        Raises ValueError for a place that this cannot say.
        """
        machine = platform.machine()
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


def probes(file: BinaryIO, provider: str) -> list[Probe]:
    """Read the probes of a provider from an ELF file of this machine.

    [] for a file that has none or is none. Raises OSError.
    """
    try:
        return list(_probes(file, provider.encode()))
    except (struct.error, ValueError, IndexError):
        return []  # not an ELF file of 64 bits, or a damaged one


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    end = os.fstat(file.fileno()).st_size
    if size > _MOST or offset + size > end:
        raise ValueError("a place that is none")
    return os.pread(file.fileno(), size, offset)


def _probes(file: BinaryIO, provider: bytes) -> Iterator[Probe]:
    head = _read(file, 0, 64)
    if head[:6] != b"\x7fELF\x02\x01":  # 64 bits, little endian
        return
    phoff, shoff = struct.unpack_from("<QQ", head, 32)
    phsize, phnum, shsize, shnum, names_at = struct.unpack_from("<5H", head, 54)
    loads = []
    table = _read(file, phoff, phsize * phnum)
    for at in range(0, phsize * phnum, phsize):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", table, at)
        if kind == _PT_LOAD:
            loads.append((address, size, offset))
    table = _read(file, shoff, shsize * shnum)
    sections = [
        # name, type, address, offset, size
        struct.unpack_from("<II8xQQQ", table, n * shsize)
        for n in range(shnum)
    ]
    names = _read(file, sections[names_at][3], sections[names_at][4])

    def name(section: tuple[int, ...]) -> bytes:
        return names[section[0] : names.index(b"\0", section[0])]

    bases = [section[2] for section in sections if name(section) == b".stapsdt.base"]
    for section in sections:
        if section[1] != _SHT_NOTE or name(section) != b".note.stapsdt":
            continue
        for note in _notes(_read(file, section[3], section[4])):
            where, base, semaphore = struct.unpack_from("<QQQ", note)
            by, what, arguments = note[24:].split(b"\0")[:3]
            if by != provider:
                continue
            moved = bases[0] - base if bases else 0  # by prelink(8)
            yield Probe(
                what.decode(),
                _offset(loads, where + moved),
                _offset(loads, semaphore + moved) if semaphore else 0,
                arguments.decode(),
            )


def _notes(raw: bytes) -> Iterator[bytes]:
    at = 0
    while at + 12 <= len(raw):
        owner, size, kind = struct.unpack_from("<III", raw, at)
        begin = at + 12 + (owner + 3 & ~3)
        if kind == _NT_STAPSDT and raw[at + 12 :].startswith(b"stapsdt\0"):
            yield raw[begin : begin + size]
        at = begin + (size + 3 & ~3)


def _offset(loads: list[tuple[int, int, int]], address: int) -> int:
    """Turn an address of the program into a place in its file."""
    for start, size, offset in loads:
        if start <= address < start + size:
            return int(address - start + offset)
    raise ValueError(f"{address:#x} is not in the file")


class _Attributes(c.Structure):
    """struct perf_event_attr up to PERF_ATTR_SIZE_VER1, linux/perf_event.h."""

    _fields_ = [
        ("type", c.c_uint32),
        ("size", c.c_uint32),
        ("config", c.c_uint64),
        ("sample_period", c.c_uint64),
        ("sample_type", c.c_uint64),
        ("read_format", c.c_uint64),
        ("flags", c.c_uint64),
        ("wakeup_events", c.c_uint32),
        ("bp_type", c.c_uint32),
        ("path", c.c_char_p),  # config1 of a uprobe
        ("offset", c.c_uint64),  # config2
    ]


class _MultiLink(c.Structure):
    """link_create of union bpf_attr for uprobe_multi: libbpf 1.1 does not know it."""

    _fields_ = [
        ("program", c.c_uint32),
        ("target", c.c_uint32),
        ("attach_type", c.c_uint32),
        ("link_flags", c.c_uint32),
        ("path", c.c_char_p),
        ("offsets", c.c_void_p),
        ("semaphores", c.c_void_p),
        ("cookies", c.c_void_p),
        ("count", c.c_uint32),
        ("flags", c.c_uint32),
        ("pid", c.c_uint32),  # 0: every process
        ("pad", c.c_uint32),
    ]


def attach_multi(program: int, path: Path, probe: Probe) -> int:
    """As attach(), for a program that was loaded for uprobe_multi: Linux 6.6.

    CAP_BPF and CAP_PERFMON are enough everywhere. Where the kernel does not know
    it the error is EINVAL.
    """
    offset, semaphore, cookie = map(
        c.c_uint64, (probe.offset, probe.semaphore, probe.cookie())
    )
    wanted = _MultiLink(
        program=program,
        attach_type=libbpf.TRACE_UPROBE_MULTI,
        path=os.fsencode(path),
        offsets=c.addressof(offset),
        semaphores=c.addressof(semaphore) if probe.semaphore else None,
        cookies=c.addressof(cookie),
        count=1,
    )
    link = _libc.syscall(
        c.c_long(_BPF[platform.machine()]),
        c.c_long(_LINK_CREATE),
        c.byref(wanted),
        c.c_ulong(c.sizeof(wanted)),
    )
    if link < 0:
        raise KernelError(f"cannot attach to a probe in {path}", c.get_errno())
    return int(link)


def attach(program: int, path: Path, probe: Probe) -> int:
    """Attach a program to a probe of the file at path, in every process that runs it.

    Gives the link's descriptor, which the caller owns: it can be pinned. Raises
    KernelError, and ValueError where Probe.cookie() does. Debian and Ubuntu refuse
    it (EACCES) to who has CAP_PERFMON and not CAP_SYS_ADMIN: there
    kernel.perf_event_paranoid is above 2, the highest that others know.
    """
    cookie = probe.cookie()
    try:
        kind = int(_UPROBE.read_text())
    except OSError:
        raise KernelError(
            "this kernel has no uprobes", errno.ENOENT, hint="CONFIG_UPROBE_EVENTS=y"
        ) from None
    raw = os.fsencode(path)
    attributes = _Attributes(
        type=kind,
        size=c.sizeof(_Attributes),
        config=probe.semaphore << _SEMAPHORE_SHIFT,
        path=raw,
        offset=probe.offset,
    )
    # every process, and one CPU: its programs run on all
    event = _libc.syscall(
        c.c_long(_PERF_EVENT_OPEN[platform.machine()]),
        c.byref(attributes),
        c.c_long(-1),
        c.c_long(0),
        c.c_long(-1),
        c.c_ulong(_CLOEXEC),
    )
    if event < 0:
        raise KernelError(
            f"cannot open a probe in {path}",
            c.get_errno(),
            hint="systemctl restart smtp-guard-load smtp-guard",
        )
    try:
        return libbpf.attach_perf(program, event, cookie)
    finally:
        os.close(event)  # the link keeps it
