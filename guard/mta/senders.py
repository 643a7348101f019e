# SPDX-License-Identifier: GPL-2.0-or-later
"""Who sent a message: what Postfix told guardd of it, else port and time of a log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from guard.errors import JournalError
from guard.finding import UNKNOWN, Finding, Kind, Message, Notice
from guard.mta.handin import HandedIn, handed_in
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
_ONE_OF = "several connections of this port were there at that time"
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
    handed_in: HandedIn | None = None  # to sendmail(1), and by whom
    one_of: tuple[Finding, ...] = ()  # what it can have come by, newest first


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
        told = False
        seen: list[Message | Notice] = []
        for found in messages(journal, queue_id, wanted, torn):
            if found in seen:  # journald was slow, and it was written once more
                continue
            seen.append(found)
            if sent := _told(found, journal, torn):
                told = True
                yield sent
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
        if sent := _told(found, journal, torn):
            yield sent


def _told(found: Message | Notice, journal: Journal, torn: Torn) -> Sent | None:
    if isinstance(found, Notice):
        try:
            handed = handed_in(found)
        except JournalError as error:
            torn(error)
            return None
        return Sent(handed.queue_id, handed.time_us, None, None, None, handed_in=handed)
    sent = Sent(found.queue_id, found.time_us, found, None, found.origin)
    if found.origin:
        return sent
    near: tuple[Finding, ...] = ()
    if found.client:
        near = join(found.client, found.time_us, journal, torn, server=found.server)
    return _joined(sent, near, UNKNOWN[found.unknown])


def _from_log(
    ids: list[str], journal: Journal, log: Log, wanted: Filter, torn: Torn
) -> Iterator[Sent]:
    for found in _within(log, wanted):
        if found.queue_id not in ids or (found.client is None and found.uid is None):
            continue
        sent = Sent(found.queue_id, found.time_us, None, found, None)
        if found.before is not None:
            why = f"queued again by postsuper -r: ask for {found.before}, which it was"
            yield replace(sent, why=why)
        elif found.client is None:
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
            near = join(client, found.time_us, journal, torn, _SECOND)
            yield _joined(sent, near, UNKNOWN["no-connection"])


def join(
    client: tuple[str, int],
    at_us: int,
    journal: Journal,
    torn: Torn,
    span_us: int = 0,
    server: tuple[str, int] | None = None,
) -> tuple[Finding, ...]:
    """Find the connection from this end that was there at that time, or nearest to it.

    The time (CLOCK_REALTIME) is at_us or up to span_us later; server is the other end,
    where that is known. (): the journal has none, or only such as had long ended.
    Several: each was there at that time, and nothing tells which it was.
    """
    until_us = at_us + span_us
    wanted = Filter(
        since_us=max(at_us - _SESSION_US, 0),
        until_us=until_us + _STEP_US,
        from_ports=(client[1],),
    )
    near: list[Finding] = []
    distance = _AFTER_END_US + 1
    begun: set[tuple[object, ...]] = set()
    for found in connections(journal, wanted, torn, newest_first=True):
        to = found.via or found.dst
        if found.src != client or not _may_be(found) or server not in (None, to):
            continue
        lasted_us = found.duration_us
        ends = to, found.netns
        # the same ends again: this one is over, though its end is not in the journal
        if lasted_us is None and ends in begun:
            continue
        if found.time_us <= at_us:
            begun.add(ends)
        end_us = until_us if lasted_us is None else found.time_us + lasted_us
        away = max(found.time_us - until_us, at_us - end_us, 0)
        if away < distance:
            near, distance = [found], away
        elif not away:
            near.append(found)
    return tuple(near)


def _may_be(found: Finding) -> bool:
    """Tell whether a finding is of a connection that the mail server here took."""
    if found.kind is Kind.SUMMARY or found.outcome in _NEVER:
        return False
    return found.direction == "local" or found.via is not None


def _joined(sent: Sent, near: tuple[Finding, ...], why: str) -> Sent:
    """Say who sent it, if all that it can have been are connections of one process."""
    if not near:
        return replace(sent, why=why)
    if len({(found.pid, found.start_us) for found in near}) == 1:
        return replace(sent, origin=near[-1], joined=True)
    return replace(sent, one_of=near, why=_ONE_OF)
