# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings that messages, or questions of Postfix, were lost."""

from __future__ import annotations

import time

from guard.finding import Kind, Notice


def messages_lost(count: int) -> Notice:
    """Tell that so many messages waited for journald when a guardd was ended.

    Of an entry that journald was just given this says the same: at most so many.
    """
    text = f"lost: {count} (messages not yet in the journal when guardd was ended):"
    text += " who sent them is left to the mail log"
    return _lost(text, {"LOST_MESSAGES": str(count)})


def not_answered(count: int) -> Notice:
    """Tell that so many clients of the policy service were sent away."""
    text = (
        f"lost: {count} (connections of Postfix's beyond what guardd serves at once):"
    )
    text += " their messages are joined by port and time"
    return _lost(text, {"REFUSED_CLIENTS": str(count)})


def _lost(text: str, fields: dict[str, str]) -> Notice:
    return Notice(Kind.LOST, time.time_ns() // 1000, text, 3, fields)
