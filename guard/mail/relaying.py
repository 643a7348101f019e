# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists of main.cf with one element put in or taken out, all else as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from guard.errors import MailError
from guard.mail.postfix import SUFFIX

_TEXTS = ("texthash", "regexp", "pcre", "cidr")  # DATABASE_README: no index
RELAY = "smtpd_relay_restrictions"
RECIPIENT = "smtpd_recipient_restrictions"
MYNETWORKS = "permit_mynetworks"
# postconf(5), smtpd_recipient_restrictions: with none of these smtpd takes no mail.
_STOPS = frozenset(
    ("reject", "reject_unauth_destination", "defer", "defer_if_permit")
    + ("defer_unauth_destination", "check_relay_domains")
)
# Separators of postconf(5) lists; {} groups what belongs together.
_TOKEN = re.compile(r"[^\s,{}]+|[{}]")


@dataclass(frozen=True, slots=True)
class Member:
    """One element of one list, which is to be there or not to be there."""

    parameter: str
    element: str
    present: bool


def elements(text: str) -> Iterator[tuple[str, int, int]]:
    """Give the words of a list that stand in no group, with start and end."""
    depth = 0
    for found in _TOKEN.finditer(text):
        if found[0] == "{":
            depth += 1
        elif found[0] == "}":
            depth -= 1
        elif depth == 0:
            yield found[0], found.start(), found.end()


def words(text: str) -> list[str]:
    """Give the words of a list that stand in no group."""
    return [word for word, _, _ in elements(text)]


def without(text: str, element: str) -> str:
    """Take an element out, with the comma or the blanks after it."""
    for word, start, end in reversed(list(elements(text))):
        if word == element:
            tail = re.match(r"\s*,?\s*", text[end:])
            text = text[:start] + text[end + (tail.end() if tail else 0) :]
    return re.sub(r"[\s,]+\Z", "", text)


def with_first(text: str, element: str) -> str:
    """Put an element first; where only permits stand before it, it may stay."""
    before: list[str] = []
    for word in words(text):
        if word == element:
            if all(other.startswith("permit") for other in before):
                return text
            break
        before.append(word)
    rest = without(text, element)
    return f"{element}, {rest}" if rest else element


def changed(member: Member, text: str) -> str:
    """Give a list as the member wants it; the same text when it is so already."""
    if member.present:
        return with_first(text, member.element)
    if member.element not in words(text):
        return text
    return without(text, member.element)


def members(relay_mynetworks: bool | None) -> list[Member]:
    """Give what relay_mynetworks wants of both lists of restrictions."""
    if relay_mynetworks is None:
        return []
    return [Member(name, MYNETWORKS, relay_mynetworks) for name in (RELAY, RECIPIENT)]


def reject_open(relay: str, recipient: str) -> None:
    """Raise MailError when both lists, as they would be, let smtpd take no mail.

    smtpd(8) then answers every client with 451, and `postfix check` is silent.
    """
    if not _STOPS & {*words(relay), *words(recipient)}:
        raise MailError(
            f"relay_mynetworks would leave nothing in {RELAY} and {RECIPIENT} that"
            " stops relaying, and smtpd would refuse all mail",
            hint=f"postconf -e '{RELAY} = permit_sasl_authenticated,"
            " defer_unauth_destination'",
        )


def reject_missing(users: Iterable[str]) -> None:
    """Raise MailError for a file of authorized_submit_users that is not there.

    sendmail(1) then refuses everybody, root as well, and `postfix check` is silent.
    """
    for user in users:
        text = user.removeprefix("!")
        kind, colon, path = text.partition(":")
        if kind in _TEXTS or kind in SUFFIX:
            text = path + SUFFIX.get(kind, "")
        elif colon:
            continue  # no file, or none that we know
        if text.startswith("/") and "$" not in text and not Path(text).is_file():
            raise MailError(
                f"authorized_submit_users: {text}: no such file, and nobody could"
                " submit by sendmail(1)",
                hint=f"postmap {kind}:{path}" if kind in SUFFIX else "write that file",
            )
