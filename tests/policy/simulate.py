# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's mask lookup in Python, from the same bytes that its maps hold.

It proves the rows before there is a kernel to load them into, and says which
side is wrong when the kernel and guard.policy.evaluate disagree.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from guard import abi
from guard.abi import Dimension, UnitTail, Verdict
from guard.policy import Rows

Words = list[int]


class Kernel:
    """One slot's rows, and the lookups of bpf/verdict.bpf.h."""

    def __init__(self, rows: Rows) -> None:
        """Take the rows as user space would put them into the maps."""
        self.rows = rows
        self.units = _Lpm(rows.units)
        self.prefixes = _Lpm(rows.prefixes)

    def judge(self, question: abi.Question) -> tuple[Verdict, int, bool]:
        """Give verdict, rule number (or NO_RULE) and quiet."""
        policy = self.rows.policy
        masks = [
            _words(policy.direction[question.direction]),
            self._number(question, Dimension.UID, question.uid, policy.any_uid),
            self._number(question, Dimension.GID, question.gid, policy.any_gid),
            self._number(question, Dimension.PORT, question.port, policy.any_port),
            self._exe(question),
            self._to(question),
            self._unit(question),
        ]
        bit = _lowest(_and(masks))
        if bit is not None:
            rule = self.rows.rules[bit]
            return Verdict(rule.verdict), rule.number, bool(rule.quiet)
        if question.direction:
            default = Verdict(policy.local_default)
            return default, abi.NO_RULE, bool(policy.local_quiet)
        return Verdict.DENY, abi.NO_RULE, False

    def _number(
        self, question: abi.Question, dimension: int, number: int, rest: abi.Mask
    ) -> Words:
        key = bytes(abi.NumberKey(question.slot, dimension, number))
        row = self.rows.numbers.get(key)
        return _words(rest) if row is None else _unpack(row)

    def _exe(self, question: abi.Question) -> Words:
        found = []
        if question.trusted:
            keys = (bytes(question.inode), bytes(question.name))
            found = [self.rows.exes[key] for key in keys if key in self.rows.exes]
        if not found:
            return _words(self.rows.policy.any_exe)
        rows = list(map(_unpack, found))
        return [word | rows[-1][index] for index, word in enumerate(rows[0])]

    def _to(self, question: abi.Question) -> Words:
        key = bytes(abi.PrefixKey(32 + 128, question.slot, question.address))
        row = self.prefixes.find(key)
        return _words(self.rows.policy.any_to) if row is None else _unpack(row)

    def _unit(self, question: abi.Question) -> Words:
        policy = self.rows.policy
        masks = [_words(policy.unit_ends[question.depth])]
        for depth in range(question.depth):
            # The field's bytes: ctypes' value would stop at the first NUL.
            raw = ctypes.string_at(question.component[depth], abi.NAME_LEN)
            row = None
            if b"\0" in raw:
                slot_depth = question.slot << 16 | depth
                key = abi.UnitKey(32 + 8 * abi.NAME_LEN, slot_depth, raw)
                row = self.units.find(bytes(key))
            rest = _words(policy.any_unit[depth])
            masks.append(rest if row is None else _unpack(row))
            tail = _tail(raw[: abi.NAME_LEN - 1].split(b"\0", 1)[0])
            masks.append(_words(policy.unit_tail[depth][tail]))
        return _and(masks)


class _Lpm:
    """BPF_MAP_TYPE_LPM_TRIE: the longest stored prefix of a key."""

    def __init__(self, rows: Mapping[bytes, bytes]) -> None:
        self.rows: dict[tuple[int, int], bytes] = {}
        for key, mask in rows.items():
            self.rows[_prefix(key, int.from_bytes(key[:4], "little"))] = mask
        self.lengths = sorted({length for length, _ in self.rows}, reverse=True)

    def find(self, key: bytes) -> bytes | None:
        limit = int.from_bytes(key[:4], "little")
        for length in self.lengths:
            row = self.rows.get(_prefix(key, length)) if length <= limit else None
            if row is not None:
                return row
        return None


def _prefix(key: bytes, length: int) -> tuple[int, int]:
    bits = 8 * (len(key) - 4)
    return length, int.from_bytes(key[4:], "big") >> bits - length


def _words(mask: abi.Mask) -> Words:
    return list(mask.word)


def _unpack(row: bytes) -> Words:
    return list(abi.Mask.from_buffer_copy(row).word)


def _and(masks: list[Words]) -> Words:
    result = [(1 << 64) - 1] * abi.MASK_WORDS
    for mask in masks:
        result = [a & b for a, b in zip(result, mask, strict=True)]
    return result


def _lowest(mask: Words) -> int | None:
    for index, word in enumerate(mask):
        for bit in range(64):
            if word >> bit & 1:
                return 64 * index + bit
    return None


def _tail(name: bytes) -> UnitTail:
    for tail in (UnitTail.SERVICE, UnitTail.SLICE, UnitTail.SCOPE):
        if name.endswith(b"." + tail.name.lower().encode()):
            return tail
    return UnitTail.OTHER
