# SPDX-License-Identifier: GPL-2.0-or-later
"""One contract, two languages: guard/abi.py is bpf/guard.h, byte for byte."""

from __future__ import annotations

import ctypes
import enum
import re
from pathlib import Path
from typing import Any

import pytest

from guard import abi, kernel
from guard.errors import AbiMismatch
from guard.libbpf import Object

HEADER = Path(__file__).resolve().parents[1] / "bpf" / "guard.h"
Layouts = dict[str, tuple[int, dict[str, int]]]

# enum of the header: its mirror, and the prefix that Python leaves out
ENUMS: dict[str, tuple[type[enum.IntEnum] | type[enum.IntFlag], str]] = {
    "verdict": (abi.Verdict, "VERDICT_"),
    "mode": (abi.Mode, "MODE_"),
    "direction": (abi.Direction, "DIRECTION_"),
    "event_kind": (abi.EventKind, "EVENT_"),
    "outcome": (abi.Outcome, "OUTCOME_"),
    "act": (abi.Act, "ACT_"),
    "protection": (abi.Protection, "PROTECTION_"),
    "event_flag": (abi.Flag, "FLAG_"),
    "dimension": (abi.Dimension, "DIMENSION_"),
    "unit_tail": (abi.UnitTail, "TAIL_"),
    "counter": (abi.Counter, "COUNT_"),
}
# one past the last counter, which the header alone needs
HEADER_ONLY = {"COUNTERS"}


@pytest.fixture(scope="module")
def layouts() -> Layouts:
    with Object(kernel.OBJECT) as obj:
        return obj.layouts()


@pytest.fixture(scope="module")
def header() -> str:
    text = HEADER.read_text()
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def test_every_layout_is_that_of_the_object(layouts: Layouts) -> None:
    kernel.check_layouts(layouts)


def test_every_struct_of_the_header_has_a_mirror(header: str) -> None:
    declared = set(re.findall(r"^struct (\w+) \{", header, re.MULTILINE))
    assert declared == set(abi.LAYOUTS)


@pytest.mark.parametrize("name", abi.LAYOUTS)
def test_a_field_that_moved_is_named(layouts: Layouts, name: str) -> None:
    size, offsets = layouts[name]
    for field, offset in offsets.items():
        moved = {**layouts, name: (size, {**offsets, field: offset + 4})}
        with pytest.raises(AbiMismatch, match=rf"struct {name}, field {field}:"):
            kernel.check_layouts(moved)


@pytest.mark.parametrize("name", abi.LAYOUTS)
def test_a_field_of_one_side_alone_is_named(layouts: Layouts, name: str) -> None:
    size, offsets = layouts[name]
    more = {**layouts, name: (size + 8, {**offsets, "newcomer": size})}
    with pytest.raises(AbiMismatch, match=f"struct {name}, field newcomer"):
        kernel.check_layouts(more)
    *most, last = offsets
    fewer = {**layouts, name: (size, {field: offsets[field] for field in most})}
    with pytest.raises(AbiMismatch, match=f"struct {name}, field {last}"):
        kernel.check_layouts(fewer)


def test_another_size_and_a_missing_struct_are_refused(layouts: Layouts) -> None:
    size, offsets = layouts["rule"]
    with pytest.raises(AbiMismatch, match="struct rule"):
        kernel.check_layouts({**layouts, "rule": (size + 4, offsets)})
    without = {name: layout for name, layout in layouts.items() if name != "event"}
    with pytest.raises(AbiMismatch, match="struct event"):
        kernel.check_layouts(without)


def test_a_mirror_that_changed_is_refused(
    layouts: Layouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rule(ctypes.Structure):
        _fields_ = [("number", ctypes.c_uint32), ("verdict", ctypes.c_uint16)]

    changed: dict[str, Any] = {**abi.LAYOUTS, "rule": Rule}
    monkeypatch.setattr(abi, "LAYOUTS", changed)
    with pytest.raises(AbiMismatch, match="struct rule, field quiet"):
        kernel.check_layouts(layouts)


def enums_of(header: str) -> dict[str, dict[str, int]]:
    """Read the enums of a C header that numbers every member."""
    found = {}
    for name, body in re.findall(r"enum (\w+) \{(.*?)\};", header, re.DOTALL):
        found[name] = {
            member: eval(value, {"__builtins__": {}})
            for member, value in re.findall(r"(\w+)\s*=\s*([0-9x <]+)", body)
        }
        assert len(found[name]) == len([m for m in body.split(",") if m.strip()])
    return found


def test_every_enum_is_that_of_the_header(header: str) -> None:
    declared = enums_of(header)
    assert declared.keys() == ENUMS.keys()
    for name, (mirror, prefix) in ENUMS.items():
        theirs = {
            member.removeprefix(prefix): value
            for member, value in declared[name].items()
            if member not in HEADER_ONLY
        }
        assert theirs == {member.name: member.value for member in mirror}, name
    assert declared["counter"]["COUNTERS"] == len(abi.Counter)


def test_every_limit_is_that_of_the_header(header: str) -> None:
    names = {"GUARD_ABI": "ABI"}
    values: dict[str, int] = {}
    for name, text in re.findall(r"^#define (\w+) (\S.*)$", header, re.MULTILINE):
        text = re.sub(r"(0x[0-9a-f]+|\d+)U\b", r"\1", text)
        values[name] = eval(text, {"__builtins__": {}}, values)
        assert getattr(abi, names.get(name, name)) == values[name], name
    assert len(values) > 10


def test_the_strict_answer_is_zero() -> None:
    """A zero-filled row, slot or map can only refuse."""
    assert abi.Verdict(0) is abi.Verdict.DENY
    assert abi.Mode(0) is abi.Mode.ENFORCE
    assert abi.Direction(0) is abi.Direction.OUTBOUND
    assert abi.Outcome(0) is abi.Outcome.DENIED
