# SPDX-License-Identifier: GPL-2.0-or-later
"""Something is not as it was put: one finding when it is seen, and it is put back.

What is changed again and again is one incident, not a finding a second; its end is
a finding when the first one did not already tell of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from guard.checks import Check, State
from guard.errors import GuardError
from guard.finding import Kind, Notice

# A change that was put back is over when it has not come again for so long.
CALM_SECONDS = 60.0


@dataclass(frozen=True)
class Subject:
    """Something to look at, and how to put it back."""

    look: Callable[[], Iterable[Check]]  # WARN and BAD: not as it should be
    repair: Callable[[], object] | None = None  # raises GuardError; None: cannot be
    always: bool = False  # repaired whatever the policy says


@dataclass
class _Incident:
    subject: Subject
    check: Check
    repaired: bool
    last: float  # when it was last seen, monotonic seconds
    times: int = 1


class Incidents:
    """What is not as it should be, over many looks."""

    def __init__(self) -> None:
        """Begin with all being well."""
        self._open: dict[str, _Incident] = {}

    @property
    def unrepaired(self) -> dict[str, str]:
        """Give what is wrong right now: its name, and in words."""
        return {
            name: incident.check.detail
            for name, incident in self._open.items()
            if not incident.repaired
        }

    def examine(self, subject: Subject, now: float, repair: bool) -> list[Notice]:
        """Look, put back what may be, and give the findings about it.

        now is time.monotonic(); repair is what the policy says.
        """
        before = _wrong(subject)
        after, why = before, ""
        if before and subject.repair and (repair or subject.always):
            try:
                subject.repair()
            except GuardError as error:
                why = str(error)
            after = _wrong(subject)
        elif before and subject.repair:
            why = 'left as it is: the policy says tamper = "report"'
        known = {n for n, one in self._open.items() if one.subject is subject}
        notices = []
        for name in sorted(known | before.keys()):
            if name in before:
                repaired = name not in after
                notices += self._bad(subject, before[name], repaired, why, now)
            else:
                notices += self._good(name, now)
        return notices

    def _bad(
        self, subject: Subject, check: Check, repaired: bool, why: str, now: float
    ) -> list[Notice]:
        incident = self._open.get(check.name)
        if incident is None:
            self._open[check.name] = _Incident(subject, check, repaired, now)
            return [changed(check, repaired, why)]
        was_repaired, incident.repaired = incident.repaired, repaired
        incident.last = now
        if not was_repaired and repaired:
            del self._open[check.name]
            return [_good_again(incident, "put back")]
        if was_repaired:
            incident.times += 1
            incident.check = check
            if not repaired:
                return [changed(check, repaired, why)]
        return []

    def _good(self, name: str, now: float) -> list[Notice]:
        incident = self._open[name]
        if not incident.repaired:
            del self._open[name]
            return [_good_again(incident, "somebody put it back")]
        if now - incident.last < CALM_SECONDS:
            return []
        del self._open[name]
        if incident.times == 1:
            return []  # the finding about the change said that it was put back
        return [_good_again(incident, f"put back each of {incident.times} times")]


def _wrong(subject: Subject) -> dict[str, Check]:
    return {
        check.name: check
        for check in subject.look()
        if check.state in (State.WARN, State.BAD)
    }


def changed(check: Check, repaired: bool, why: str = "") -> Notice:
    """Make the finding that something was changed; why it was not put back."""
    text = f"{check.name} changed by somebody: {check.detail}"
    if repaired:
        text += "; put back"
    else:
        text += f"; NOT PUT BACK ({why})" if why else ""
        text += f"; {check.remedy}" if check.remedy else ""
    level = 4 if check.state is State.WARN else 3 if repaired else 2
    return _notice(check, "changed", repaired, text, level)


def _good_again(incident: _Incident, how: str) -> Notice:
    check = incident.check
    text = f"{check.name} good again, {how}: it was {check.detail}"
    notice = _notice(check, "good", True, text, 5)
    notice.fields["TIMES"] = str(incident.times)
    return notice


def _notice(
    check: Check, state: str, repaired: bool, text: str, priority: int
) -> Notice:
    return Notice(
        Kind.TAMPERED,
        time.time_ns() // 1000,
        text,
        priority,
        {
            "WHAT": check.name,
            "STATE": state,
            "REPAIRED": str(int(repaired)),
            "DETAIL": check.detail,
        },
    )
