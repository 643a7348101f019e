# SPDX-License-Identifier: GPL-2.0-or-later
"""TOML tables -> Policy, with every problem of all its files in one run.

Order: the policy file's own rules, then those of its includes, in the order
named. First match wins, so what the admin wrote beats what is shipped.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from guard.abi import NAME_LEN, Direction, Verdict
from guard.errors import PolicyError
from guard.policy.check import check_rules, check_size
from guard.policy.fields import Table
from guard.policy.files import doubt, is_missing, links_on_the_way, walk
from guard.policy.model import Policy, Rule, SmartHost, excerpt
from guard.policy.settings import VERDICTS, settings
from guard.policy.smarthost import KEY, Smart, means_smart_host
from guard.policy.source import (
    MAX_BYTES,
    MAX_FILES,
    Problems,
    Source,
    TooMany,
    find_include,
    from_file,
    from_text,
    shipped_names,
)
from guard.policy.units import BadUnit, UnitPattern, unit_pattern
from guard.text import printable

_MAIN_KEYS = (
    *("mode", "ports", "include", "rule"),
    *("local", "redirect", "fold", "before", "tamper", "backstop", "mta"),
    *("self_protection", "require", KEY),
)
_INCLUDED_KEYS = ("include", "rule", "local")
_RULE_KEYS = (
    *("name", "unit", "exe", "user", "group", "to", "ports"),
    *("verdict", "journal", "optional", "login", "folder"),
)
_NAME_LIMIT = 64
_ACCOUNTS = (Path("/etc/passwd"), Path("/etc/group"))


def load(path: Path | str) -> Policy:
    """Read a policy file and all that it includes.

    Raises PolicyError with every problem found. What does not make the policy
    unusable is in the warnings of the Policy.
    """
    problems = Problems()
    with _refused(str(path), problems):
        main = from_file(Path(os.path.abspath(path)), problems, main=True)
        return _build(str(path), _with_includes(main, problems), problems)


def parse(
    text: str, name: str = "policy.toml", directory: Path | None = None
) -> Policy:
    """Read a policy from text; includes are looked for in directory first.

    Raises PolicyError with every problem found, as `load` does.
    """
    problems = Problems()
    with _refused(name, problems):
        main = from_text(text, name, problems, directory=directory)
        return _build(name, _with_includes(main, problems), problems)


def refresh(policy: Policy) -> Policy:
    """Look up again what a policy names: executables, users and groups.

    For a change of policy.watch. The text stays what it was when the policy was
    read, so that a file being edited has no effect before it is loaded. Raises
    PolicyError as `load` does.
    """
    made = rebuild(policy.texts, before=policy.smart_host)
    return replace(made, files=policy.files)


def rebuild(
    texts: tuple[tuple[str, str], ...],
    *,
    lenient: bool = False,
    before: SmartHost | None = None,
) -> Policy:
    """Make a policy anew of the texts of one that was good, Policy.texts.

    lenient: a rule whose account is gone matches nobody, as if it were optional.
    before: Postfix's smart host, if it cannot be asked now. Raises PolicyError.
    """
    problems = Problems()
    first = texts[0][0]
    with _refused(first, problems):
        sources = [
            from_text(text, name, problems, main=not index)
            for index, (name, text) in enumerate(texts)
        ]
        known = [source for source in sources if source]
        if lenient:
            for source in known:
                _make_optional(source.data)
        return _build(first, known, problems, before)


def _make_optional(data: dict[str, Any]) -> None:
    for rule in (*data.get("rule", ()), *data.get("local", {}).get("rule", ())):
        rule["optional"] = True


@contextlib.contextmanager
def _refused(name: str, problems: Problems) -> Iterator[None]:
    """Make a refusal of too many problems."""
    try:
        yield
    except TooMany:
        raise _refusal(name, problems) from None


def _build(
    name: str,
    sources: list[Source],
    problems: Problems,
    before: SmartHost | None = None,
) -> Policy:
    main = sources[0] if sources else None
    smart = Smart(Table(main, problems, main.data), before) if main else None
    parsed = [_rules(source, problems, smart) for source in sources if smart]
    rules = _numbered(
        [rule for outbound, _ in parsed for rule in outbound]
        + [rule for _, local in parsed for rule in local]
    )
    policy = settings(main, rules, problems) if main else None
    if policy is not None and check_size(policy, name, problems):
        check_rules(policy, problems)
    if smart is None or policy is None or problems.errors:
        raise _refusal(name, problems)
    exes = links_on_the_way({path for rule in rules for path in rule.exes or ()})
    files = tuple(source.path for source in sources if source.path)
    digest = hashlib.sha256()
    for source in sources:  # lengths, so that text cannot move between files
        raw = source.text.encode(errors="surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return replace(
        policy,
        smart_host=smart.host if smart.known else None,
        known=smart.known,
        sha256=digest.digest(),
        files=files,
        exes=frozenset(exes),
        watch=frozenset(exes.union(_ACCOUNTS, smart.watch)),
        warnings=tuple(problems.in_order()),
        texts=tuple((source.name, source.text) for source in sources),
    )


def _refusal(name: str, problems: Problems) -> PolicyError:
    first, *others = (p for p in problems.in_order() if p.severity == "error")
    what = f"{first.rule}: {first.message}" if first.rule else first.message
    if others:
        what += f" (and {len(others)} more)"
    return PolicyError(
        excerpt(name, 400), what, hint=first.remedy, problems=problems.in_order()
    )


def _with_includes(main: Source | None, problems: Problems) -> list[Source]:
    """Read includes depth first; a file named twice is read once."""
    if main is None:
        return []
    sources: list[Source] = []
    seen: set[Path] = set()

    def visit(source: Source) -> None:
        sources.append(source)
        if source.path:
            seen.add(_real(source.path))
        table = Table(source, problems, source.data)
        for name in table.texts("include") or ():
            path = find_include(name, source)
            if path is None:
                table.error(
                    "include",
                    f'there is no policy "{excerpt(name)}"',
                    f"shipped: {', '.join(shipped_names())}; or write a path"
                    " relative to this file",
                )
            elif _real(path) not in seen:
                seen.add(_real(path))
                if len(seen) > MAX_FILES:
                    table.error(
                        "include",
                        f"more than {MAX_FILES} files",
                        "put the rules into fewer files",
                    )
                    return
                included = from_file(path, problems, main=False)
                if included and _all_bytes(sources, included) > MAX_BYTES:
                    table.error(
                        "include",
                        f"more than {MAX_BYTES} bytes in all files",
                        "shorten them; an address list may name wider prefixes",
                    )
                    return
                if included:
                    visit(included)

    visit(main)
    return sources


def _all_bytes(sources: list[Source], another: Source) -> int:
    return sum(len(source.text) for source in (*sources, another))


def _real(path: Path) -> Path:
    """Give where a path leads; of links in a circle, what can be said."""
    return Path(os.path.realpath(path))  # resolve() raises RuntimeError then


def _rules(
    source: Source, problems: Problems, smart: Smart
) -> tuple[list[Rule], list[Rule]]:
    """Read the outbound and the local rules of one file."""
    top = Table(source, problems, source.data)
    if not source.main:
        for key in set(_MAIN_KEYS).difference(_INCLUDED_KEYS) & source.data.keys():
            top.error(
                key,
                f"{key} in an included file",
                "set it in the main policy file; an include only adds rules",
            )
    top.only(_MAIN_KEYS)
    local = source.data.get("local", {})
    if not isinstance(local, dict):
        local = {}  # reported by _section for the main file
        if not source.main:
            top.error("local", "is not a section", "write [[local.rule]]")
    elif not source.main:
        Table(source, problems, local, "local").only(("rule",))
    found: tuple[list[Rule], list[Rule]] = [], []
    for direction, data, table in (
        (Direction.OUTBOUND, source.data, "rule"),
        (Direction.LOCAL, local, "local.rule"),
    ):
        items = data.get("rule", [])
        if not isinstance(items, list) or not all(isinstance(i, dict) for i in items):
            top.error("rule", "is not a list of rules", f"write [[{table}]]")
            continue
        for index, item in enumerate(items):
            kind = "local rule" if direction is Direction.LOCAL else "rule"
            name = item.get("name")
            named = isinstance(name, str) and name
            label = f'{kind} "{name}"' if named else f"{kind} {index + 1}"
            found[direction].append(
                _rule(
                    Table(source, problems, item, table, index, len(items), label),
                    direction,
                    smart,
                )
            )
    return found


def _rule(table: Table, direction: Direction, smart: Smart) -> Rule:
    table.only(_RULE_KEYS)
    local = direction is Direction.LOCAL
    words = ("allow", "deny") if local else ("allow", "deny", "redirect")
    word = table.choice("verdict", words)
    verdict = VERDICTS[word] if word else Verdict.DENY
    optional = table.flag("optional") or False
    journal = table.flag("journal")
    if journal is False and word in ("deny", "redirect"):
        table.error(
            "journal",
            f"what a rule with verdict {word} meets is always journalled",
            'remove journal; it is for verdict = "allow"',
        )
    relayed = means_smart_host(table)
    to, ports = (
        smart.destination(table, optional, local)
        if relayed
        else (table.networks("to"), table.ports("ports"))
    )
    return Rule(
        0,
        _name(table),
        direction,
        verdict,
        _units(table),
        _exes(table, optional),
        table.numbers("user", lambda name: pwd.getpwnam(name).pw_uid, optional),
        table.numbers("group", lambda name: grp.getgrnam(name).gr_gid, optional),
        to,
        ports,
        journal,
        optional,
        *_vouching(table, local, word),
        table.source.name,
        table.source.lines.find(table.table, table.index, table.count),
        relayed,
    )


def _vouching(
    table: Table, local: bool, word: str | None
) -> tuple[bool | None, tuple[Path, ...] | None]:
    """Read whether the mail server asks who this rule lets pass to log in."""
    login, folders = table.flag("login"), table.paths("folder")
    for key in table.data.keys() & {"login", "folder"}:
        if not local:
            table.error(
                key,
                "is about the host's own mail server",
                "put it into a [[local.rule]]",
            )
        elif word == "deny":
            table.error(
                key, "who is denied sends nothing", "remove it, or the verdict deny"
            )
    if folders and login:
        table.error("folder", "login = true asks everybody", "remove one of the two")
    elif folders and not {"unit", "user"} & table.data.keys():
        table.error(
            "folder",
            "any process can go into a folder that it may enter",
            "name its user or unit, too",
        )
    return login, folders


def _name(table: Table) -> str:
    name = table.data.get("name")
    if name is None:
        table.error("", "name is missing", 'add one, as in name = "postfix"')
    elif not isinstance(name, str) or not name.strip():
        table.error("name", "is not a name", "write a text of at least one letter")
    elif printable(name) != name or len(name) > _NAME_LIMIT:
        table.error(
            "name",
            f"is longer than {_NAME_LIMIT} or holds control characters",
            "shorten it to letters, digits and dashes",
        )
    return name if isinstance(name, str) else ""


def _units(table: Table) -> tuple[UnitPattern, ...] | None:
    texts = table.texts("unit")
    if texts is None:
        return None
    patterns = []
    for text in dict.fromkeys(texts):
        try:
            patterns.append(unit_pattern(text))
        except BadUnit as error:
            table.error("unit", f'"{excerpt(text)}": {error}', error.remedy)
    return tuple(patterns)


def _exes(table: Table, optional: bool) -> tuple[Path, ...] | None:
    texts = table.texts("exe")
    if texts is None:
        return None
    paths: list[Path] = []
    missing = []
    for text in dict.fromkeys(texts):
        clean = printable(text) == text and ".." not in text.split("/")
        if not text.startswith("/") or not clean:
            table.error(
                "exe",
                f'"{excerpt(text)}" is not an absolute path',
                "write the path from / on, without ..",
            )
            continue
        path = Path(text)
        paths.append(path)
        if not _check_exe(table, path):
            missing.append(path)
    if paths and len(missing) == len(paths) and not optional:
        table.warn(
            "exe",
            f"{', '.join(map(str, missing))}: no such file",
            "the rule matches nobody until it appears, then it is followed at once;"
            " correct the path if it is wrong",
        )
    return tuple(paths)


def _check_exe(table: Table, path: Path) -> bool:
    """Tell whether the file exists, and note why it could not be matched."""
    try:
        way = walk(path)
    except OSError as error:
        if is_missing(error):
            return False
        if error.errno == errno.ENAMETOOLONG:
            table.error("exe", f"{path}: {error.strerror}", "correct the path")
            return True
        table.warn("exe", f"{path}: {error.strerror}", "run this as root to check it")
        return True
    status = way.entries[-1][1]
    if not stat.S_ISREG(status.st_mode):
        table.error("exe", f"{path} is not a file", "name the program itself")
        return True
    if len(os.fsencode(way.real.name)) >= NAME_LEN:
        table.error(
            "exe",
            f"the name of {way.real} is longer than {NAME_LEN - 1} bytes",
            "install the program under a shorter name",
        )
    if found := doubt(way, strict_directory=True):
        table.error(
            "exe",
            f"{path} cannot be relied on: {found.message}",
            f"{found.remedy}, or match by user and unit alone",
        )
    if _is_script(way.real):
        table.warn(
            "exe",
            f"{path} is a script; its process runs the interpreter",
            "name the interpreter, together with user and unit",
        )
    return True


def _is_script(path: Path) -> bool:
    try:
        # O_NONBLOCK: /proc/kmsg is a regular file, and waits for the kernel's words
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _numbered(rules: list[Rule]) -> tuple[Rule, ...]:
    return tuple(replace(rule, number=number) for number, rule in enumerate(rules))
