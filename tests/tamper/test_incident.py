# SPDX-License-Identifier: GPL-2.0-or-later
"""One finding an incident, and one that it is over, by made-up looks."""

from __future__ import annotations

from dataclasses import dataclass, field

from guard.checks import Check, State
from guard.errors import KernelError
from guard.finding import Notice
from guard.incident import CALM_SECONDS, Incidents, Subject


@dataclass
class Thing:
    """Something that is changed, and can be put back or not."""

    wrong: list[str] = field(default_factory=list)
    stuck: bool = False

    def look(self) -> list[Check]:
        return [Check(name, State.BAD, "changed", "do this") for name in self.wrong]

    def repair(self) -> None:
        if self.stuck:
            raise KernelError("cannot", 1)
        self.wrong.clear()


def states(notices: list[Notice]) -> list[tuple[str, str, str]]:
    return [
        (n.fields["WHAT"], n.fields["STATE"], n.fields["REPAIRED"]) for n in notices
    ]


def test_put_back_at_once_is_one_finding() -> None:
    thing, incidents = Thing(["a"]), Incidents()
    subject = Subject(thing.look, thing.repair)
    assert states(incidents.examine(subject, 0, True)) == [("a", "changed", "1")]
    assert incidents.unrepaired == {}
    for now in (1, CALM_SECONDS + 1, CALM_SECONDS + 2):
        assert incidents.examine(subject, now, True) == []
    thing.wrong = ["a"]  # another incident
    assert states(incidents.examine(subject, 500, True)) == [("a", "changed", "1")]


def test_again_and_again_is_told_once_and_summed_up() -> None:
    thing, incidents = Thing(), Incidents()
    subject = Subject(thing.look, thing.repair)
    found = []
    for now in range(10):
        thing.wrong = ["a"]
        found += incidents.examine(subject, now, True)
    assert states(found) == [("a", "changed", "1")]
    [end] = incidents.examine(subject, 9 + CALM_SECONDS, True)
    assert states([end]) == [("a", "good", "1")]
    assert end.fields["TIMES"] == "10" and "each of 10 times" in end.message


def test_what_cannot_be_put_back_is_told_with_the_reason() -> None:
    thing, incidents = Thing(["a", "b"], stuck=True), Incidents()
    subject = Subject(thing.look, thing.repair)
    first, second = incidents.examine(subject, 0, True)
    assert states([first, second]) == [("a", "changed", "0"), ("b", "changed", "0")]
    assert "NOT PUT BACK (kernel: cannot" in first.message and first.priority == 2
    assert "do this" in first.message
    assert incidents.unrepaired == {"a": "changed", "b": "changed"}
    assert incidents.examine(subject, 1, True) == []
    thing.wrong = ["b"]  # somebody else mended a
    assert states(incidents.examine(subject, 2, True)) == [("a", "good", "1")]
    thing.stuck = False
    assert states(incidents.examine(subject, 3, True)) == [("b", "good", "1")]
    assert incidents.unrepaired == {}


def test_put_back_once_and_then_not_any_more() -> None:
    thing, incidents = Thing(["a"]), Incidents()
    subject = Subject(thing.look, thing.repair)
    incidents.examine(subject, 0, True)
    thing.wrong, thing.stuck = ["a"], True
    assert states(incidents.examine(subject, 1, True)) == [("a", "changed", "0")]


def test_the_policy_decides_but_for_what_is_guardd_s_own() -> None:
    thing, incidents = Thing(["a"]), Incidents()
    [notice] = incidents.examine(Subject(thing.look, thing.repair), 0, False)
    assert states([notice]) == [("a", "changed", "0")]
    assert 'tamper = "report"' in notice.message
    own = Thing(["b"])
    found = incidents.examine(Subject(own.look, own.repair, always=True), 0, False)
    assert states(found) == [("b", "changed", "1")]
