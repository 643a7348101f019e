# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy -> the rows of the kernel's maps: one bitmask a value and dimension.

Bit-vector packet classification (Lakshman and Stiliadis, SIGCOMM 1998): every
rule owns one bit, or one a unit pattern. The row of a value holds the bits of
all rules that this value satisfies, those that do not name the dimension
included; the kernel ANDs one row a dimension and takes the lowest bit.
"""

from __future__ import annotations

import ctypes
import ipaddress
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from guard import abi
from guard.abi import Dimension, Direction, UnitTail
from guard.policy.files import is_missing
from guard.policy.model import NAT64, Policy, Rule
from guard.policy.units import Component

Identify = Callable[[Path], tuple[abi.ExeKey, abi.ExeKey]]

_MASK = struct.Struct(f"={abi.MASK_WORDS}Q")
_WORD = (1 << 64) - 1
_SLOT_BITS = 32  # slot or slot_depth, the first bits of both LPM keys
_MAPPED_BITS = 96  # ::ffff:0:0/96


@dataclass(frozen=True, slots=True)
class Rows:
    """All that the maps of one slot hold; keys and masks as the kernel's bytes."""

    policy: abi.Policy
    rules: list[abi.Rule]  # index: row bit
    exes: dict[bytes, bytes]  # struct exe_key -> struct mask
    numbers: dict[bytes, bytes]  # struct number_key -> struct mask
    units: dict[bytes, bytes]  # struct unit_key, LPM -> struct mask
    prefixes: dict[bytes, bytes]  # struct prefix_key, LPM -> struct mask
    ports: frozenset[int]  # guarded
    sha256: bytes


def compile_rows(policy: Policy, slot: int, identify: Identify) -> Rows:
    """Turn a policy into the rows of slot (0 or 1).

    identify gives an executable's keys by inode and by name in its directory,
    of the file that the path leads to now. Where it raises an OSError of a
    missing file, no row is made. Any other error goes to the caller.
    """
    rules: list[abi.Rule] = []
    bits: list[int] = []  # of each rule
    for rule in policy.rules:
        bits.append(((1 << rule.rows) - 1) << len(rules))
        row = abi.Rule(rule.number, rule.verdict, policy.quiet(rule), 0)
        rules += [row] * rule.rows
    used = list(zip(policy.rules, bits, strict=True))
    target = _settings(policy)
    outbound = _where(used, lambda rule: rule.direction is Direction.OUTBOUND)
    _put(target.direction[Direction.OUTBOUND], outbound)
    _put(target.direction[Direction.LOCAL], (1 << len(rules)) - 1 & ~outbound)
    _put(target.any_uid, _where(used, lambda rule: rule.uids is None))
    _put(target.any_gid, _where(used, lambda rule: rule.gids is None))
    _put(target.any_exe, _where(used, lambda rule: rule.exes is None))
    _put(target.any_port, _where(used, lambda rule: rule.ports is None))
    _put(target.any_to, _where(used, lambda rule: rule.to is None))
    return Rows(
        target,
        rules,
        _exes(used, slot, identify),
        {
            **_numbers(used, slot, Dimension.UID, lambda rule: rule.uids),
            **_numbers(used, slot, Dimension.GID, lambda rule: rule.gids),
            **_numbers(used, slot, Dimension.PORT, lambda rule: rule.ports),
        },
        _units(used, slot, target),
        _prefixes(used, slot),
        policy.ports,
        policy.sha256,
    )


Used = list[tuple[Rule, int]]  # each rule with its bits


def _where(used: Used, holds: Callable[[Rule], bool]) -> int:
    mask = 0
    for rule, bits in used:
        if holds(rule):
            mask |= bits
    return mask


def _pack(mask: int) -> bytes:
    return _MASK.pack(*(mask >> 64 * i & _WORD for i in range(abi.MASK_WORDS)))


def _put(target: abi.Mask, mask: int) -> None:
    for index in range(abi.MASK_WORDS):
        target.word[index] = mask >> 64 * index & _WORD


def _settings(policy: Policy) -> abi.Policy:
    return abi.Policy(
        mode=policy.mode,
        rules=len(policy.rules),
        local_default=policy.local_default,
        local_quiet=policy.default_quiet,
        denied_burst=policy.fold.denied,
        passed_burst=policy.fold.local,
        window_ns=policy.fold.window_ns,
        mark=policy.backstop.socket_mark,
        protection=policy.protection,
        redirect4=_target(policy.redirect4),
        redirect6=_target(policy.redirect6),
        sha256=(ctypes.c_uint8 * 32)(*policy.sha256),
    )


def _target(to: tuple[str, int] | None) -> abi.Target:
    if to is None:
        return abi.Target()
    address = (ctypes.c_uint8 * 16)(*abi.pack_address(to[0]))
    return abi.Target(address=address, port=to[1], set=1)


def _exes(used: Used, slot: int, identify: Identify) -> dict[bytes, bytes]:
    """Make two rows a file: by its inode, and by its name in its directory."""
    found: dict[Path, list[bytes]] = {}
    masks: dict[bytes, int] = {}
    for rule, bits in used:
        for path in rule.exes or ():
            if path not in found:
                found[path] = _exe_keys(path, slot, identify)
            for key in found[path]:
                masks[key] = masks.get(key, 0) | bits
    return _with_any(masks, _where(used, lambda rule: rule.exes is None))


def _exe_keys(path: Path, slot: int, identify: Identify) -> list[bytes]:
    try:
        keys = identify(path)
    except OSError as error:
        if not is_missing(error):
            raise
        return []
    return [
        bytes(abi.ExeKey(key.inode, key.device, key.generation, slot, 0, key.name))
        for key in keys
    ]


def _with_any(masks: dict[bytes, int], rest: int) -> dict[bytes, bytes]:
    return {key: _pack(mask | rest) for key, mask in masks.items()}


def _numbers(
    used: Used,
    slot: int,
    dimension: Dimension,
    values: Callable[[Rule], Iterable[int] | None],
) -> dict[bytes, bytes]:
    masks: dict[bytes, int] = {}
    for rule, bits in used:
        for value in values(rule) or ():
            key = bytes(abi.NumberKey(slot, dimension, value))
            masks[key] = masks.get(key, 0) | bits
    return _with_any(masks, _where(used, lambda rule: values(rule) is None))


def _units(used: Used, slot: int, target: abi.Policy) -> dict[bytes, bytes]:
    """Make one row a name and depth, and the masks for depths without a row."""
    free = [0] * abi.UNIT_DEPTH  # any_unit: nothing named at this depth
    tails = [[0] * abi.UNIT_TAILS for _ in range(abi.UNIT_DEPTH)]
    ends = [0] * (abi.UNIT_DEPTH + 1)
    heads: list[dict[bytes, int]] = [{} for _ in range(abi.UNIT_DEPTH)]
    first = 0
    for rule, _ in used:
        named = rule.units is not None
        patterns = [pattern.components for pattern in rule.units or ()]
        for row, components in enumerate(patterns if named else [()], first):
            bit = 1 << row
            for depth in range(len(components), abi.UNIT_DEPTH + 1):
                ends[depth] |= bit
            for depth in range(abi.UNIT_DEPTH):
                component = components[depth] if depth < len(components) else None
                for tail in _tails(component):
                    tails[depth][tail] |= bit
                if component is None:
                    free[depth] |= bit
                else:
                    prefix = component.head + (b"" if component.star else b"\0")
                    heads[depth][prefix] = heads[depth].get(prefix, 0) | bit
        first += rule.rows
    for depth in range(abi.UNIT_DEPTH):
        _put(target.any_unit[depth], free[depth])
        for tail in UnitTail:
            _put(target.unit_tail[depth][tail], tails[depth][tail])
    for depth, mask in enumerate(ends):
        _put(target.unit_ends[depth], mask)
    rows = {}
    for depth, masks in enumerate(heads):
        for prefix in masks:
            mask = free[depth]
            # Only the longest match is found, so it holds the shorter ones too.
            for length in range(len(prefix) + 1):
                mask |= masks.get(prefix[:length], 0)
            key = abi.UnitKey(_SLOT_BITS + 8 * len(prefix), slot << 16 | depth, prefix)
            rows[bytes(key)] = _pack(mask)
    return rows


def _tails(component: Component | None) -> Iterable[UnitTail]:
    if component is None or component.tail is None:
        return UnitTail
    return (component.tail,)


def _prefixes(used: Used, slot: int) -> dict[bytes, bytes]:
    """Make one row a prefix, with the bits of all shorter ones that hold it."""
    rest = _where(used, lambda rule: rule.to is None)
    v4: dict[tuple[int, int], int] = {}  # (bits, value of those bits)
    v6: dict[tuple[int, int], int] = {}
    for rule, bits in used:
        for network in rule.to or ():
            length, value = network.prefixlen, int(network.network_address)
            if isinstance(network, ipaddress.IPv4Network):
                key = length, value >> 32 - length
                v4[key] = v4.get(key, 0) | bits
                length += NAT64.prefixlen
                value |= int(NAT64.network_address)
            key = length, value >> 128 - length
            v6[key] = v6.get(key, 0) | bits
    rows = {}
    for (length, value), mask in _nested(v6).items():
        rows[_prefix_key(slot, length, value << 128 - length)] = _pack(mask | rest)
    # An IPv6 prefix is about IPv6. A short one holds ::ffff:0:0/96 as well, so
    # IPv4 gets a row of its own there that inherits nothing from it.
    if v4 or any(length <= _MAPPED_BITS for length, _ in v6):
        v4.setdefault((0, 0), 0)
    mapped = 0xFFFF << 32
    for (length, value), mask in _nested(v4).items():
        address = mapped | value << 32 - length
        rows[_prefix_key(slot, _MAPPED_BITS + length, address)] = _pack(mask | rest)
    return rows


def _nested(masks: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    """Add to each prefix's mask those of all shorter prefixes that hold it."""
    lengths = sorted({length for length, _ in masks})
    found = {}
    for length, value in masks:
        mask = 0
        for shorter in lengths:
            if shorter <= length:
                mask |= masks.get((shorter, value >> length - shorter), 0)
        found[length, value] = mask
    return found


def _prefix_key(slot: int, length: int, address: int) -> bytes:
    packed = (ctypes.c_uint8 * 16)(*address.to_bytes(16, "big"))
    return bytes(abi.PrefixKey(_SLOT_BITS + length, slot, packed))
