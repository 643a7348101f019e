# SPDX-License-Identifier: GPL-2.0-or-later
"""A finding for eyes: the MESSAGE of its journal entry, and its PRIORITY."""

from __future__ import annotations

from guard.finding import REASONS, UNKNOWN, Finding, Kind, Message, Notice
from guard.text import address, printable


def priority(finding: Finding) -> int:
    """Give the syslog(3) level: 4 refused, 5 would be or was turned, else 6."""
    if finding.kind in (Kind.CLOSED, Kind.LOCAL) and finding.outcome != "denied":
        return 6
    if finding.verdict == "deny":
        return 4 if finding.mode == "enforce" else 5
    return 5 if finding.kind in (Kind.REDIRECTED, Kind.PRE_EXISTING) else 6


_LEAD = {
    Kind.DENIED: "denied",
    Kind.WOULD_DENY: "would be denied",
    Kind.REDIRECTED: "redirected",
    Kind.ALLOWED: "allowed",
    Kind.LOCAL: "local",
    Kind.CLOSED: "ended",
    Kind.BACKSTOP: "met by the second lock",
    Kind.PRE_EXISTING: "was open before the guard",
    Kind.ENDED: "was open before the guard",
}
# What becomes of a connection that is older than the guard, and denied.
_STATES = {
    "to-end": ", to be ended",
    "left-open": ", left open",
    "ended-by-guard": ", ended by the guard",
    "ended-itself": ", had ended by itself",
    "not-ended": ", could not be ended ({})",
}
_NAMED = 4  # of those that a packet can have come from
_VERDICTS = {"deny": "denied", "allow": "allowed", "redirect": "redirected"}


def message(finding: Finding) -> str:
    """Say in one printable line who connected where, and what became of it."""
    kind = finding.kind
    if kind is Kind.SUMMARY:
        word = _VERDICTS.get(finding.verdict, finding.verdict)
        if word == "denied" and finding.mode == "observe":
            word = "would be denied"
        lead = f"{word} {finding.count} times more"
    else:
        lead = _LEAD[kind]
    user = finding.user or f"uid {finding.uid}"
    source = f" {address(finding.src)}" if finding.src else ""
    if finding.makers:
        who, what = _one_of(finding), ""
    elif "no-process" in finding.incomplete:
        who, what = _unknown(finding, user), ""
    else:
        who = f"pid {finding.pid} ({finding.comm}, {user})"
        what = f"; {finding.exe or 'no executable'} in {finding.cwd}"
    to = address(finding.dst)
    if finding.destinations == "many":
        to = f"many destinations, the first {to}"
    text = f"{lead}: {who}{source} -> {to}{_why(finding)}{what}{_script(finding)}"
    if finding.unit:
        text += f", unit {finding.unit}"
    if finding.container:
        text += f", container {finding.container}"
    return printable(text)


def mail_priority(found: Message) -> int:
    """Give the syslog(3) level: 4 refused, 5 held or would be either, else 6."""
    if found.kind is Kind.REJECTED:
        return 4
    return 6 if found.answer == "dunno" else 5


def level(found: Finding | Message | Notice) -> int:
    """Give the syslog(3) level of an entry, by which journald may leave it out."""
    if isinstance(found, Notice):
        return found.priority
    return mail_priority(found) if isinstance(found, Message) else priority(found)


_ANSWERS = {"reject": "rejected", "defer": "deferred", "hold": "held"}


def _mail_lead(found: Message) -> str:
    word = _ANSWERS.get(found.answer, "")
    if not word:
        return ""
    return f"would be {word}: " if found.kind is Kind.WOULD_REJECT else f"{word}: "


def mail_message(found: Message) -> str:
    """Say in one printable line which message came from whom."""
    text = f"{_mail_lead(found)}message {found.queue_id or 'of no queue'}"
    if found.messages > 1:
        text = f"{_mail_lead(found)}{found.messages} messages more, the first"
        text += f" {found.queue_id or 'of no queue'}"
    text += f" from <{found.sender}>"
    text += f", {found.recipients} recipients, {found.size} bytes"
    if found.sasl_user:
        text += f", logged in as {found.sasl_user}"
    if found.answer != "dunno":
        text += f", {REASONS.get(found.reason, found.reason)} {found.limit}".rstrip()
    source = address(found.client) if found.client else "an unknown client"
    if (by := found.origin) is None:
        return printable(f"{text}: {source}: {UNKNOWN[found.unknown]}")
    text += f": pid {by.pid} ({by.comm}, {by.user or f'uid {by.uid}'}) {source};"
    text += f" {by.exe or 'no executable'} in {by.cwd}{_script(by)}"
    return printable(f"{text}, unit {by.unit}" if by.unit else text)


def _script(finding: Finding) -> str:
    """Name the script, where it says more than the folder does."""
    text = ""
    if finding.script not in (None, f"{finding.cwd}/"):
        text = f", script {finding.script}"
    if finding.request_uri:
        text += f", {finding.request_method or 'request'} {finding.request_uri}"
    return f"{text}, pool {finding.pool}" if finding.pool else text


def _one_of(finding: Finding) -> str:
    """Name those that a packet can have come from."""
    shown = [
        f"pid {maker.pid} ({maker.exe or maker.comm})"
        for maker in finding.makers[:_NAMED]
    ]
    more = len(finding.makers) - len(shown)
    return f"one of {', '.join(shown)}" + (f" and {more} more" if more else "")


def _unknown(finding: Finding, user: str) -> str:
    """Say what is known of a sender that /proc did not show any more."""
    if "forwarded" in finding.incomplete:
        return "forwarded for"
    return (
        "process gone" if "no-user" in finding.incomplete else f"{user}, process gone"
    )


def _why(finding: Finding) -> str:
    if finding.kind is Kind.CLOSED:
        end = finding.outcome if finding.error is None else finding.error
        took = ""
        if finding.duration_us is not None:
            took = f" after {finding.duration_us / 1e6:.3f} s"
        return (
            f", {end}{took}, {finding.bytes_sent} bytes sent, "
            f"{finding.bytes_received} received"
        )
    state = _STATES.get(finding.outcome, "").format(finding.error)
    if finding.rule is not None:
        why = f', rule "{finding.rule}"'
    elif finding.kind is Kind.BACKSTOP:
        why = f", {finding.lock}: no connect() was seen"
        if "forwarded" in finding.incomplete:
            why = f", {finding.lock}: not named by forward in [backstop]"
    elif finding.verdict == "deny":
        why = ", no rule allows it"
    else:
        why = ""
    return f" via {address(finding.via)}{why}" if finding.via else why + state
