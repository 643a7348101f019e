# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/matrix.toml: every route, and what must become of it on which kernel."""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MATRIX = Path(__file__).parents[1] / "matrix.toml"
# Which locks a column of expected results is about.
LOCKS = ("first", "second")


class Code(enum.IntEnum):
    """What became of a route: the exit status of its probe (probe.h)."""

    ALLOWED = 0
    DENIED = 1
    UNTRIED = 2
    OTHERWISE = 3


class Sort(enum.Enum):
    """What the guard makes of a route."""

    STOPPED = "stopped"
    RECORDED = "recorded"
    NOT_STOPPED = "not stopped"


# By sort, unless a row says otherwise: what becomes of it, and what is found.
USUAL = {
    Sort.STOPPED: (Code.DENIED, "denied"),
    Sort.RECORDED: (Code.ALLOWED, "passed"),
    Sort.NOT_STOPPED: (Code.ALLOWED, "none"),
}
FINDINGS = ("denied", "passed", "none")


@dataclass(frozen=True)
class Row:
    """One route. The head of tests/matrix.toml says what each key means."""

    name: str
    what: str
    run: tuple[str, ...]
    sort: Sort
    to: str
    port: int
    user: int
    where: str
    policy: str
    setup: str
    finding: str
    named: str
    marked: str
    why: str
    codes: Mapping[str, Mapping[str, Code]]  # lock -> kernel or "default"

    @property
    def by_second(self) -> bool:
        """Tell whether it is the second lock that stops it."""
        usual = (self.codes[lock]["default"] for lock in LOCKS)
        return tuple(usual) == (Code.ALLOWED, Code.DENIED)

    def expected(self, kernel: str, locks: str = "first") -> Code:
        """Give what must become of it; kernel is as "6.18", locks one of LOCKS."""
        codes = self.codes[locks]
        return codes.get(kernel, codes["default"])


def read(path: Path = MATRIX) -> list[Row]:
    """Read the table. Raises ValueError for a row that says too little."""
    table = tomllib.loads(path.read_text())
    rows = [_row(dict(raw), table["policy"]) for raw in table["route"]]
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(f"{path.name}: two routes of one name")
    return rows


def _row(raw: dict[str, object], policies: Mapping[str, str]) -> Row:
    name = str(raw.pop("name"))
    sort = Sort(raw.pop("sort", "stopped"))
    usual, finding = USUAL[sort]
    run = tuple(str(raw.pop("run")).split(maxsplit=1))
    codes: dict[str, dict[str, Code]] = {}
    told: object = usual
    for lock in LOCKS:  # unless told, as without it
        told = raw.pop(lock, told)
        codes[lock] = _codes(told)
    row = Row(
        name=name,
        what=str(raw.pop("what")),
        run=run,
        sort=sort,
        to=str(raw.pop("to", "mx4")),
        port=int(str(raw.pop("port", 25))),
        user=int(str(raw.pop("user", 0))),
        where=str(raw.pop("where", "host")),
        policy=policies[str(raw.pop("policy", "nothing"))],
        setup=str(raw.pop("setup", "")),
        finding=str(raw.pop("finding", finding)),
        named=str(raw.pop("named", "")),
        marked=str(raw.pop("marked", "")),
        why=str(raw.pop("why", "")),
        codes=codes,
    )
    if raw:
        raise ValueError(f"{name}: unknown {', '.join(raw)}")
    if row.finding not in FINDINGS:
        raise ValueError(f"{name}: no such finding: {row.finding}")
    known = {code for by_kernel in codes.values() for code in by_kernel.values()}
    if not row.why and (sort is not Sort.STOPPED or known != {Code.DENIED}):
        raise ValueError(f"{name}: why?")
    return row


def _codes(raw: object) -> dict[str, Code]:
    if not isinstance(raw, dict):
        raw = {"default": raw}
    return {kernel: Code(code) for kernel, code in raw.items()}
