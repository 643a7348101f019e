# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF files as far as probes need them: where an address is, what is exported, notes.

elf(5). libbpf 1.1 finds such places as well, but only for links of its own, which
take CAP_SYS_ADMIN or cannot be pinned. No more than 1 MiB of a file is read at once,
whatever stands in it.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guard.errors import KernelError

_MAGIC = b"\x7fELF\x02" + (b"\x01" if sys.byteorder == "little" else b"\x02")
_HEADER = struct.Struct("=16x2HI3QI6H")  # Elf64_Ehdr
_SEGMENT = struct.Struct("=2I6Q")  # Elf64_Phdr
_SECTION = struct.Struct("=2I4Q2I2Q")  # Elf64_Shdr
_SYMBOL = struct.Struct("=I2BH2Q")  # Elf64_Sym
_NOTE = struct.Struct("=3I")  # Elf64_Nhdr
_PT_LOAD, _SHT_NOTE, _SHT_DYNSYM = 1, 7, 11
_MOST = 1 << 20  # bytes of one table; PHP's and Postfix's have less than a tenth


class ElfError(ValueError):
    """What is wrong with a file, in words."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section header; offset and size are in the file, in bytes."""

    name_at: int  # in the section that holds the names
    kind: int
    address: int
    offset: int
    size: int
    link: int


class Elf:
    """An open ELF file of 64 bits, in the byte order of this machine."""

    def __init__(self, file: BinaryIO) -> None:
        """Read its tables; the file stays the caller's. Raises ElfError, OSError."""
        self._fd = file.fileno()
        self._size = os.fstat(self._fd).st_size
        head = self._read("the ELF header", 0, _HEADER.size)
        if not head.startswith(_MAGIC):
            raise ElfError("no ELF file of 64 bits of this machine's byte order")
        header = _HEADER.unpack(head)[4:]
        phoff, shoff, _, _, phsize, phnum, shsize, shnum, names = header
        self._loads = [  # address, size, offset
            (segment[3], segment[5], segment[2])
            for segment in self._table("segments", _SEGMENT, phoff, phsize, phnum)
            if segment[0] == _PT_LOAD
        ]
        self.sections = [
            Section(one[0], one[1], *one[3:7])
            for one in self._table("sections", _SECTION, shoff, shsize, shnum)
        ]
        self._names = self._content(names) if names else b""

    def _read(self, what: str, offset: int, size: int) -> bytes:
        if size > _MOST:
            raise ElfError(f"{what}: {size} bytes, more than {_MOST}")
        if offset + size > self._size:
            raise ElfError(f"{what}: past the end of the file")
        raw = os.pread(self._fd, size, offset)
        if len(raw) != size:  # it became shorter since
            raise ElfError(f"{what}: past the end of the file")
        return raw

    def _table(
        self, what: str, entry: struct.Struct, at: int, size: int, count: int
    ) -> Iterator[tuple[int, ...]]:
        if count and size != entry.size:
            raise ElfError(f"its {what}: {size} bytes each, not {entry.size}")
        return entry.iter_unpack(self._read(f"its {what}", at, entry.size * count))

    def _content(self, number: int) -> bytes:
        if number >= len(self.sections):
            raise ElfError(f"section {number}: it has {len(self.sections)}")
        section = self.sections[number]
        return self._read(f"section {number}", section.offset, section.size)

    def named(self, name: bytes) -> list[int]:
        """Give the numbers of the sections of that name."""
        wanted = name + b"\0"
        return [
            number
            for number, section in enumerate(self.sections)
            if self._names.startswith(wanted, section.name_at)
        ]

    def offset(self, address: int) -> int:
        """Turn an address of the program into a place (bytes) in its file.

        Raises ElfError for one that the file has no bytes of.
        """
        for start, size, offset in self._loads:
            if start <= address < start + size:
                place = address - start + offset
                if place < self._size:
                    return place
        raise ElfError(f"address {address:#x}: not in the file")

    def exported(self, name: bytes) -> int | None:
        """Give the address of what the file exports by that name; None: nothing."""
        wanted = name + b"\0"
        for number, section in enumerate(self.sections):
            if section.kind != _SHT_DYNSYM:
                continue
            names = self._content(section.link)
            raw = self._content(number)
            whole = raw[: len(raw) // _SYMBOL.size * _SYMBOL.size]
            for at, _, _, defined, value, _ in _SYMBOL.iter_unpack(whole):
                if defined and names.startswith(wanted, at):
                    return int(value)
        return None

    def notes(self, section: bytes, owner: bytes, kind: int) -> Iterator[bytes]:
        """Give what notes of one owner and type say, of the sections of that name."""
        for number in self.named(section):
            if self.sections[number].kind == _SHT_NOTE:
                yield from _notes(self._content(number), owner + b"\0", kind)


def _notes(raw: bytes, owner: bytes, kind: int) -> Iterator[bytes]:
    at = 0
    while at + _NOTE.size <= len(raw):
        owner_size, size, this = _NOTE.unpack_from(raw, at)
        at += _NOTE.size
        begin = at + _aligned(owner_size)
        if begin + size > len(raw):
            raise ElfError("a note: past the end of its section")
        if this == kind and raw[at : at + owner_size] == owner:
            yield raw[begin : begin + size]
        at = begin + _aligned(size)


def _aligned(size: int) -> int:
    return size + 3 & ~3


def exported(path: Path, function: str) -> int:
    """Give the offset (bytes) in a library's file of a function that it exports.

    Raises KernelError.
    """
    try:
        with path.open("rb") as file:
            elf = Elf(file)
            address = elf.exported(function.encode())
            if address is not None:
                return elf.offset(address)
    except OSError as error:
        raise KernelError(f"cannot read {path}", error.errno or 0) from None
    except ElfError as error:
        text = f"{path} has no {function}(): {error}"
        raise KernelError(text, errno.ENOEXEC) from None
    raise KernelError(f"{path} has no {function}()", errno.ENOENT)
