# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows against plain words: the bitmasks must give evaluate()'s verdicts."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings

from guard import abi
from guard.abi import Dimension, Verdict
from guard.policy import Caller, Destination, Policy, compile_rows, evaluate, parse
from tests.policy.simulate import Kernel
from tests.policy.strategies import ask, cases, identify, random_case

Question = tuple[Caller, Destination]


def agree(policy: Policy, questions: Sequence[Question], slot: int) -> Counter[str]:
    """Compare all answers; count the kinds, so that a test can see it met all."""
    kernel = Kernel(compile_rows(policy, slot, identify))
    kinds: Counter[str] = Counter()
    for caller, destination in questions:
        wanted = evaluate(policy, caller, destination, identify)
        rule = abi.NO_RULE if wanted.rule is None else wanted.rule
        got = kernel.judge(ask(caller, destination, slot))
        assert got == (wanted.verdict, rule, wanted.quiet), (
            policy.rules,
            caller,
            destination,
            wanted,
        )
        kinds[wanted.verdict.name if wanted.rule is not None else "NO_RULE"] += 1
    return kinds


def test_12000_random_cases_agree() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(240):
        policy, questions = random_case(seed, rules=1 + seed % 40)
        kinds += agree(policy, questions, seed % 2)
    assert kinds.total() == 12_000
    # No kind so rare that a mistake in it could hide.
    assert min(kinds[kind] for kind in (*Verdict.__members__, "NO_RULE")) > 500


@settings(max_examples=300)
@given(cases())
def test_drawn_cases_agree(case: tuple[Policy, list[Question]]) -> None:
    policy, questions = case
    agree(policy, questions, slot=1)


def test_a_full_policy_agrees_and_compiles_fast() -> None:
    policy, questions = random_case(1, rules=350, questions=200)
    assert len(policy.rules) >= 256
    start = time.perf_counter()
    compile_rows(policy, 0, identify)
    assert time.perf_counter() - start < 0.5
    agree(policy, questions, slot=0)


def test_only_used_bits_are_set() -> None:
    policy, _ = random_case(3, rules=5)
    rows = compile_rows(policy, 0, identify)
    used = (1 << len(rows.rules)) - 1
    masks = [
        *rows.policy.direction,
        rows.policy.any_uid,
        *rows.policy.any_unit,
        *rows.policy.unit_ends,
        *(mask for tails in rows.policy.unit_tail for mask in tails),
        *map(abi.Mask.from_buffer_copy, rows.exes.values()),
        *map(abi.Mask.from_buffer_copy, rows.units.values()),
        *map(abi.Mask.from_buffer_copy, rows.prefixes.values()),
    ]
    for mask in masks:
        assert not int.from_bytes(bytes(mask), "little") & ~used


def test_slots_share_no_key() -> None:
    policy, _ = random_case(4, rules=20)
    first, second = (compile_rows(policy, slot, identify) for slot in (0, 1))
    for table in ("exes", "numbers", "units", "prefixes"):
        one, two = getattr(first, table), getattr(second, table)
        assert one and len(one) == len(two)
        assert not one.keys() & two.keys()
        assert sorted(one.values()) == sorted(two.values())


def test_an_empty_policy_denies_all_outbound() -> None:
    rows = compile_rows(parse('mode = "enforce"'), 0, identify)
    caller, destination = random_case(0)[1][0]
    question = ask(caller, destination)
    question.direction = abi.Direction.OUTBOUND
    assert Kernel(rows).judge(question) == (Verdict.DENY, abi.NO_RULE, False)
    assert not rows.numbers and not rows.exes and not rows.units


def test_settings_reach_the_kernel() -> None:
    policy = parse(
        """
        mode = "observe"
        ports = [25, 2525]
        [[rule]]
        name = "to-own-mta"
        user = 33
        verdict = "redirect"
        [local]
        audit = false
        [redirect]
        to = "127.0.0.1:2525"
        to6 = false
        [fold]
        window = "250ms"
        denied = 3
        local = 7
        """
    )
    rows = compile_rows(policy, 1, identify)
    wire = rows.policy
    assert (wire.mode, wire.rules, wire.local_quiet) == (1, 1, 1)
    assert wire.local_default == Verdict.ALLOW
    assert (wire.denied_burst, wire.passed_burst) == (3, 7)
    assert wire.window_ns == 250_000_000
    assert (wire.redirect4.port, wire.redirect4.set, wire.redirect6.set) == (2525, 1, 0)
    assert abi.unpack_address(bytes(wire.redirect4.address)) == "127.0.0.1"
    assert bytes(wire.sha256) == policy.sha256 == rows.sha256
    assert rows.ports == {25, 2525}
    key = bytes(abi.NumberKey(1, Dimension.UID, 33))
    assert rows.numbers == {key: (1).to_bytes(8, "little") + bytes(56)}


def test_a_denied_local_connection_is_never_quiet() -> None:
    text = 'mode = "enforce"\n[local]\naudit = false\ndefault = "{}"'
    quiet = [
        compile_rows(parse(text.format(default)), 0, identify).policy.local_quiet
        for default in ("allow", "deny")
    ]
    assert quiet == [1, 0]


def test_a_file_that_cannot_be_identified_is_no_missing_file() -> None:
    """A transient EIO must not turn into "nobody may send mail"."""
    policy, _ = random_case(4, rules=20)

    def broken(path: Path) -> tuple[abi.ExeKey, abi.ExeKey]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with pytest.raises(OSError, match="Input/output"):
        compile_rows(policy, 0, broken)


@pytest.mark.parametrize("word", ["off", "record", "deny"])
def test_self_protection_is_as_the_policy_says(word: str) -> None:
    policy = parse(f'mode = "enforce"\nself_protection = "{word}"\n')
    assert policy.protection.name.lower() == word
    assert parse('mode = "enforce"\n').protection.name == "OFF"
