# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF files are read as they come; of a damaged one it is said what is wrong."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guard.elf import Elf, ElfError, exported
from guard.errors import KernelError

_PHOFF, _SHOFF, _PHENTSIZE, _SHNUM, _SHSTRNDX = 32, 40, 54, 60, 62  # Elf64_Ehdr


@pytest.fixture(scope="module")
def library() -> Path:
    """libbpf's own file: small, and it exports functions."""
    assert ctypes.CDLL("libbpf.so.1")
    [path] = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "libbpf.so" in line
    }
    return Path(path)


@contextmanager
def opened(path: Path) -> Iterator[Elf]:
    with path.open("rb") as file:
        yield Elf(file)


def test_addresses_and_sections_are_those_of_binutils(library: Path) -> None:
    with opened(library) as elf:
        for line in subprocess.run(
            ["readelf", "-W", "-S", library],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines():  # fmt: skip
            fields = line.partition("]")[2].split()
            if len(fields) < 5 or not fields[0].startswith("."):
                continue
            name, kind, *numbers = fields[:5]
            address, offset, size = (int(number, 16) for number in numbers)
            [one] = [elf.sections[at] for at in elf.named(name.encode())]
            assert (one.address, one.offset, one.size) == (address, offset, size)
            if address and size and kind != "NOBITS":
                assert elf.offset(address) == offset
        assert elf.named(b".text") and not elf.named(b".tex")
        assert elf.exported(b"bpf_obj_get") and elf.exported(b"bpf_obj_ge") is None
        [build] = elf.notes(b".note.gnu.build-id", b"GNU", 3)
        assert len(build) == 20
        assert not list(elf.notes(b".note.gnu.build-id", b"GN", 3))
        assert not list(elf.notes(b".note.gnu.build-id", b"GNU", 4))


@pytest.mark.parametrize(
    ("at", "form", "value", "said"),
    [
        (0, "4s", b"\x7fELG", "no ELF file of 64 bits"),
        (4, "B", 1, "no ELF file of 64 bits"),
        (_PHOFF, "Q", 1 << 63, "its segments: past the end of the file"),
        (_PHENTSIZE, "H", 32, "its segments: 32 bytes each, not 56"),
        (_SHOFF, "Q", (1 << 64) - 1, "its sections: past the end of the file"),
        (_SHNUM, "H", 0xFFFF, "its sections: 4194240 bytes, more than 1048576"),
        (_SHSTRNDX, "H", 999, "section 999: it has "),
    ],
)
def test_it_is_said_what_is_wrong(
    library: Path, tmp_path: Path, at: int, form: str, value: object, said: str
) -> None:
    raw = bytearray(library.read_bytes())
    struct.pack_into(f"={form}", raw, at, value)
    damaged = tmp_path / "lib.so"
    damaged.write_bytes(raw)
    with pytest.raises(KernelError) as error:
        exported(damaged, "bpf_obj_get")
    assert f"lib.so has no bpf_obj_get(): {said}" in str(error.value)


def test_an_offset_is_always_within_the_file(library: Path, tmp_path: Path) -> None:
    """Whatever is overwritten, an answer is a place in the file, or an ElfError."""
    whole = library.read_bytes()
    (sections,) = struct.unpack_from("<Q", whole, _SHOFF)
    seed = random.Random(20261125)
    damaged = tmp_path / "lib.so"
    damaged.write_bytes(whole)
    good = exported(damaged, "bpf_obj_get")
    answers = {"same": 0, "other": 0, "refused": 0}
    places = [*range(16, 64), *range(64, 700), *range(sections, len(whole))]
    with damaged.open("r+b") as file:
        for _ in range(1000):
            at = seed.choice(places)
            os.pwrite(file.fileno(), seed.randbytes(8), at)
            try:
                found = exported(damaged, "bpf_obj_get")
            except KernelError:
                answers["refused"] += 1
            else:
                assert 0 <= found < len(whole)
                answers["same" if found == good else "other"] += 1
            os.pwrite(file.fileno(), whole[at : at + 8], at)
    assert answers["same"] and answers["refused"], answers


def test_a_note_that_ends_after_its_section(library: Path, tmp_path: Path) -> None:
    raw = bytearray(library.read_bytes())
    with opened(library) as elf:
        [number] = elf.named(b".note.gnu.build-id")
        begin = elf.sections[number].offset
    struct.pack_into("=I", raw, begin + 4, 0xFFFFFFFF)
    damaged = tmp_path / "lib.so"
    damaged.write_bytes(raw)
    with opened(damaged) as elf, pytest.raises(ElfError, match="end of its section"):
        list(elf.notes(b".note.gnu.build-id", b"GNU", 3))
