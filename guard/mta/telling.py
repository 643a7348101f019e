# SPDX-License-Identifier: GPL-2.0-or-later
"""What the journal is told of a message: who sent it, what we said, a limit it met."""

from __future__ import annotations

import time

from guard.event import Event
from guard.finding import Kind, Message, Notice
from guard.mta.admission import Answer
from guard.mta.delegation import Request
from guard.mta.limits import SPAN_NAMES, Met
from guard.origin import Naming
from guard.text import printable

_DONE = {
    "defer": "deferred",
    "hold": "held",
    "reject": "rejected",
    "notify": "let pass",
}


def limit_notice(met: Met, in_force: bool) -> Notice:
    """Make the finding that an origin sends more than a limit allows."""
    limit, window, span = met.limit, met.window, SPAN_NAMES[met.span]
    each = {"minute": "a minute", "hour": "an hour"}[span]
    messages, recipients = limit.messages[met.span], limit.recipients[met.span]
    most = [f"{messages} messages"] if messages is not None else []
    most += [f"{recipients} recipients"] if recipients is not None else []
    done = _DONE[limit.action] if in_force else "let pass: [mta] observes"
    return Notice(
        Kind.LIMITED,
        time.time_ns() // 1000,
        f"limit {limit.name} of {' and '.join(most)} {each} is met by"
        f" {printable(met.origin)};"
        f" more is {done}",
        4 if in_force and limit.action != "notify" else 5,
        {
            "LIMIT": limit.name,
            "ORIGIN": met.origin,
            "SPAN": span,
            "ANSWER": limit.action if in_force else "notify",
            "SENT": str(window.messages),
            "SENT_TO": str(window.recipients),
        },
    )


def message_kind(told: Answer) -> Kind:
    """Give the kind of finding of a message that was answered so."""
    if told.answer == "dunno":
        return Kind.MESSAGE
    if not told.in_force:
        return Kind.WOULD_REJECT
    return Kind.REJECTED if told.refuses else Kind.MESSAGE


def sent_message(
    request: Request,
    event: Event | None,
    naming: Naming,
    told: Answer,
    token: str,
    time_us: int,
) -> Message:
    """Make a Message of a request, with who made the connection and what we said.

    time_us is when that was, CLOCK_REALTIME.
    """
    unknown = ""
    if event is None:
        known = request.client and request.server
        unknown = "no-connection" if known else "no-port"
    return Message(
        time_us=time_us,
        queue_id=request.queue_id,
        sender=request.sender,
        recipients=request.recipients,
        size=request.size,
        sasl_user=request.sasl_user,
        sasl_method=request.sasl_method,
        protocol=request.protocol,
        state=request.state,
        helo=request.helo,
        client=request.client,
        server=request.server,
        origin=naming.finding(event) if event else None,
        unknown=unknown,
        kind=message_kind(told),
        answer=told.answer,
        reason=told.reason,
        limit=told.limit,
        token=token,
    )
