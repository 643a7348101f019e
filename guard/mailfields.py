# SPDX-License-Identifier: GPL-2.0-or-later
"""A Message's own journal fields, written and read; those of its origin are a
finding's, see journal.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from guard.finding import REASONS, UNKNOWN, Finding, Kind, Message
from guard.values import end, number, text, time_us

_COLUMNS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("time_us", "SMTPGUARD_TIME_US", time_us),
    ("queue_id", "SMTPGUARD_QUEUE_ID", text),
    ("sender", "SMTPGUARD_SENDER", text),
    ("recipients", "SMTPGUARD_RECIPIENTS", number),
    ("size", "SMTPGUARD_SIZE", number),
    ("sasl_user", "SMTPGUARD_SASL_USER", text),
    ("sasl_method", "SMTPGUARD_SASL_METHOD", text),
    ("protocol", "SMTPGUARD_PROTOCOL", text),
    ("state", "SMTPGUARD_STATE", text),
    ("helo", "SMTPGUARD_HELO", text),
)
# Since 0.2; a field that says nothing is not there.
_LATER = (
    ("answer", "SMTPGUARD_ANSWER", "dunno"),
    ("reason", "SMTPGUARD_REASON", ""),
    ("limit", "SMTPGUARD_LIMIT", ""),
    ("token", "SMTPGUARD_TOKEN", ""),
)
_values = attrgetter(*(attribute for attribute, _, _ in _COLUMNS))
_FORMS = tuple(f"{field}=%s" for _, field, _ in _COLUMNS)
# What a finding calls by a name that the message needs for itself. Its number too:
# delivery.py knows the entry of a connect() by it.
RENAMED = {
    "SMTPGUARD_KIND": "SMTPGUARD_CONNECT_KIND",
    "SMTPGUARD_TIME_US": "SMTPGUARD_CONNECT_US",
    "SMTPGUARD_SEQ": "SMTPGUARD_CONNECT_SEQ",
}


def message_lines(found: Message) -> list[str]:
    """Give the "NAME=value" texts of all but the origin."""
    lines = [form % value for form, value in zip(_FORMS, _values(found), strict=True)]
    for which, where in (("CLIENT", found.client), ("SERVER", found.server)):
        if where:
            lines.append(f"SMTPGUARD_{which}_ADDR={where[0]}")
            lines.append(f"SMTPGUARD_{which}_PORT={where[1]}")
    for attribute, name, plain in _LATER:
        if (value := getattr(found, attribute)) != plain:
            lines.append(f"{name}={value}")
    if found.messages != 1:
        lines.append(f"SMTPGUARD_MESSAGES={found.messages}")
        lines.append(f"SMTPGUARD_LAST_MESSAGE_US={found.last_us}")
    if found.unknown:
        lines.append(f"SMTPGUARD_UNKNOWN={found.unknown}")
    return lines


def read_message(
    kind: Kind,
    entry: Mapping[str, Any],
    read_origin: Callable[[Mapping[str, Any]], Finding],
) -> Message:
    """Make a Message of an entry; read_origin makes the finding of the connect().

    Raises KeyError and ValueError for what guardd cannot have written.
    """
    origin = None
    if "SMTPGUARD_CONNECT_KIND" in entry:
        origin = read_origin(
            {**entry, **{name: entry[by] for name, by in RENAMED.items()}}
        )
    unknown = text(entry.get("SMTPGUARD_UNKNOWN", ""))
    if bool(unknown) == bool(origin) or unknown not in ("", *UNKNOWN):
        raise ValueError("a message of no origin, and no reason")
    later: dict[str, Any] = {
        attribute: text(entry.get(name, plain)) for attribute, name, plain in _LATER
    }
    if later["reason"] not in ("", *REASONS):
        raise ValueError("a message refused for no reason that is known")
    return Message(
        kind=kind,
        client=end("CLIENT", entry) if "SMTPGUARD_CLIENT_ADDR" in entry else None,
        server=end("SERVER", entry) if "SMTPGUARD_SERVER_ADDR" in entry else None,
        origin=origin,
        unknown=unknown,
        messages=number(entry.get("SMTPGUARD_MESSAGES", b"1")),
        last_us=time_us(entry.get("SMTPGUARD_LAST_MESSAGE_US", b"0")),
        **{attribute: how(entry[name]) for attribute, name, how in _COLUMNS},
        **later,
    )
