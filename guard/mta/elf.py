# SPDX-License-Identifier: GPL-2.0-or-later
"""Where in a library's file a function that it exports begins: elf(5).

libbpf 1.1 finds that as well, but only for a probe of perf_event_open(2), which takes
CAP_SYS_ADMIN.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path

from guard.errors import KernelError

_MAGIC = b"\x7fELF\x02"  # 64 bits
_HEADER = struct.Struct("16x2HI3QI6H")  # Elf64_Ehdr
_SEGMENT = struct.Struct("2I6Q")  # Elf64_Phdr
_SECTION = struct.Struct("2I4Q2I2Q")  # Elf64_Shdr
_SYMBOL = struct.Struct("I2BH2Q")  # Elf64_Sym
_PT_LOAD, _SHT_DYNSYM = 1, 11


def exported(path: Path, function: str) -> int:
    """Give the offset (bytes) of a function in the file. Raises KernelError."""
    try:
        raw = path.read_bytes()
        if not raw.startswith(_MAGIC):
            raise ValueError("no ELF file of 64 bits")
        address = next(_addresses(raw, function.encode()))
        return _offset(raw, address)
    except OSError as error:
        raise KernelError(f"cannot read {path}", error.errno or 0) from None
    except (ValueError, struct.error, StopIteration):
        raise KernelError(f"{path} has no {function}()", errno.ENOENT) from None


def _table(
    raw: bytes, entry: struct.Struct, at: int, count: int
) -> Iterator[tuple[int, ...]]:
    for number in range(count):
        yield entry.unpack_from(raw, at + number * entry.size)


def _addresses(raw: bytes, name: bytes) -> Iterator[int]:
    """Give the addresses of what is exported by that name: one, or none."""
    _, _, _, _, _, sections_at, *_, count, _ = _HEADER.unpack_from(raw)
    sections = list(_table(raw, _SECTION, sections_at, count))
    for _, kind, _, _, at, size, link, *_ in sections:
        if kind != _SHT_DYNSYM:
            continue
        names_at = sections[link][4]
        for offset, _, _, section, value, _ in _table(
            raw, _SYMBOL, at, size // _SYMBOL.size
        ):
            begin = names_at + offset
            if section and raw[begin : begin + len(name) + 1] == name + b"\0":
                yield value


def _offset(raw: bytes, address: int) -> int:
    _, _, _, _, segments_at, _, _, _, _, count, *_ = _HEADER.unpack_from(raw)
    for kind, _, at, start, _, size, _, _ in _table(raw, _SEGMENT, segments_at, count):
        if kind == _PT_LOAD and start <= address < start + size:
            return int(address - start + at)
    raise ValueError("an address in no segment")
