# SPDX-License-Identifier: GPL-2.0-or-later
"""Every target over its kept inputs, and over made-up ones: the same each time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import inputs, seeds
from tests.fuzz.targets import CORPUS, TARGETS, survives

# An example costs some milliseconds where verbs are run or policies compared.
EXAMPLES = {"verbs": 100, "policy": 200, "arguments": 80, "finding": 100}


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    kept = seeds(name)
    assert kept, "a target without a single input"
    for path in kept:
        try:
            survives(TARGETS[name], path.read_bytes())
        except BaseException as error:
            error.add_note(f"input: {path}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_made_up_inputs(name: str) -> None:
    @settings(
        max_examples=EXAMPLES.get(name, 400),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(name))
    def one(data: bytes) -> None:
        survives(TARGETS[name], data)

    one()


def test_the_corpus_is_small_and_each_of_a_target() -> None:
    kept = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in kept} == set(TARGETS)
    assert len(kept) < 200
    assert sum(path.stat().st_size for path in kept) < 200_000


def test_strategies_are_of_targets() -> None:
    from tests.fuzz.inputs import STRUCTURED

    assert STRUCTURED.keys() <= TARGETS.keys()
    assert all(isinstance(made, st.SearchStrategy) for made in STRUCTURED.values())
