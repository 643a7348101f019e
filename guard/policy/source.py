# SPDX-License-Identifier: GPL-2.0-or-later
"""From a path to TOML tables: reads policy files, finds includes and lines.

A file that anybody but root can write is refused: whoever writes the policy
can open every port.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.policy.files import Doubt, doubt, walk
from guard.policy.model import Problem, excerpt
from guard.privileges import ACCOUNT, may_serve

MAX_BYTES = 1 << 20  # of a policy file, and of all that it includes
MAX_FILES = 64
MAX_PROBLEMS = 1000
# tomllib takes time and memory with the square of a key's parts: 40 kB took 1.5 GB.
MAX_DOTS = 16

_HERE = Path(__file__).resolve()
# Beside the running code: a checkout's directory, or the installed package's.
_WITH_CODE = (_HERE.parents[2] / "policies", _HERE.parents[1] / "policies")
SHIPPED = (
    Path("/etc/smtp-guard/policies"),
    Path("/usr/share/smtp-guard/policies"),
    Path(sys.prefix) / "share/smtp-guard/policies",
    *_WITH_CODE,
)

_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]")
_KEY = re.compile(r"""\s*(?:([A-Za-z0-9_-]+)|"([^"\\]+)"|'([^']+)')\s*=""")
# All that may hold a dot which parts no key: strings of four kinds, comments. Taken
# to the end of the line, or of the text, where the closing quote is missing.
_NO_KEY = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*+(?:"{3,5})?+'
    r"|'''(?:[^']|'{1,2}(?!'))*+(?:'{3,5})?+"
    r'|"(?:[^"\\\n]|\\[^\n])*+"?+'
    r"|'[^'\n]*+'?+"
    r"|#[^\n]*+",
    re.DOTALL,
)
_DECODER_LINE = re.compile(r"\(at line (\d+), column \d+\)")


@dataclass(frozen=True, slots=True)
class Lines:
    """Where the tables and keys of a file stand; tomllib does not tell."""

    tables: dict[str, list[dict[str, int]]]  # key "" is the header itself

    def find(self, table: str, index: int, count: int, key: str = "") -> int | None:
        """Give the line from 1, or None when the text and tables disagree."""
        found = self.tables.get(table, [])
        if len(found) != count:  # inline tables, or a header inside a string
            return None
        return found[index].get(key, found[index].get(""))


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a policy, parsed but not yet understood."""

    name: str  # as shown in messages
    directory: Path | None  # for what it includes
    text: str
    data: dict[str, Any]
    lines: Lines
    main: bool
    path: Path | None = None  # None: a text, not a file


class TooMany(Exception):
    """A policy has so many problems that no more are looked for."""


@dataclass(slots=True)
class Problems:
    """Everything found wrong so far, so that one run shows all of it."""

    found: list[Problem] = field(default_factory=list)

    def add(
        self,
        severity: str,
        file: str,
        message: str,
        remedy: str,
        *,
        line: int | None = None,
        rule: str | None = None,
    ) -> None:
        """Note a problem; the texts may hold what the file's author wrote.

        Raises TooMany after the last that is taken; it is an error then.
        """
        safe = [excerpt(text, 400) for text in (file, message, remedy)]
        label = None if rule is None else excerpt(rule, 100)
        self.found.append(Problem(severity, safe[0], line, label, safe[1], safe[2]))
        if len(self.found) == MAX_PROBLEMS:
            text = "so many problems that the rest was not looked at"
            self.found.append(
                Problem("error", safe[0], line, None, text, "correct these first")
            )
            raise TooMany

    @property
    def errors(self) -> list[Problem]:
        """Only what makes the policy unusable."""
        return [problem for problem in self.found if problem.severity == "error"]

    def in_order(self) -> list[Problem]:
        """Give all problems file by file, each from the top down."""
        files = list(dict.fromkeys(problem.file for problem in self.found))
        return sorted(self.found, key=lambda p: (files.index(p.file), p.line or 0))


def locate(text: str) -> Lines:
    """Scan for table headers and keys, outside of multi-line strings."""
    tables: dict[str, list[dict[str, int]]] = {"": [{}]}
    keys = tables[""][0]
    inside = ""
    for number, line in enumerate(text.split("\n"), 1):
        was_inside = inside
        for quote in ('"""', "'''"):
            if inside in ("", quote) and line.count(quote) % 2:
                inside = "" if inside else quote
        if was_inside:
            continue
        if header := _HEADER.match(line):
            keys = {"": number}
            tables.setdefault(header[2], []).append(keys)
        elif key := _KEY.match(line):
            keys.setdefault(key[key.lastindex or 0], number)
    return Lines(tables)


def from_text(
    text: str,
    name: str,
    problems: Problems,
    *,
    directory: Path | None = None,
    main: bool = True,
    path: Path | None = None,
) -> Source | None:
    """Parse one file's text; None, and a problem, when it is not TOML."""
    if number := _many_dots(text):
        problems.add(
            "error",
            name,
            f"more than {MAX_DOTS} dots outside of quotes",
            "no key of a policy has so many parts",
            line=number,
        )
        return None
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        message = "nested too deep"
        if not isinstance(error, RecursionError):
            message = str(error)
        at = _DECODER_LINE.search(message)
        problems.add(
            "error",
            name,
            f"not TOML: {_DECODER_LINE.sub('', message).strip()}",
            "correct the file; https://toml.io has the syntax",
            line=int(at[1]) if at else None,
        )
        return None
    return Source(name, directory, text, data, locate(text), main, path)


def _many_dots(text: str) -> int | None:
    """Give the first line with more dots than keys of a policy can have."""
    if text.count(".") <= MAX_DOTS:
        return None
    bare = _NO_KEY.sub(lambda found: "\n" * found[0].count("\n"), text)
    return next(
        (n for n, line in enumerate(bare.split("\n"), 1) if line.count(".") > MAX_DOTS),
        None,
    )


def from_file(path: Path, problems: Problems, *, main: bool) -> Source | None:
    """Read and parse one file; None, and a problem, when that cannot be."""
    name = str(path)
    try:
        raw, doubts = _read(path, main)
    except OSError as error:
        problems.add("error", name, *_explain(error, main))
        return None
    if doubts:
        # Without privileges nothing can be loaded: a draft may be checked as it is.
        root = os.geteuid() == 0 or may_serve()
        severity, what = ("error", "refused") if root else ("warning", "not loadable")
        problems.add(severity, name, f"{what}: {doubts.message}", doubts.remedy)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        problems.add(
            "error",
            name,
            f"not UTF-8 at byte {error.start}",
            "save the file in UTF-8",
            line=raw[: error.start].count(b"\n") + 1,
        )
        return None
    return from_text(text, name, problems, directory=path.parent, main=main, path=path)


def _read(path: Path, main: bool) -> tuple[bytes, Doubt | None]:
    way = walk(path)
    # O_NONBLOCK: a FIFO must not hang us.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags | (os.O_NOFOLLOW if main else 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        raw = file.read(MAX_BYTES + 1) or b""  # None: it would have to wait
    if len(raw) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"longer than {MAX_BYTES} bytes", str(path))
    if _as_good_as_code(way.real, status):
        return raw, None
    # The open file counts, not what the name led to a moment before.
    return raw, doubt(
        type(way)(way.real, (*way.entries[:-1], (way.real, status))),
        strict_directory=False,
    )


def _as_good_as_code(real: Path, status: os.stat_result) -> bool:
    """Accept a policy shipped with the code that runs, under the code's rights.

    Who can write one can write the other: in a checkout that is its owner.
    """
    if real.parent not in _WITH_CODE:
        return False
    code = os.stat(_HERE)
    loose = status.st_mode & 0o022
    return (
        (status.st_uid, status.st_gid) == (code.st_uid, code.st_gid)
        and loose == loose & code.st_mode
        and not loose & 0o002
    )


def _explain(error: OSError, main: bool) -> tuple[str, str]:
    if error.errno == errno.ENOENT:
        return "no such file", "create it, or name another file"
    if error.errno == errno.ELOOP and main:
        return "is a symbolic link", "name the file it leads to"
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "run this as root"
        if may_serve():  # guardd, as its own user
            remedy = f"let user {ACCOUNT} read it: chmod o+r, and o+x its folders"
        return "cannot be read: permission denied", remedy
    return f"cannot be read: {error.strerror}", "name a file in TOML"


def find_include(name: str, source: Source) -> Path | None:
    """Find an included policy: a path, or the bare name of a shipped one."""
    if "/" in name or name.endswith(".toml"):
        if source.directory is None and not name.startswith("/"):
            return None
        candidates = [(source.directory or Path("/")) / name]
    else:
        folders = SHIPPED if source.directory is None else (source.directory, *SHIPPED)
        candidates = [folder / f"{name}.toml" for folder in folders]
    return next((path for path in candidates if _exists(path)), None)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # embedded NUL
        return False


def shipped_names() -> list[str]:
    """Name the policies that can be included by bare name."""

    def stems() -> Iterator[str]:
        for folder in SHIPPED:
            yield from (path.stem for path in folder.glob("*.toml"))

    return sorted(set(stems()) - {"default"})
