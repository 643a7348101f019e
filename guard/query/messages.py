# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages that the mail server told guardd of, by queue id and by connection."""

from __future__ import annotations

from collections.abc import Iterator

from guard.errors import JournalError
from guard.finding import Finding, Kind, Message, Notice
from guard.journal import read
from guard.query.connections import Torn
from guard.query.entries import LATE_US, Journal
from guard.query.filters import Filter

_MESSAGE = f"SMTPGUARD_KIND={Kind.MESSAGE.value}"
_HANDED_IN = f"SMTPGUARD_KIND={Kind.HANDED_IN.value}"


def messages(
    journal: Journal, queue_id: str, wanted: Filter, torn: Torn
) -> Iterator[Message | Notice]:
    """Give the messages of a queue id, oldest first: one may be used again.

    A Notice (of Kind.HANDED_IN) is one that sendmail(1) was given. Of wanted only
    the times count. torn is told of entries that cannot be read. Raises JournalError.
    """
    until = min(wanted.until_us + LATE_US, (1 << 63) - 1)
    # one field twice: either value
    matches = [_MESSAGE, _HANDED_IN, f"SMTPGUARD_QUEUE_ID={queue_id}"]
    for entry in journal.forward(matches, wanted.since_us, until):
        try:
            found = read(entry)
        except JournalError as error:
            torn(error)
            continue
        in_time = wanted.since_us <= found.time_us <= wanted.until_us
        if in_time and isinstance(found, Message | Notice):
            yield found


class QueueIds:
    """The queue ids of connections; costs nothing where no message was ever told."""

    def __init__(self, journal: Journal) -> None:
        """Ask this journal."""
        self._journal = journal
        self._any = journal.find([_MESSAGE]) is not None

    def of(self, finding: Finding) -> list[str]:
        """Give the queue ids of the messages that came by a connection, in order."""
        local = finding.direction == "local" or finding.via
        if not self._any or not local or finding.kind is Kind.SUMMARY:
            return []
        entries = self._journal.find_all(
            [_MESSAGE, f"SMTPGUARD_CONNECTION={finding.connection}"]
        )
        raw = [entry.get("SMTPGUARD_QUEUE_ID") for entry in entries]
        return [
            one.decode("utf-8", "surrogateescape")
            for one in raw
            if isinstance(one, bytes) and one
        ]
