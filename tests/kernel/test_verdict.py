# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's verdict is evaluate()'s, and whatever is zero or missing denies."""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings

from guard import abi, libbpf
from guard.abi import Outcome, Verdict
from guard.kernel import Guard
from guard.policy import Caller, Destination, Policy, compile_rows, evaluate
from tests.kernel.routes import plain
from tests.kernel.world import ALLOW_MX, MX4, SMTP, Watch, World
from tests.policy.strategies import ask, cases, identify, random_case

KEY = bytes(4)
Question = tuple[Caller, Destination]


class Judge:
    """The kernel's own judge, asked by BPF_PROG_TEST_RUN."""

    def __init__(self, guard: Guard) -> None:
        """Use the guard's maps; nothing here is attached anywhere."""
        self.guard = guard
        self._program = libbpf.get_pinned(guard.home / "judge")
        self._question = guard.map("question")

    def answer(self, question: abi.Question) -> tuple[Verdict, int, bool]:
        """Give verdict, rule number (or NO_RULE) and quiet."""
        self._question.put(KEY, bytes(question))
        libbpf.run(self._program)
        raw = self._question.get(KEY)
        assert raw is not None
        answer = abi.Question.from_buffer_copy(raw)
        return Verdict(answer.verdict), answer.rule, bool(answer.quiet)

    def agrees(self, policy: Policy, questions: Sequence[Question]) -> Counter[str]:
        """Compare all answers; count the kinds, so that a test can see them."""
        self.guard.apply(compile_rows(policy, 1 - self.guard.slot, identify))
        slot = self.guard.slot
        kinds: Counter[str] = Counter()
        for caller, destination in questions:
            wanted = evaluate(policy, caller, destination, identify)
            rule = abi.NO_RULE if wanted.rule is None else wanted.rule
            got = self.answer(ask(caller, destination, slot))
            assert got == (wanted.verdict, rule, wanted.quiet), (
                policy.rules,
                caller,
                destination,
                wanted,
            )
            kinds[wanted.verdict.name if wanted.rule is not None else "NO_RULE"] += 1
        return kinds


@pytest.fixture(scope="module")
def judge(guard: Guard) -> Judge:
    return Judge(guard)


def test_12000_random_cases_agree(judge: Judge) -> None:
    kinds: Counter[str] = Counter()
    for seed in range(1000, 1060):
        kinds += judge.agrees(*random_case(seed, rules=1 + seed % 60, questions=200))
    assert kinds.total() == 12_000
    # No kind so rare that a mistake in it could hide.
    assert min(kinds[kind] for kind in (*Verdict.__members__, "NO_RULE")) > 400


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(rules=8, questions=40))
def test_drawn_cases_agree(judge: Judge, case: tuple[Policy, list[Question]]) -> None:
    judge.agrees(*case)


def test_a_full_policy_agrees(judge: Judge) -> None:
    policy, questions = random_case(7, rules=350, questions=1000)
    assert len(policy.rules) >= 256
    judge.agrees(policy, questions)


# ---- zero denies


def zero(guard: Guard, name: str, indexes: Sequence[int], size: int) -> None:
    for index in indexes:
        guard.map(name).put(struct.pack("=I", index), bytes(size))


@pytest.fixture
def open_policy(watch: Watch, judge: Judge) -> Iterator[abi.Question]:
    """A policy that allows one thing; gives the question that is about it."""
    watch.apply(ALLOW_MX)
    question = abi.Question(slot=watch.guard.slot, port=SMTP)
    question.address[:] = abi.pack_address(MX4)
    assert judge.answer(question)[0] is Verdict.ALLOW
    yield question
    watch.apply("")


def test_a_zeroed_policy_denies(
    world: World, watch: Watch, judge: Judge, open_policy: abi.Question
) -> None:
    zero(
        watch.guard,
        "policies",
        [watch.guard.slot],
        watch.guard.map("policies").value_size,
    )
    assert judge.answer(open_policy) == (Verdict.DENY, abi.NO_RULE, False)
    open_policy.direction = abi.Direction.LOCAL
    assert judge.answer(open_policy)[0] is Verdict.DENY
    with world.serve(world.mx, MX4), world.serve(world.host, "127.0.0.1"):
        for address in (MX4, "127.0.0.1"):
            assert world.control(partial(plain, address)).errno == 0
            assert world.act(partial(plain, address)).errno == errno.EPERM
    assert [e.outcome for e in watch.connects()] == [Outcome.DENIED] * 2


def test_zeroed_rules_deny(
    world: World, watch: Watch, judge: Judge, open_policy: abi.Question
) -> None:
    """The masks still say that a row matches; the row says nothing."""
    rules = watch.guard.map("rules")
    zero(watch.guard, "rules", range(rules.max_entries), rules.value_size)
    assert judge.answer(open_policy)[0] is Verdict.DENY
    with world.serve(world.mx, MX4):
        assert world.control(partial(plain, MX4)).errno == 0
        assert world.act(partial(plain, MX4)).errno == errno.EPERM
    assert watch.one().verdict is Verdict.DENY


def test_an_empty_slot_denies(judge: Judge, open_policy: abi.Question) -> None:
    guard = judge.guard
    other = 1 - guard.slot
    for table in ("exes", "numbers", "units", "prefixes"):
        assert guard.map(table).key_size
    guard._purge()
    zero(guard, "policies", [other], guard.map("policies").value_size)
    open_policy.slot = other
    assert judge.answer(open_policy)[0] is Verdict.DENY


@pytest.mark.parametrize("number", [3, 4, 255])
def test_a_verdict_that_does_not_exist_denies(
    world: World, watch: Watch, open_policy: abi.Question, number: int
) -> None:
    rules = watch.guard.map("rules")
    for index in range(rules.max_entries):
        rules.put(struct.pack("=I", index), bytes(abi.Rule(0, number, 0, 0)))
    with world.serve(world.mx, MX4):
        assert world.control(partial(plain, MX4)).errno == 0
        assert world.act(partial(plain, MX4)).errno == errno.EPERM
    assert watch.one().verdict is Verdict.DENY


def test_a_new_guard_with_no_policy_denies_every_port(world: World) -> None:
    """Attached before its first policy, it would be closed, not open."""
    cgroup = world.base / "fresh"
    cgroup.mkdir()
    guard = Guard.load(world.pin_dir.with_name(f"{world.name}-fresh"))
    try:
        guard.attach(cgroup)
        for port in (SMTP, 2525):
            with world.serve(world.mx, MX4, port=port):
                act = partial(plain, MX4, port)
                assert world.control(act).errno == 0
                assert world.act(act, cgroup).errno == errno.EPERM
    finally:
        guard.unload()
        cgroup.rmdir()
