# SPDX-License-Identifier: GPL-2.0-or-later
"""Postfix's protocol: read to the byte, in whatever pieces, or refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import BadRequest
from guard.mta.delegation import (
    MOST_BYTES,
    Request,
    answer,
    parse_request,
    take_requests,
)

# As Postfix 3.7 sends it at the end of a message.
REAL = b"""request=smtpd_access_policy
protocol_state=END-OF-MESSAGE
protocol_name=ESMTP
client_address=127.0.0.1
client_name=localhost
client_port=37634
reverse_client_name=localhost
server_address=127.0.0.1
server_port=25
helo_name=shop.example
sender=app@host.example.net
recipient=
recipient_count=2
queue_id=8045F2AB23
instance=123.456.7
size=12345
etrn_domain=
stress=
sasl_method=plain
sasl_username=app
sasl_sender=
ccert_subject=
encryption_protocol=TLSv1.3
policy_context="""
PLAIN = Request(
    state="END-OF-MESSAGE",
    protocol="ESMTP",
    helo="shop.example",
    queue_id="8045F2AB23",
    sender="app@host.example.net",
    recipients=2,
    size=12345,
    instance="123.456.7",
    sasl_user="app",
    sasl_method="plain",
    address="127.0.0.1",
    client=("127.0.0.1", 37634),
    server=("127.0.0.1", 25),
)


def changed(name: bytes, value: bytes) -> bytes:
    """Give the real request with another value."""
    return b"\n".join(
        name + b"=" + value if line.startswith(name + b"=") else line
        for line in REAL.split(b"\n")
    )


def test_what_postfix_sends_is_read() -> None:
    assert parse_request(REAL) == PLAIN


def test_an_answer_ends_with_an_empty_line() -> None:
    assert answer("DUNNO") == b"action=DUNNO\n\n"


# A value may hold anything but what ends it.
values = st.binary(max_size=200).map(
    lambda raw: raw.replace(b"\0", b"\x1b").replace(b"\n", b"\r")
)


@given(values)
def test_a_sender_is_kept_to_the_byte(raw: bytes) -> None:
    made = parse_request(changed(b"sender", raw))
    assert made.sender.encode("utf-8", "surrogateescape") == raw


@given(st.lists(st.sampled_from([REAL, changed(b"size", b"1")]), max_size=4), st.data())
def test_requests_come_in_any_pieces(
    requests: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(one + b"\n\n" for one in requests) + b"request=sm"
    found: list[bytes] = []
    rest = b""
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        whole, rest = take_requests(rest + stream[:size])
        found += whole
        stream = stream[size:]
    assert (found, rest) == (requests, b"request=sm")


@given(st.binary(max_size=400))
def test_anything_else_is_refused_in_our_words(raw: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_request(raw)
    assert str(refused.value).isprintable()


@given(st.sampled_from(REAL.split(b"\n")), values)
def test_one_strange_line_is_read_or_refused(line: bytes, value: bytes) -> None:
    try:
        made = parse_request(changed(line.partition(b"=")[0], value))
    except BadRequest as error:
        assert str(error).isprintable()
    else:
        assert made.queue_id.isalnum() or not made.queue_id


@pytest.mark.parametrize(
    "raw",
    [
        changed(b"request", b"junk"),
        changed(b"queue_id", b"8045\rF2"),
        changed(b"recipient_count", b"-1"),
        changed(b"size", "²".encode()),
        changed(b"size", b"9" * 30),
        changed(b"recipient_count", b"9" * 19),  # more than SQLite can hold
        changed(b"instance", b"\xff"),
        REAL + b"\nsender=other@example.org",
        REAL + b"\nno equals sign",
        REAL + b"\nUPPER=x",
        changed(b"sender", b"a\0b"),
    ],
)
def test_what_postfix_cannot_have_sent_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(raw)


def test_a_request_without_end_is_refused() -> None:
    take_requests(b"x" * MOST_BYTES)
    with pytest.raises(BadRequest, match="more than"):
        take_requests(b"x" * (MOST_BYTES + 1))


@pytest.mark.parametrize(
    ("address", "port", "end"),
    [
        (b"::1", b"25", ("::1", 25)),
        (b"fe80::1%eth0", b"25", ("fe80::1", 25)),
        (b"unknown", b"25", None),
        (b"127.0.0.1", b"unknown", None),
        (b"127.0.0.1", b"0", None),
        (b"127.0.0.1", b"65536", None),
        (b"", b"", None),
    ],
)
def test_an_end_is_known_or_not(
    address: bytes, port: bytes, end: tuple[str, int] | None
) -> None:
    raw = changed(b"client_address", address)
    lines = raw.replace(b"client_port=37634", b"client_port=" + port)
    assert parse_request(lines).client == end
