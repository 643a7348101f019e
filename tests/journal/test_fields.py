# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings to fields and back: exact for any bytes, and never a forged field."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import JournalError
from guard.finding import Finding, Kind, Maker, Message, Notice, Process
from guard.journal import MESSAGE_IDS, Found, frame, lines, read
from guard.message import mail_message, message, priority
from tests.journal.findings import (
    PLAIN,
    fields,
    finding,
    findings,
    hostile,
    mail,
    messages,
    notices,
    whole,
)


def entry(found: Found) -> dict[str, Any]:
    """Give the entry as journald's C reader would."""
    pairs = (line.partition(b"=") for line in fields(found))
    return {name.decode(): value for name, _, value in pairs}


def unframe(datagram: bytes) -> list[bytes]:
    """Read a datagram as journald does ("Native Journal Protocol")."""
    found = []
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        if b"=" in line:
            found.append(line)
            datagram = rest
            continue
        size = int.from_bytes(rest[:8], "little")
        found.append(line + b"=" + rest[8 : 8 + size])
        assert rest[8 + size : 9 + size] == b"\n"
        datagram = rest[9 + size :]
    return found


@given(findings | notices | messages)
def test_what_is_written_is_read_back_to_the_byte(found: Found) -> None:
    assert read(entry(found)) == found
    as_text = {
        name: v.decode("utf-8", "surrogateescape") for name, v in entry(found).items()
    }
    assert read(as_text) == found


@given(findings | notices | messages)
def test_no_text_can_forge_a_field(found: Found) -> None:
    sent = unframe(frame(lines(found)))
    assert sent == fields(found)
    names = [field.partition(b"=")[0] for field in sent]
    assert len(names) == len(set(names)), "a field twice"
    assert all(name.replace(b"_", b"").isalnum() for name in names)


@given(findings)
def test_the_message_is_one_printable_line(found: Finding) -> None:
    assert message(found).isprintable()
    assert 4 <= priority(found) <= 6


@given(messages)
def test_the_message_of_a_mail_is_one_printable_line(found: Message) -> None:
    assert mail_message(found).isprintable()


def test_the_message_of_a_mail_reads_well() -> None:
    by = finding(Kind.LOCAL)
    assert mail_message(mail(by, sender="a\nb@x")) == (
        "message 4jZ0BV37cFz1f from <a\\x0ab@x>, 2 recipients, 345 bytes: pid 4711"
        " (php8.2, www-data) 127.0.0.1:37634; /usr/bin/php8.2 in /srv/www/shop, unit"
        " php8.2-fpm.service"
    )
    assert mail_message(mail(None, sasl_user="app")) == (
        "message 4jZ0BV37cFz1f from <app@host.example.net>, 2 recipients, 345 bytes,"
        " logged in as app: 127.0.0.1:37634: no connection of a process of this host"
        " had these ends"
    )


def test_a_message_is_not_taken_for_the_entry_of_its_connect() -> None:
    """Who asks the journal for a connect() by its number would find the message."""
    by = finding(Kind.LOCAL, seq=7)
    assert "SMTPGUARD_SEQ" not in entry(mail(by))
    assert entry(mail(by))["SMTPGUARD_CONNECT_SEQ"] == b"7"


def test_every_attribute_of_a_finding_has_a_field() -> None:
    written = entry(whole())
    special = {"kind", "src", "dst", "via"}
    for attribute in {f.name for f in dataclasses.fields(Finding)} - special:
        assert f"SMTPGUARD_{attribute.upper()}" in written, attribute
    for end in ("SRC", "DST", "VIA"):
        assert {f"SMTPGUARD_{end}_ADDR", f"SMTPGUARD_{end}_PORT"} <= written.keys()


def test_what_is_not_known_has_no_field() -> None:
    written = entry(finding(src=None, exe=None, rule=None, args=(), duration_us=None))
    for name in ("SRC_ADDR", "EXE", "RULE", "ARGS", "DURATION_US", "VIA_PORT"):
        assert f"SMTPGUARD_{name}" not in written


def test_message_ids_are_128_random_bits_each_its_own() -> None:
    assert set(MESSAGE_IDS) == set(Kind)
    assert len(set(MESSAGE_IDS.values())) == len(Kind)
    for number in MESSAGE_IDS.values():
        # sd-id128(3): a version 4 UUID
        assert len(number) == 32 and number[12] == "4" and number[16] in "89ab"


@pytest.mark.parametrize(
    ("found", "text", "level"),
    [
        (
            PLAIN,
            "denied: pid 4711 (php8.2, www-data) -> 203.0.113.9:25, no rule allows it;"
            " /usr/bin/php8.2 in /srv/www/shop, unit php8.2-fpm.service",
            4,
        ),
        (
            finding(Kind.WOULD_DENY, rule="no-php", user=None),
            "would be denied: pid 4711 (php8.2, uid 33) 127.0.0.1:37634 ->"
            ' 203.0.113.9:25, rule "no-php"; /usr/bin/php8.2 in /srv/www/shop,'
            " unit php8.2-fpm.service",
            5,
        ),
        (
            finding(Kind.REDIRECTED, dst=("2001:db8::25", 587), unit=None),
            "redirected: pid 4711 (php8.2, www-data) 127.0.0.1:37634 ->"
            ' [2001:db8::25]:587 via 127.0.0.1:25, rule "turn"; /usr/bin/php8.2 in'
            " /srv/www/shop",
            5,
        ),
        (
            finding(Kind.CLOSED, outcome="timed-out", error="ETIMEDOUT", unit=None),
            "ended: pid 4711 (php8.2, www-data) 127.0.0.1:37634 -> 127.0.0.1:25,"
            " ETIMEDOUT after 1.235 s, 345 bytes sent, 678 received;"
            " /usr/bin/php8.2 in /srv/www/shop",
            6,
        ),
        (
            finding(Kind.SUMMARY, count=500, exe=None, comm="a\nMESSAGE=b", unit=None),
            "denied 500 times more: pid 4711 (a\\x0aMESSAGE=b, www-data) ->"
            " 203.0.113.9:25, no rule allows it; no executable in /srv/www/shop",
            4,
        ),
        (
            finding(Kind.SUMMARY, count=2900, destinations="many", unit=None),
            "denied 2900 times more: pid 4711 (php8.2, www-data) -> many destinations,"
            " the first 203.0.113.9:25, no rule allows it; /usr/bin/php8.2 in"
            " /srv/www/shop",
            4,
        ),
        (
            finding(
                Kind.BACKSTOP, pid=0, exe=None, unit=None, incomplete=("one-of",),
                makers=tuple(
                    Maker(n, 33, f"x{n}", exe, (), None)
                    for n, exe in enumerate((None, "/bin/a", "/b", "/c", "/d"))
                ),
            ),
            "met by the second lock: one of pid 0 (x0), pid 1 (/bin/a), pid 2 (/b),"
            " pid 3 (/c) and 1 more -> 203.0.113.9:25, nftables-output: no connect()"
            " was seen",
            4,
        ),
    ],
)  # fmt: skip
def test_the_message_reads_well(found: Finding, text: str, level: int) -> None:
    assert message(found) == text
    assert priority(found) == level


def test_a_notice_takes_no_field_that_journald_would_drop() -> None:
    for name in ("kind", "TIME_US", "a-b", "_X", "", "X" * 55, "Ä"):
        with pytest.raises(JournalError, match="no name"):
            lines(Notice(Kind.LOST, 1, "lost", fields={name: "x"}))
    short = Notice(Kind.LOST, 1, "lost", fields={"SMTPGUARD_cause": "ring"})
    assert "SMTPGUARD_CAUSE=ring" in lines(short)


garbage = (
    st.none() | st.integers() | st.booleans() | st.floats() | hostile
    | st.binary(max_size=30) | st.lists(st.binary(max_size=5), max_size=3)
    | st.sampled_from([b"-1", b"9" * 30, b"\xb2", "²", b"[[]]", b'[{"pid":1}]', b"[1]",
                       b"[" * 5000, b'{"a":1}', b"1e999", b"[NaN]", b"lost"])
)  # fmt: skip
valid_entry = (findings | notices | messages).map(entry)


@given(st.dictionaries(st.sampled_from(sorted(entry(PLAIN))) | hostile, garbage))
def test_a_foreign_entry_gives_our_error_and_no_other(strange: dict[str, Any]) -> None:
    with pytest.raises(JournalError):
        read(strange)


@given(valid_entry, st.data())
def test_a_torn_entry_is_read_or_refused(
    torn: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(torn)))
    if data.draw(st.booleans()):
        del torn[name]
    else:
        torn[name] = data.draw(garbage)
    try:
        found = read(torn)
    except JournalError as error:
        assert str(error).isprintable()
    else:
        # What passes must be writable and readable again, so harmless to the CLI.
        assert lines(read(entry(found))) == lines(found)


def test_ancestors_and_arguments_are_json() -> None:
    hard = finding(
        args=("a b", 'q"', "\udcff\n"), ancestors=(Process(1, 0, "\udce9", 5),)
    )
    written = entry(hard)
    assert json.loads(written["SMTPGUARD_ARGS"]) == ["a b", 'q"', "\udcff\n"]
    assert json.loads(written["SMTPGUARD_ANCESTORS"])[0]["comm"] == "\udce9"
