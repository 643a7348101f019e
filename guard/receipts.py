# SPDX-License-Identifier: GPL-2.0-or-later
"""Has journald kept what it took? Asked of the journal's files themselves.

journald acknowledges nothing: with its disk full, or its rate limit met, it takes an
entry and drops it. How many entries have a field stands in the file, with
the field's data object; looking that up is five short reads, where going
through the entries would map the whole journal into guardd.

Layout: "Journal File Format" in systemd's documentation, journal-def.h.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

FOLDERS = (Path("/run/log/journal"), Path("/var/log/journal"))
_ACTIVE = "system.journal"  # archived ones are system@….journal, or .journal~
_HEADER = struct.Struct("<8s4xI8x16s64xQQ")  # as far as the size of the data hash table
_ITEM = struct.Struct("<QQ")  # of a hash table: first and last object
_DATA = struct.Struct("<BB6xQQQQQQQ")  # struct DataObject as far as n_entries
_KEYED_HASH, _COMPACT = 4, 16  # HEADER_INCOMPATIBLE_*
_LONGEST_CHAIN = 10_000
_WORD = 2**64 - 1


@functools.lru_cache(maxsize=64)  # the same few fields are looked up for ever
def siphash24(data: bytes, key: bytes) -> int:
    """Give SipHash-2-4 of data (Aumasson and Bernstein, 2012) with a 16-byte key."""
    k0, k1 = struct.unpack("<QQ", key)
    v: list[int] = [
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    ]

    def turn(word: int, bits: int) -> int:
        return (word << bits | word >> (64 - bits)) & _WORD

    def rounds(times: int) -> None:
        for _ in range(times):
            v[0] = (v[0] + v[1]) & _WORD
            v[1] = turn(v[1], 13) ^ v[0]
            v[0] = turn(v[0], 32)
            v[2] = (v[2] + v[3]) & _WORD
            v[3] = turn(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & _WORD
            v[3] = turn(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & _WORD
            v[1] = turn(v[1], 17) ^ v[2]
            v[2] = turn(v[2], 32)

    whole = len(data) // 8 * 8
    last = data[whole:].ljust(7, b"\0") + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", data[:whole] + last):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def entries_with(file: int, field: bytes) -> tuple[bytes, int]:
    """Tell of an open journal file its id, and how many entries have a field.

    field is NAME=value. Raises ValueError for a file that this cannot read: torn,
    or written by a systemd before 246, which hashed in another way.
    """
    try:
        magic, flags, file_id, table, size = _HEADER.unpack(
            os.pread(file, _HEADER.size, 0)
        )
        if magic != b"LPKSHHRH" or not flags & _KEYED_HASH or size < _ITEM.size:
            raise ValueError("no journal file with keyed hashes")
        wanted = siphash24(field, file_id)
        bucket = table + wanted % (size // _ITEM.size) * _ITEM.size
        at, _ = _ITEM.unpack(os.pread(file, _ITEM.size, bucket))
        payload = _DATA.size + 8 * bool(flags & _COMPACT)
        for _ in range(_LONGEST_CHAIN):
            if not at:
                return bytes(file_id), 0
            raw = os.pread(file, payload + len(field), at)
            _, _, length, hashed, following, *_ = _DATA.unpack_from(raw)
            same = hashed == wanted and length == payload + len(field)
            if same and raw[payload:] == field:
                entries: int = _DATA.unpack_from(raw)[-1]
                return bytes(file_id), entries
            at = following
    except (struct.error, OverflowError, OSError):  # offsets beyond any file
        raise ValueError("a torn journal file") from None
    raise ValueError("a chain without end")


class Receipts:
    """The entries with some fields that are in this host's journal, from now on."""

    def __init__(self, folders: Sequence[Path] = FOLDERS) -> None:
        """Begin to count; folders are journald's."""
        machine = ""
        with contextlib.suppress(OSError):
            machine = Path("/etc/machine-id").read_text().strip()
        self._folders = [folder / machine for folder in folders]
        self._old = {path for path in self._paths() if _is_archived(path)}
        # paths of files that take no more entries, and were counted
        self._settled = set(self._old)
        self._counts: dict[str, dict[bytes, int]] = {}  # by field, and a file's id

    def _paths(self) -> Iterator[str]:
        for folder in self._folders:
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    if name == _ACTIVE or name.startswith("system@"):
                        yield os.path.join(folder, name)

    def kept(self, fields: Collection[str]) -> dict[str, int]:
        """Give how many entries there are with each field, NAME=value.

        In files that can be read and were not archived before this began; those in
        files that were deleted since are still counted. One that is archived is
        counted once more and never again: a field is to be asked for from the first
        look on that comes after an entry with it.
        """
        counts = {field: self._counts.setdefault(field, {}) for field in fields}
        for path in self._paths():
            if path in self._settled:
                continue
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # just renamed, deleted, or not for us
                continue
            try:
                for field, by_file in counts.items():
                    file_id, number = entries_with(file, field.encode())
                    by_file[file_id] = number
            except ValueError:
                continue
            finally:
                os.close(file)
            if _is_archived(path):
                self._settled.add(path)
        return {field: sum(by_file.values()) for field, by_file in counts.items()}

    def has(self, name: str, archived: bool = False) -> bool:
        """Tell whether one file has all these fields, NAME=value, a line each.

        archived: also files that took their last entry before this process began.
        """
        wanted = name.encode().splitlines()
        unfit = set[str]() if archived else self._old
        for path in set(self._paths()) - unfit:
            with contextlib.suppress(OSError, ValueError):
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if all(entries_with(file, field)[1] for field in wanted):
                        return True
                finally:
                    os.close(file)
        return False


def _is_archived(path: str) -> bool:
    return not path.endswith(f"/{_ACTIVE}")
