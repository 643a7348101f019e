# SPDX-License-Identifier: GPL-2.0-or-later
"""Thousands of malformed policies: each is read, or refused in our own words."""

from __future__ import annotations

import random
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import PolicyError
from guard.policy import compile_rows, load, parse
from tests.policy.strategies import identify

GOOD = (Path(__file__).resolve().parents[2] / "policies/default.toml").read_text()
KEYS = (
    *(
        "mode",
        "ports",
        "include",
        "rule",
        "local",
        "redirect",
        "fold",
        "before",
        "end",
        "grace",
        "name",
    ),
    *("unit", "exe", "user", "group", "to", "to6", "verdict", "journal", "optional"),
    *("audit", "default", "window", "denied", "x"),
)
WORDS = (
    *("allow", "deny", "redirect", "observe", "enforce", "root", "postfix", "5s"),
    *("127.0.0.1:25", "[::1]:25", "10.0.0.0/8", "::/0", "/bin/sh", "a@*.service", "/"),
    *("", "\0", "\x1b[2J", "*", "../..", "postfix.service", "é", "4294967295"),
)
VALUES = st.recursive(
    st.sampled_from(WORDS)
    | st.text(max_size=8)
    | st.integers(-(2**70), 2**70)
    | st.booleans()
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


def survives(text: str) -> bool:
    """Tell whether text is a policy; anything but PolicyError escapes."""
    try:
        policy = parse(text)
    except PolicyError as error:
        assert error.problems and error.exit_status == 78
        report = error.report()
        assert report.replace("\n", "").isprintable()
        return False
    compile_rows(policy, 0, identify)
    return True


def toml(value: object) -> str:
    """Write a value as TOML; strings with every odd character escaped."""
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {toml(item)}" for key, item in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    return str(value).lower()


@settings(max_examples=1500)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_any_values_under_known_keys(tables: dict[str, object]) -> None:
    survives("\n".join(f"{key} = {toml(value)}" for key, value in tables.items()))


@settings(max_examples=1500)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_any_values_in_a_rule(rule: dict[str, object]) -> None:
    body = "\n".join(f"{key} = {toml(value)}" for key, value in rule.items())
    survives(f'mode = "enforce"\n[[rule]]\n{body}\n[[local.rule]]\n{body}')


@settings(max_examples=1000)
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    survives(text)


def test_a_good_policy_with_bytes_changed(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    chance = random.Random(5)
    read = refused = 0
    for _ in range(2000):
        raw = bytearray(GOOD.encode())
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(raw))
            raw[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        path.write_bytes(raw)
        path.chmod(0o644)
        try:
            load(path)
            read += 1
        except PolicyError as error:
            assert str(path) in error.report()
            refused += 1
    assert read > 100 and refused > 100


def test_a_large_policy_is_read_in_time() -> None:
    rules = "".join(
        f'[[rule]]\nname = "r{number}"\nverdict = "allow"\nuser = {number}\n'
        f'to = "10.{number % 256}.0.0/16"\n'
        for number in range(512)
    )
    start = time.perf_counter()
    assert survives('mode = "enforce"\n' + rules)
    assert time.perf_counter() - start < 5
