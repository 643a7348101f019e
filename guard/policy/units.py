# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit patterns: from `postfix@*.service` to components of a cgroup path.

Where systemd puts a unit when its file names no Slice=: services in
system.slice, instances of a template in system-PREFIX.slice below it, slices
at the place their dashes say (systemd.slice(5), systemd.unit(5)). A unit with
a Slice= of its own is written as a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from guard.abi import NAME_LEN, UNIT_DEPTH, UnitTail
from guard.text import printable

TAILS = {
    b".service": UnitTail.SERVICE,
    b".slice": UnitTail.SLICE,
    b".scope": UnitTail.SCOPE,
}
# Unit types that have a cgroup in system.slice unless told otherwise.
_IN_SYSTEM_SLICE = (".service", ".socket", ".mount", ".swap")


class BadUnit(ValueError):
    """A pattern that the kernel could not match as written."""

    def __init__(self, message: str, remedy: str) -> None:
        """Say what is wrong and what to write instead."""
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Component:
    """One name of a pattern's path."""

    head: bytes  # all of a literal; else what stands before the `*`
    star: bool = False
    tail: UnitTail | None = None  # after the `*`; None: anything

    def covers(self, other: Component) -> bool:
        """Tell whether every name that other matches is matched here."""
        if not self.star:
            return self == other
        if not other.head.startswith(self.head):
            return False
        if self.tail is None:
            return True
        return self.tail == (other.tail if other.star else tail_of(other.head))


@dataclass(frozen=True, slots=True)
class UnitPattern:
    """A cgroup and all below it, with at most one `*` in a name."""

    text: str  # as written
    path: str  # from the root of cgroup2, as the kernel will match it
    components: tuple[Component, ...]

    def covers(self, other: UnitPattern) -> bool:
        """Tell whether every cgroup that other matches is matched here."""
        return len(self.components) <= len(other.components) and all(
            map(Component.covers, self.components, other.components)
        )


def tail_of(name: bytes) -> UnitTail:
    """Class a name of the cgroup tree by what it ends in."""
    return next((t for end, t in TAILS.items() if name.endswith(end)), UnitTail.OTHER)


def unit_pattern(text: str) -> UnitPattern:
    """Turn a pattern as written in a policy into components.

    Raises BadUnit with a remedy when it has no meaning, or none that the
    kernel's lookup can express.
    """
    if not text or printable(text) != text or " " in text:
        raise BadUnit("not the name of a unit", 'write it as in "postfix.service"')
    if text.startswith("/"):
        names = text[1:].removesuffix("/").split("/")
        if names == [""]:
            raise BadUnit('"/" is every process', "leave unit out instead")
    elif "/" in text:
        raise BadUnit(
            "a path that does not begin with /",
            f'write "/{text}" for a path from the root of the cgroup tree',
        )
    else:
        names = [*_place(text), text]
    if len(names) > UNIT_DEPTH:
        raise BadUnit(
            f"{len(names)} components deep, the kernel compares {UNIT_DEPTH}",
            "name a cgroup further up; all below it is matched as well",
        )
    return UnitPattern(text, "/" + "/".join(names), tuple(map(_component, names)))


def _component(name: str) -> Component:
    if name in ("", ".", ".."):
        raise BadUnit(
            f'"{name}" as a component of the path',
            "write the path as /proc/PID/cgroup shows it",
        )
    raw = name.encode()
    if len(raw) >= NAME_LEN:
        raise BadUnit(
            f"a component of {len(raw)} bytes, the kernel compares {NAME_LEN - 1}",
            "name the cgroup above it; all below it is matched as well",
        )
    head, star, tail = raw.partition(b"*")
    if not star:
        return Component(raw)
    if b"*" in tail:
        raise BadUnit(f'two * in "{name}"', "keep the first and end the name there")
    if tail and tail not in TAILS:
        raise BadUnit(
            f'"{tail.decode()}" after the *',
            "after a * stands nothing, .service, .slice or .scope:"
            f' write "{head.decode()}*"',
        )
    return Component(head, True, TAILS.get(tail))


def _place(name: str) -> list[str]:
    """Name the slices above a unit, root first."""
    stem, dot, kind = name.rpartition(".")
    if kind == "slice" and dot:
        return _slices_above(stem, name)
    if name == "init.scope":
        return []
    if kind == "scope" and dot:
        raise BadUnit(
            "a scope can be in any slice",
            f'write its path, as in "/system.slice/{name}"',
        )
    prefix, at, instance = name.partition("@")
    if at:
        return _template(prefix, instance, name)
    if "*" not in name and not name.endswith(_IN_SYSTEM_SLICE):
        raise BadUnit("a unit without its type", f'write "{name}.service"')
    return ["system.slice"]


def _slices_above(stem: str, name: str) -> list[str]:
    if stem == "-":
        raise BadUnit('"-.slice" is every process', "leave unit out instead")
    parts = stem.split("-")
    if "" in parts:
        raise BadUnit("not the name of a slice", "see systemd.slice(5) for the dashes")
    if any("*" in part for part in parts[:-1]):
        raise BadUnit(
            "a * before a dash leaves open where the slice is",
            f'write its path, as in "/parent.slice/{name}"',
        )
    return ["-".join(parts[:depth]) + ".slice" for depth in range(1, len(parts))]


def _template(prefix: str, instance: str, name: str) -> list[str]:
    if "*" in prefix or not prefix:
        raise BadUnit(
            "a * before the @ leaves open which slice holds the instances",
            'write the path, as in "/system.slice/system-*.slice"',
        )
    stem = instance.removesuffix(".service")
    if not stem:
        raise BadUnit(
            "a template, no process runs in it", f'write "{prefix}@*.service"'
        )
    # Slice=user-%i.slice in systemd's own unit files.
    if prefix in ("user", "user-runtime-dir"):
        return ["user.slice", f"user-{stem}.slice"]
    return ["system.slice", f"system-{_escape(prefix)}.slice"]


def _escape(prefix: str) -> str:
    """Escape as systemd does for the slice of a template (systemd-escape(1))."""
    plain = re.compile(r"[A-Za-z0-9:_.]")
    return "".join(
        chr(byte)
        if plain.fullmatch(chr(byte)) and not (byte == ord(".") and index == 0)
        else f"\\x{byte:02x}"
        for index, byte in enumerate(prefix.encode())
    )
