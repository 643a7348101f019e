# SPDX-License-Identifier: GPL-2.0-or-later
"""The writer against a real journald that rotates, stops, hangs and comes back."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.errors import JournalError
from guard.finding import Finding, Kind, Notice
from guard.journal import Found, JournalWriter, frame, lines, read
from guard.query import Filter, Journal
from guard.query.connections import findings as follow
from tests.journal.conftest import rows
from tests.journal.findings import finding, findings, notices, now_us
from tests.journald import Journald, entries, shared

Store = Callable[..., Journal]


def connections_in(journald: Journald) -> list[str]:
    """Name the connections of all entries, in the order of the journal."""
    journald.sync()
    found = entries(journald.directory, "SYSLOG_IDENTIFIER=guardd")
    return [str(entry["SMTPGUARD_CONNECTION"]) for entry in found]


def test_journald_has_what_was_written(journald: Journald, store: Store) -> None:
    sent = finding(comm="caf\udce9", cwd="/srv/a\nMESSAGE=forged\n", pid=os.getpid())
    store(sent)
    (entry,) = entries(journald.directory, "SYSLOG_IDENTIFIER=guardd")
    assert read(entry) == sent
    assert entry["PRIORITY"] == 4
    assert entry["SMTPGUARD_COMM"] == b"caf\xe9"
    # journald's own, about the sender and about the process meant
    assert entry["_UID"] == 0 and entry["_PID"] == os.getpid()
    assert entry["OBJECT_PID"] == str(os.getpid())
    assert "OBJECT_COMM" in entry


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(findings | notices, min_size=1, max_size=20))
def test_hostile_findings_survive_journald(
    journald: Journald, writer: JournalWriter, batch: list[Found]
) -> None:
    before = len(entries(journald.directory, "SYSLOG_IDENTIFIER=guardd"))
    for found in batch:
        writer.write(found, 5)
    journald.sync()
    raw = entries(journald.directory, "SYSLOG_IDENTIFIER=guardd")[before:]
    assert [read(entry) for entry in raw] == batch


def test_a_large_finding_goes_through(store: Store) -> None:
    # More than a datagram can be, as a policy refused for a thousand reasons.
    large = finding(args=("\x01" * 40_000,), cwd="/" + "\n" * 200_000)
    assert rows(store(large)) == [large]


def test_nobody_serves_the_socket(journald: Journald, writer: JournalWriter) -> None:
    writer.write(finding(connection="before"), 5)
    journald.sync()
    journald.stop()
    start = time.monotonic()
    with pytest.raises(JournalError, match="nobody serves") as failed:
        writer.write(finding(connection="lost?"), 0.2)
    assert 0.2 <= time.monotonic() - start < 5
    assert "systemctl status" in failed.value.report()
    journald.socket.unlink(missing_ok=True)
    with pytest.raises(JournalError, match="nobody serves"):
        writer.write(finding(connection="lost?"), 0)
    journald.start()
    writer.write(finding(connection="after"), 5)
    assert connections_in(journald) == ["before", "after"]


def test_a_restart_is_waited_for(journald: Journald, writer: JournalWriter) -> None:
    writer.write(finding(connection="before"), 5)
    journald.sync()
    journald.stop(signal.SIGKILL)
    waiting = threading.Thread(
        target=writer.write, args=(finding(connection="meanwhile"), 30)
    )
    waiting.start()
    journald.start()
    waiting.join(30)
    assert connections_in(journald) == ["before", "meanwhile"]


def test_a_journald_that_hangs_loses_and_doubles_nothing(
    journald: Journald, writer: JournalWriter
) -> None:
    writer.write(finding(connection="0"), 5)
    journald.sync()
    journald.pause()
    taken = 1
    try:
        for _ in range(100_000):
            writer.write(finding(connection=str(taken)), 0.3)
            taken += 1
    except JournalError as error:
        assert "does not read" in str(error)
    finally:
        journald.resume()
    assert taken < 100_000, "the queue was never full"
    writer.write(finding(connection=str(taken)), 5)
    assert connections_in(journald) == [str(n) for n in range(taken + 1)]


def test_a_full_queue_that_empties_in_time_is_no_error(
    journald: Journald, writer: JournalWriter
) -> None:
    journald.pause()
    timer = threading.Timer(0.5, journald.resume)
    timer.start()
    for number in range(2000):  # far more than fit
        writer.write(finding(connection=str(number)), 20)
    timer.join()
    assert len(connections_in(journald)) == 2000


def test_rotation_hides_nothing(journald: Journald, store: Store) -> None:
    store(finding(connection="old"))
    journald.rotate()
    journal = store(finding(connection="new"))
    assert [row.connection for row in rows(journal)] == ["old", "new"]
    assert len(list(journald.directory.glob("*/*.journal"))) == 2


def test_follow_goes_on_over_rotation_and_restart(
    journald: Journald, store: Store
) -> None:
    journal = store(finding(connection="long ago"))
    stream = follow(journal, Filter(), print, now_us())

    def following() -> Found:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if (found := next(stream)) is not None:
                return found
        raise AssertionError("nothing came")

    assert next(stream) is None, "what was before is not news"
    for name in ("first", "rotated", "restarted"):
        sent = finding(connection=name)
        store(sent)
        assert following() == sent
        journald.rotate() if name == "first" else None
        if name == "rotated":
            journald.stop()
            journald.start()
    notice = Notice(Kind.LOST, now_us(), "lost 3 events")
    store(notice)
    assert following() == notice


def send_as(uid: int, journald: Journald, found: Finding) -> None:
    """Have a process of that user send an entry; journald sees whose it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.connect(str(journald.socket))
        child = os.fork()
        if not child:
            try:
                os.setresuid(uid, uid, uid)
                link.send(frame(lines(found)))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def test_forged_entries_are_not_shown(journald: Journald, store: Store) -> None:
    """Any user may send our MESSAGE_ID: framing another, or flooding the answer."""
    forged = finding(uid=1234, user="victim", connection="forged")
    send_as(65534, journald, forged)
    send_as(0, journald, dataclasses.replace(forged, connection="control"))
    journal = store(finding(uid=1234, connection="genuine"))
    assert connections_in(journald) == ["forged", "control", "genuine"]
    questions: list[dict[str, Any]] = [{}, {"uids": (1234,)}, {"newest_first": True}]
    for question in questions:
        answer = {row.connection for row in rows(journal, **question)}
        assert answer == {"control", "genuine"}


def test_a_forged_end_changes_no_row(journald: Journald, store: Store) -> None:
    store(finding(Kind.LOCAL, connection="c"))
    end = finding(Kind.CLOSED, connection="c", bytes_sent=999)
    send_as(65534, journald, end)
    (row,) = rows(store())
    assert (row.outcome, row.bytes_sent) == ("syn-sent", 0)
    (row,) = rows(store(end))
    assert (row.outcome, row.bytes_sent) == ("closed", 999)


def test_the_fixed_path_is_served_for_all_tests() -> None:
    with shared(), shared():
        begun = now_us()
        mark = f"shared-{begun}"
        JournalWriter().write(finding(connection=mark), 10)
        end = time.monotonic() + 20
        local = Journal()
        while not any(row.connection == mark for row in rows(local, since_us=begun)):
            assert time.monotonic() < end, "it never came into the journal"
            time.sleep(0.05)
