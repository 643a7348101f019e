# SPDX-License-Identifier: GPL-2.0-or-later
"""Who sent a message: what Postfix told guardd of it, else port and time of a log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from guard.finding import UNKNOWN, Finding, Kind, Message
from guard.mta.maillog import Log, Logged, parse_line
from guard.query import Filter, Journal, connections
from guard.query.connections import Torn
from guard.query.messages import messages, of_token

QUEUE_ID = re.compile(
    r"[0-9A-Za-z]{5,64}|[0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4}"
)
_SECOND = 1_000_000
# A session may go on for long before its message comes; a client that has closed
# already is answered to the end of what it sent within smtpd's own limits.
_SESSION_US = 86_400 * _SECOND
_AFTER_END_US = 600 * _SECOND
# guardd dates a connect() by the clock as it is when the event is read, the log by the
# clock of the moment; a step of the clock in between must not part the two.
_STEP_US = 5 * _SECOND
_NEVER = ("denied", "refused", "timed-out", "failed", "not-sent")


@dataclass(frozen=True, slots=True)
class Sent:
    """A message, and who sent it as far as it is known."""

    queue_id: str
    time_us: int
    message: Message | None  # as Postfix told guardd
    logged: Logged | None  # as the log has it, where guardd was not told
    origin: Finding | None
    joined: bool = False  # by port and time: nobody said so
    why: str = ""  # there is no origin


def senders(
    what: str, journal: Journal, log: Log, wanted: Filter, torn: Torn
) -> Iterator[Sent]:
    """Give every message of a queue id, or of a Message-ID that the log knows.

    Of wanted only the times count. Raises JournalError and MtaError.
    """
    name = what.strip("<>")
    ids = [what] if QUEUE_ID.fullmatch(what) else list(_queue_ids(name, log, wanted))
    unknown = []
    for queue_id in ids:
        told = [
            _told(found, journal, torn)
            for found in messages(journal, queue_id, wanted, torn)
        ]
        yield from told
        if not told:
            unknown.append(queue_id)
    if unknown:
        yield from _from_log(unknown, journal, log, wanted, torn)


def _queue_ids(message_id: str, log: Log, wanted: Filter) -> dict[str, None]:
    return {
        found.queue_id: None
        for found in _within(log, wanted)
        if found.message_id == message_id
    }


def _within(log: Log, wanted: Filter) -> Iterator[Logged]:
    for line in log():
        in_time = wanted.since_us - _SECOND < line.time_us <= wanted.until_us
        if in_time and (found := parse_line(line)):
            yield found


def by_token(
    token: str, journal: Journal, wanted: Filter, torn: Torn
) -> Iterator[Sent]:
    """Give the message that has this token in its header. Raises JournalError."""
    for found in of_token(journal, token, wanted, torn):
        yield _told(found, journal, torn)


def _told(found: Message, journal: Journal, torn: Torn) -> Sent:
    sent = Sent(found.queue_id, found.time_us, found, None, found.origin)
    if found.origin:
        return sent
    joined = found.client and join(found.client, found.time_us, journal, torn)
    if joined:
        return replace(sent, origin=joined, joined=True)
    return replace(sent, why=UNKNOWN[found.unknown])


def _from_log(
    ids: list[str], journal: Journal, log: Log, wanted: Filter, torn: Torn
) -> Iterator[Sent]:
    for found in _within(log, wanted):
        if found.queue_id not in ids or (found.client is None and found.uid is None):
            continue
        sent = Sent(found.queue_id, found.time_us, None, found, None)
        if found.client is None:
            yield replace(sent, why=f"handed in by sendmail(1), by user ID {found.uid}")
        elif (port := found.client[1]) is None:
            yield replace(
                sent,
                why="the log has no port: set smtpd_client_port_logging = yes"
                " (Exim: log_selector = +incoming_port)",
            )
        else:
            # a log's second is the one it began in
            client = found.client[0], port
            origin = join(client, found.time_us, journal, torn, _SECOND)
            why = "" if origin else UNKNOWN["no-connection"]
            yield replace(sent, origin=origin, joined=bool(origin), why=why)


def join(
    client: tuple[str, int], at_us: int, journal: Journal, torn: Torn, span_us: int = 0
) -> Finding | None:
    """Find the connection from this port that was there at that time, or nearest to it.

    The time (CLOCK_REALTIME) is at_us or up to span_us later. None: the journal has
    none, or only such as had long ended.
    """
    until_us = at_us + span_us
    wanted = Filter(
        since_us=max(at_us - _SESSION_US, 0),
        until_us=until_us + _STEP_US,
        from_ports=(client[1],),
    )
    nearest, distance = None, _AFTER_END_US + 1
    for found in connections(journal, wanted, torn, newest_first=True):
        if found.src != client or found.kind is Kind.SUMMARY:
            continue
        if found.outcome in _NEVER:
            continue
        lasted_us = found.duration_us
        end_us = until_us if lasted_us is None else found.time_us + lasted_us
        away = max(found.time_us - until_us, at_us - end_us, 0)
        if away < distance:
            nearest, distance = found, away
        if not away:
            break
    return nearest
