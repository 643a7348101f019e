# SPDX-License-Identifier: GPL-2.0-or-later
"""smtp-guard.toml(5) has every key that a policy may have, and no other.

The reader of policies is asked: it answers a key that it does not know with those
that it does, and a word that it does not know likewise.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

from guard.errors import PolicyError
from guard.policy import Problem, parse
from guard.policy.model import Backstop, Before, Fold
from tests.docs.mdoc import CHECKOUT, Section, read

STRANGE = "xyzzy"
LIMITS = "[[mta.limit]]"
RULES = "[[rule]] and [[local.rule]]"


def problems(text: str) -> list[Problem]:
    """Give what is wrong with a policy."""
    try:
        parse(text)
    except PolicyError as error:
        return [p for p in error.problems if isinstance(p, Problem)]
    return []


def keys(table: str) -> set[str]:
    """Ask which keys a table may have; "" is the file itself. No table: none."""
    header = f"{table}\n" if table else ""
    for problem in problems(f"{header}{STRANGE} = 1\n"):
        if problem.message.startswith(f"{STRANGE}: unknown key"):
            return set(problem.remedy.rpartition("known here: ")[2].split(", "))
    return set()


@cache
def tables() -> dict[str, set[str]]:
    """Give the sections of a policy and the keys of each."""
    found = {f"[{key}]": keys(f"[{key}]") for key in keys("")}
    return {name: known for name, known in found.items() if known}


def words(table: str, key: str) -> set[str]:
    """Ask which words a key may have; none where it is no choice."""
    header = f"{table}\n" if table else ""
    found = set()
    for problem in problems(f'{header}{key} = "{STRANGE}"\n'):
        if problem.message.startswith(f"{key}: ") and " or " in problem.remedy:
            remedy = problem.remedy.removeprefix("write ")
            if re.fullmatch(r'"\w+"( or "\w+")+', remedy):
                found |= set(re.findall(r"\w+", remedy.replace(" or ", " ")))
    return found


def places() -> dict[str, tuple[str, set[str]]]:
    """Give table and keys by the title of the section that explains them."""
    rule = keys("[[rule]]")
    assert rule == keys("[[local.rule]]")
    found = {"KEYS OF THE FILE": ("", keys("") - sections()), RULES: ("[[rule]]", rule)}
    found |= {table: (table, known) for table, known in tables().items()}
    return found | {LIMITS: (LIMITS, keys(LIMITS))}


def sections() -> set[str]:
    return {table.strip("[]") for table in tables()} | {"rule"}


def explained(section: Section) -> dict[str, set[str]]:
    """Give the keys of a section of the page, and the words that each takes."""
    return {
        key: set(item.words("Cm"))
        for item in section.items()
        for key in item.named("Ic")
    }


def test_the_reader_answers() -> None:
    """Control: the tests below ask something that exists."""
    assert {"mode", "ports", "rule", "local", "backstop"} <= keys("")
    assert keys("[mode]") == set()
    assert {"name", "unit", "verdict"} <= keys("[[rule]]")
    assert words("", "mode") == {"observe", "enforce"}
    assert words("", "ports") == set()


@pytest.mark.parametrize("title", sorted(places()))
def test_every_key_is_explained_and_no_other(title: str) -> None:
    table, known = places()[title]
    found = explained(read("smtp-guard.toml.5")[title])
    assert found.keys() == known
    for key in known:
        assert words(table, key) <= found[key], f"{table} {key}"


def test_every_section_is_explained_and_no_other() -> None:
    page = read("smtp-guard.toml.5")
    assert {title for title in page if re.fullmatch(r"\[\w+\]", title)} == set(tables())


def test_defaults_are_those_of_the_model() -> None:
    page = read("smtp-guard.toml.5")
    fold, lock = Fold(), Backstop()
    for table, key, value in (
        ("[fold]", "window", f"{fold.window_ns // 10**9}s"),
        ("[fold]", "denied", f"{fold.denied}."),
        ("[fold]", "local", f"{fold.local}."),
        ("[before]", "grace", f"{Before().grace_ns // 10**9}s"),
        ("[backstop]", "mark", f"{lock.mark:#010x}"),
        ("[backstop]", "group", f"{lock.group}."),
    ):
        (item,) = (i for i in page[table].items() if i.named("Ic") == [key])
        text = " ".join(item.lines)
        assert value in text.rpartition("Default")[2], f"{table} {key}"


def test_every_shipped_policy_is_named() -> None:
    page = read("smtp-guard.toml.5")
    named = {word for item in page["FILES"].items() for word in item.words("Cm")}
    shipped = {path.stem for path in CHECKOUT.glob("policies/*.toml")} - {"default"}
    assert named == shipped
