# SPDX-License-Identifier: GPL-2.0-or-later
"""Man pages as tests read them: sections, items and literal blocks of mdoc(7)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = sorted((CHECKOUT / "docs/man").glob("*.[1-8]"))
# What stands between the arguments of a macro and is none.
_BETWEEN = {",", ".", ";", ":", "|", "and", "or", "(", ")"}
_MACRO = re.compile(r"[A-Z][a-z]")


@dataclass
class Item:
    """One .It of a list: what it is about, and what is said of it."""

    tag: str
    lines: list[str] = field(default_factory=list)

    def words(self, macro: str) -> list[str]:
        """Give the arguments of a macro, in tag and text: Cm, Fl, Dv, Ic."""
        return [word for line in (self.tag, *self.lines) for word in _of(line, macro)]

    def named(self, macro: str) -> list[str]:
        """Give the arguments of a macro in the tag alone."""
        return _of(self.tag, macro)


@dataclass
class Section:
    """What stands under a .Sh or .Ss, up to the next of either."""

    title: str
    lines: list[str] = field(default_factory=list)

    def items(self) -> list[Item]:
        """Give the items of its lists, inner lists as well."""
        found: list[Item] = []
        for line in self.lines:
            if line.startswith(".It "):
                found.append(Item(line[4:]))
            elif found and line.startswith("."):
                found[-1].lines.append(line[1:])
            elif found:
                found[-1].lines.append(line)
        return found


def _of(line: str, macro: str) -> list[str]:
    found, taking = [], False
    for word in line.split():
        if _MACRO.fullmatch(word):
            taking = word == macro
        elif taking and word not in _BETWEEN:
            found.append(plain(word))
    return found


def plain(text: str) -> str:
    """Undo the escapes of roff that the pages use."""
    return text.replace(r"\-", "-").replace(r"\(dq", '"').replace(r"\e", "\\")


def read(name: str) -> dict[str, Section]:
    """Give the sections of a page of docs/man by their titles."""
    found: dict[str, Section] = {}
    section = Section("")
    for line in (CHECKOUT / "docs/man" / name).read_text().splitlines():
        if line.startswith((".Sh ", ".Ss ")):
            section = found[line[4:]] = Section(line[4:])
        elif not line.startswith('.\\"'):
            section.lines.append(line)
    return found


def literals(path: Path) -> list[str]:
    """Give the literal blocks of a page as a reader would copy them."""
    blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", path.read_text(), re.M | re.S)
    return [plain(block) for block in blocks]
