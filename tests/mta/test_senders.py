# SPDX-License-Identifier: GPL-2.0-or-later
"""Port and time lead to a connection, by what a real journal has of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guard.finding import Finding, Kind, Message
from guard.journal import JournalWriter
from guard.mta.maillog import LogLine
from guard.mta.senders import join, senders
from guard.query import Filter, Journal
from tests.journal.findings import finding, mail, now_us
from tests.journald import Journald

CLIENT = ("127.0.0.1", 37634)
SECOND = 1_000_000
Store = Callable[..., Journal]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Give what writes findings into a journal of the test's own."""
    with Journald(tmp_path / "j") as journald:
        writer = JournalWriter(str(journald.socket))

        def write(*found: Finding | Message) -> Journal:
            for one in found:
                writer.write(one, 5)
            journald.sync()
            return Journal(str(journald.directory))

        yield write
        writer.close()


def connection(begin_s: float, lasted_s: float | None, **changes: Any) -> list[Finding]:
    """Give the entries of a connection; seconds from now, negative before."""
    begin = finding(Kind.LOCAL, time_us=now_us() + int(begin_s * SECOND), **changes)
    if lasted_s is None:
        return [begin]
    end = finding(
        Kind.CLOSED,
        **{
            "time_us": begin.time_us,
            "connection": begin.connection,
            "duration_us": int(lasted_s * SECOND),
            **changes,
        },
    )
    return [begin, end]


def torn(error: Exception) -> None:
    raise AssertionError(error)


def found(journal: Journal, at_s: float, **how: Any) -> list[int]:
    """Give the pids that join() finds for a moment, in seconds from now."""
    at_us = now_us() + int(at_s * SECOND)
    return [one.pid for one in join(CLIENT, at_us, journal, torn, **how)]


def test_the_connection_of_the_moment_among_those_before_and_after(
    store: Store,
) -> None:
    journal = store(
        *connection(-300, 10, pid=1),
        *connection(-200, 10, pid=2),
        *connection(-100, 10, pid=3),
        *connection(-195, 10, pid=4, src=("127.0.0.1", 37635)),
        *connection(-195, 10, pid=5, src=("127.0.0.2", 37634)),
    )
    assert found(journal, -195) == [2]
    assert found(journal, -291) == [1]


def test_a_message_that_is_read_after_the_client_has_gone(store: Store) -> None:
    journal = store(*connection(-300, 1, pid=1), *connection(-1000, 1, pid=2))
    assert found(journal, -200) == [1]


def test_one_that_ended_long_before_is_not_it(store: Store) -> None:
    journal = store(*connection(-1000, 10, pid=1))
    assert found(journal, -450) == [1]
    assert found(journal, -350) == []


def test_one_that_goes_on_for_hours_is_it(store: Store) -> None:
    assert found(store(*connection(-20_000, None, pid=1)), -3) == [1]


@pytest.mark.parametrize(("step_s", "pids"), [(4, [1]), (-4, [1]), (7, [])])
def test_the_clock_was_set_in_between(
    store: Store, step_s: int, pids: list[int]
) -> None:
    """guardd dates a connect() by the clock of later: by as much as that was set."""
    journal = store(*connection(-100 + step_s, 1, pid=1))
    assert found(journal, -100) == pids


def test_of_two_after_a_step_the_nearest(store: Store) -> None:
    journal = store(*connection(-97, 1, pid=1), *connection(-300, 1, pid=2))
    assert found(journal, -100) == [1]


def test_the_same_port_to_25_and_to_587_at_once(store: Store) -> None:
    """TCP allows that; only the other end tells them apart."""
    submission = ("127.0.0.1", 587)
    journal = store(
        *connection(-100, 50, pid=1),
        *connection(-90, 20, pid=2, dst=submission),
        *connection(-300, 20, pid=3, dst=submission),
    )
    assert found(journal, -80) == [2, 1]
    assert found(journal, -80, server=submission) == [2]
    assert found(journal, -80, server=("127.0.0.1", 25)) == [1]
    assert found(journal, -95) == [1]


def test_an_outbound_connection_of_the_same_port_is_another_one(store: Store) -> None:
    outbound = {"direction": "outbound", "dst": ("203.0.113.9", 25)}
    journal = store(
        *connection(-100, 50, pid=1), *connection(-90, 50, pid=2, **outbound)
    )
    assert found(journal, -80) == [1]
    # and alone, although it is open, and the other has ended
    assert found(store(*connection(-5, None, pid=3, **outbound)), -3) == [1]


def test_one_that_was_turned_to_the_host_itself_is_local(store: Store) -> None:
    turned = finding(Kind.REDIRECTED, time_us=now_us() - 9 * SECOND, src=CLIENT, pid=7)
    assert turned.direction == "outbound"
    assert found(store(turned), -5) == [7]


def test_what_was_denied_is_not_it(store: Store) -> None:
    journal = store(
        finding(
            Kind.DENIED, time_us=now_us() - 9 * SECOND, src=CLIENT, direction="local"
        )
    )
    assert found(journal, -5) == []


def test_an_end_that_the_journal_lacks(store: Store) -> None:
    """The same ends cannot be open twice: what came before is over."""
    journal = store(*connection(-500, None, pid=1), *connection(-100, 50, pid=2))
    assert found(journal, -80) == [2]
    assert found(journal, -300) == [1]


def test_two_within_the_second_that_a_log_names(store: Store) -> None:
    journal = store(*connection(-99.9, 0.1, pid=1), *connection(-99.5, 0.1, pid=2))
    assert found(journal, -100, span_us=SECOND) == [2, 1]


def ask(journal: Journal, *lines: LogLine) -> Any:
    [sent] = senders("4jZ0BV37cFz1f", journal, lambda: iter(lines), Filter(), torn)
    return sent


def client_line(at_us: int) -> LogLine:
    text = "4jZ0BV37cFz1f: client=localhost[127.0.0.1]:37634"
    return LogLine(at_us, "postfix/smtpd", text)


def test_several_are_told_as_several_and_none_is_guessed(store: Store) -> None:
    journal = store(
        *connection(-100, 50, pid=1),
        *connection(-90, 50, pid=2, dst=("127.0.0.1", 587)),
    )
    sent = ask(journal, client_line(now_us() - 80 * SECOND))
    assert sent.origin is None and "several connections" in sent.why
    assert [one.pid for one in sent.one_of] == [2, 1]


def test_several_of_one_process_are_that_process(store: Store) -> None:
    journal = store(
        *connection(-100, 50, pid=1),
        *connection(-90, 50, pid=1, dst=("127.0.0.1", 587)),
    )
    sent = ask(journal, client_line(now_us() - 80 * SECOND))
    assert sent.origin and sent.origin.pid == 1 and sent.joined


def test_what_postfix_told_is_joined_by_its_own_end_as_well(store: Store) -> None:
    told = mail(
        None,
        time_us=now_us() - 80 * SECOND,
        unknown="no-connection",
        server=("127.0.0.1", 587),
    )
    journal = store(
        *connection(-100, 50, pid=1),
        *connection(-90, 50, pid=2, dst=("127.0.0.1", 587)),
        told,
    )
    sent = ask(journal)
    assert sent.origin and sent.origin.pid == 2 and sent.joined


def test_what_was_written_twice_is_told_once(store: Store) -> None:
    """guardd writes again what it does not see arrive; another time is another one."""
    told = mail(None, time_us=now_us() - 9 * SECOND, unknown="no-port", client=None)
    later = replace(told, time_us=told.time_us + 1)
    journal = store(told, told, later)
    found = list(senders("4jZ0BV37cFz1f", journal, lambda: iter(()), Filter(), torn))
    assert [one.time_us for one in found] == [told.time_us, later.time_us]
