# SPDX-License-Identifier: GPL-2.0-or-later
"""Is Postfix as the table says, and as apply left it?"""

from __future__ import annotations

from collections.abc import Iterator

from guard.checks import Check, State, good
from guard.mail.planning import Change, Plan, diff
from guard.mail.postfix import Postfix

_APPLY = "guardctl mail plan, then guardctl mail apply"


def examine(postfix: Postfix, plan: Plan) -> Iterator[Check]:
    """Tell what somebody changed since apply, and what was never applied."""
    complaint = postfix.examine()
    yield (
        Check("postfix", State.BAD, complaint, "correct what it complains of")
        if complaint
        else good("postfix", f"postfix check finds nothing in {postfix.config_dir}")
    )
    for change in plan.changes:
        yield _change(change)
    for note in plan.notes:
        yield Check("note", State.NOTE, note)
    if not plan.changes:
        yield good("table", _count(plan))


def _change(change: Change) -> Check:
    what = "; ".join(diff(change)) if change.item else change.why or "to be removed"
    where = f"{change.file}: {what}"
    if change.edited:
        return Check("drift", State.BAD, f"changed since apply: {where}", _APPLY)
    return Check("table", State.BAD, f"not applied yet: {where}", _APPLY)


def _count(plan: Plan) -> str:
    state = plan.state
    if state.is_empty():
        return "nothing is asked for, and nothing of ours is there"
    parts = (
        (len(state.parameters) + len(state.members), "parameter"),
        (len(state.services), "service"),
        (len(state.files), "table"),
    )
    told = [f"{n} {word}" if n == 1 else f"{n} {word}s" for n, word in parts if n]
    return f"all is as it says: {', '.join(told)}"
