# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages that the mail server told guardd of, by queue id and by connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from guard.errors import JournalError
from guard.finding import MAIL, Finding, Kind, Message, Notice
from guard.journal import read
from guard.query.connections import Torn
from guard.query.entries import LATE_US, Journal
from guard.query.filters import Filter

_TAKEN = tuple(
    f"SMTPGUARD_KIND={kind.value}" for kind in (Kind.MESSAGE, Kind.WOULD_REJECT)
)
_MAIL = tuple(f"SMTPGUARD_KIND={kind.value}" for kind in MAIL)  # any of them
_HANDED_IN = f"SMTPGUARD_KIND={Kind.HANDED_IN.value}"
_NO_LOGIN = "SMTPGUARD_REASON=no-login"


def messages(
    journal: Journal, queue_id: str, wanted: Filter, torn: Torn
) -> Iterator[Message | Notice]:
    """Give the messages of a queue id, oldest first: one may be used again.

    Those that were refused, too: Postfix's log has their queue ids. A Notice (of
    Kind.HANDED_IN) is one that sendmail(1) was given. Of wanted only the times
    count. torn is told of entries that cannot be read. Raises JournalError.
    """
    match = f"SMTPGUARD_QUEUE_ID={queue_id}"
    return _matching(journal, (*_MAIL, _HANDED_IN, match), wanted, torn)


def of_token(
    journal: Journal, token: str, wanted: Filter, torn: Torn
) -> Iterator[Message]:
    """Give the message that has this token in its header, likewise."""
    for found in _matching(journal, (*_MAIL, f"SMTPGUARD_TOKEN={token}"), wanted, torn):
        if isinstance(found, Message):
            yield found


def not_logged_in(journal: Journal, wanted: Filter, torn: Torn) -> Iterator[Finding]:
    """Give the connections of messages that were or would be refused for no login.

    One a message, with its time; the mode is observe where it was let pass. Of
    wanted count the times and what a connection has. Raises JournalError.
    """
    accept = wanted.accepts()
    for found in _matching(journal, (*_MAIL, _NO_LOGIN), wanted, torn):
        if not isinstance(found, Message) or found.origin is None:
            continue
        mode = "observe" if found.kind is Kind.WOULD_REJECT else "enforce"
        origin = replace(
            found.origin,
            time_us=found.time_us,
            mode=mode,
            count=found.messages,
            last_us=found.last_us,
        )
        if accept(origin):
            yield origin


def _matching(
    journal: Journal, matches: Sequence[str], wanted: Filter, torn: Torn
) -> Iterator[Message | Notice]:
    """Give what matches; one field several times is any of its values."""
    until = min(wanted.until_us + LATE_US, (1 << 63) - 1)
    for entry in journal.forward(matches, wanted.since_us, until):
        try:
            found = read(entry)
        except JournalError as error:
            torn(error)
            continue
        in_time = wanted.since_us <= found.time_us <= wanted.until_us
        if in_time and not isinstance(found, Finding):
            yield found


class QueueIds:
    """The queue ids of connections; costs nothing where no message was ever told."""

    def __init__(self, journal: Journal) -> None:
        """Ask this journal."""
        self._journal = journal
        self._any = journal.find(_TAKEN) is not None

    def of(self, finding: Finding) -> list[str]:
        """Give the queue ids of the messages that came by a connection, in order."""
        local = finding.direction == "local" or finding.via
        if not self._any or not local or finding.kind is Kind.SUMMARY:
            return []
        entries = self._journal.find_all(
            [*_TAKEN, f"SMTPGUARD_CONNECTION={finding.connection}"]
        )
        raw = [entry.get("SMTPGUARD_QUEUE_ID") for entry in entries]
        return [
            one.decode("utf-8", "surrogateescape")
            for one in raw
            if isinstance(one, bytes) and one
        ]
