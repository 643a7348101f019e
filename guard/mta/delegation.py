# SPDX-License-Identifier: GPL-2.0-or-later
"""Postfix's policy delegation protocol: bytes -> requests, answers -> bytes.

A request is lines of name=value and an empty line (SMTPD_POLICY_README). Values hold
what an SMTP client said, so any bytes but newline and NUL.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from guard.errors import BadRequest

# A request has some 30 lines. An address is the longest, 2 KB (line_length_limit of
# postconf(5)), and a certificate's subject may be as long.
MOST_BYTES = 32 * 1024
END_OF_MESSAGE = "END-OF-MESSAGE"
DATA = "DATA"
_INSTANCE = re.compile(r"[!-~]{0,128}")  # process, time and number
_DIGITS = 15
_NAME = re.compile(r"[a-z0-9_]+")
_QUEUE_ID = re.compile(r"[0-9A-Za-z]{0,64}")  # postconf(5), enable_long_queue_ids


class Request(NamedTuple):
    """What Postfix asks about; "" and 0 where it does not say."""

    state: str  # of the protocol: RCPT, END-OF-MESSAGE
    protocol: str
    helo: str
    queue_id: str
    sender: str
    recipients: int
    size: int
    instance: str  # names the message, whatever the state
    sasl_user: str
    sasl_method: str
    address: str | None  # the client's; None: not known
    client: tuple[str, int] | None  # by XCLIENT and PROXY too; None: not known
    server: tuple[str, int] | None  # the same; since Postfix 3.2


def take_requests(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Cut what has come so far into whole requests and the rest.

    Raises BadRequest when a request is longer than MOST_BYTES.
    """
    *whole, rest = buffer.split(b"\n\n")
    if max(map(len, (*whole, rest))) > MOST_BYTES:
        raise BadRequest(f"more than {MOST_BYTES} bytes")
    return whole, rest


def is_end(raw: bytes) -> bool:
    """Tell whether a request is of the end of a message, before it is read."""
    return b"\nprotocol_state=END-OF-MESSAGE\n" in b"\n%b\n" % raw


def parse_request(raw: bytes) -> Request:
    """Read one request without the empty line at its end.

    Raises BadRequest for what no Postfix sends.
    """
    given = _attributes(raw)
    kind = given.get("request", "")
    if kind != "smtpd_access_policy":
        raise BadRequest(f"{kind[:40]!a} is no kind of request that is known")
    queue_id = given.get("queue_id", "")
    if not _QUEUE_ID.fullmatch(queue_id):
        raise BadRequest(f"{queue_id[:80]!a} is no queue id")
    instance = given.get("instance", "")
    if not _INSTANCE.fullmatch(instance):
        raise BadRequest(f"{instance[:80]!a} is no instance")
    return Request(
        state=given.get("protocol_state", ""),
        protocol=given.get("protocol_name", ""),
        helo=given.get("helo_name", ""),
        queue_id=queue_id,
        sender=given.get("sender", ""),
        recipients=_number(given, "recipient_count"),
        size=_number(given, "size"),
        instance=instance,
        sasl_user=given.get("sasl_username", ""),
        sasl_method=given.get("sasl_method", ""),
        address=_host(given.get("client_address", "")),
        client=_end(given, "client"),
        server=_end(given, "server"),
    )


def answer(action: str) -> bytes:
    """Write an answer; action is one of access(5), with its text."""
    return f"action={action}\n\n".encode()


def _attributes(raw: bytes) -> dict[str, str]:
    """Take the lines apart; few steps for all, an SMTP client may wait for them."""
    if b"\0" in raw:
        raise BadRequest("a NUL")
    lines = raw.decode("utf-8", "surrogateescape").split("\n")
    try:
        found = dict([line.split("=", 1) for line in lines])
    except ValueError:
        raise BadRequest("a line that is not name=value") from None
    if len(found) != len(lines):
        raise BadRequest("a name that is given twice")
    if not _are_names(tuple(found)):
        raise BadRequest("a name that is none")
    return found


@lru_cache(maxsize=64)  # a Postfix always sends the same
def _are_names(names: tuple[str, ...]) -> bool:
    return all(map(_NAME.fullmatch, names))


def _number(given: Mapping[str, str], name: str) -> int:
    value = given.get(name) or "0"
    # what limits.py adds up is to stay below 2^63
    if not (value.isascii() and value.isdigit() and len(value) <= _DIGITS):
        raise BadRequest(f"{name} is {value[:40]!a}, no number")
    return int(value)


def _end(given: Mapping[str, str], which: str) -> tuple[str, int] | None:
    """Read an address and a port; Postfix says "unknown" or 0 for none."""
    host = _host(given.get(f"{which}_address", ""))
    port = given.get(f"{which}_port", "")
    if host is None or not (port.isascii() and port.isdigit() and len(port) < 6):
        return None
    number = int(port)
    return (host, number) if 0 < number < 65536 else None


@lru_cache(maxsize=256)
def _host(address: str) -> str | None:
    try:
        return str(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return None
