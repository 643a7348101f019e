# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is refused tries again: few entries, whose counts tell every attempt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.finding import Kind, Message
from guard.journal import lines, read
from guard.mta.refusals import Refusals
from guard.policy.model import Fold
from tests.journal.findings import mail, refused
from tests.journald import until
from tests.lab import wait_until
from tests.mta.desk import Desk
from tests.mta.mailhost import POLICY
from tests.mta.test_delegation import changed
from tests.mta.test_service import STRICT, Site, queue

__all__ = ["queue"]  # a fixture
MANY = 1000
LOGIN = """\
relay_mynetworks = false
mode = "enforce"
[[mta.limit]]
name = "users"
by = "user"
messages_per_hour = 10
action = "hold"
[[local.rule]]
name = "named"
user = "games"
verdict = "allow"
"""
# Tries again, whatever it is answered: nine times on a connection, as smtpd is slow
# with whoever makes ten errors (postconf(5), smtpd_soft_error_limit).
CLIENT = """\
import smtplib, sys
for _ in range(int(sys.argv[1])):
    with smtplib.SMTP("127.0.0.1", 25, timeout=300) as mail:
        mail.ehlo("x")
        for number in range(9):
            mail.mail("app@host.example.net"), mail.rcpt("somebody@example.org")
            code, said = mail.data("Subject: x\\r\\n\\r\\nhello\\r\\n")
            print(code, said)
            mail.rset()
"""


@pytest.fixture
def site(queue: Path) -> Iterator[Site]:  # noqa: F811
    site = Site(queue)
    site.serve(STRICT)
    site.service.start()
    until(site.serves, "the policy service")
    yield site
    site.service.stop(10)


def test_a_thousand_refusals_of_one_origin(site: Site) -> None:
    raw = changed(b"sasl_username", b"")
    other = raw.replace(b"client_address=127.0.0.1", b"client_address=127.0.0.2")
    with site.connect() as asking:
        for number in range(MANY):
            asking.sendall((other if number % 100 == 99 else raw) + b"\n\n")
            assert asking.recv(1000).startswith(b"action=REJECT")
    site.service.stop(10)  # what is not told by then is told now
    assert {one.kind for one in site.told} == {Kind.REJECTED}
    by = {"127.0.0.1": 0, "127.0.0.2": 0}
    for one in site.told:
        by[one.client[0]] += one.messages
    assert by == {"127.0.0.1": MANY - 10, "127.0.0.2": 10}
    assert site.expected == MANY, "each would be told as lost if guardd were killed"
    assert len(site.told) < 100
    for one in site.told:
        assert (one.messages > 1) == (one.last_us > 0)
        assert one.messages == 1 or one.last_us >= one.time_us


@pytest.fixture
def told() -> list[Message]:
    return []


def take(refusals: Refusals, key: str, now: float, fold: Fold) -> None:
    refusals.take(key, fold, now, int(now * 1e6), lambda: mail(None, helo=key))


def test_windows_begin_and_end(told: list[Message]) -> None:
    refusals, fold = Refusals(told.append), Fold(10**9, denied=2)
    for now in (0.0, 0.1, 0.2, 0.3, 0.9):
        take(refusals, "a", now, fold)
    take(refusals, "b", 0.9, fold)
    refusals.finish(0.99)
    assert [one.messages for one in told] == [1, 1, 1]
    refusals.finish(1.0)
    assert [(one.helo, one.messages, one.last_us) for one in told[3:]] == [
        ("a", 3, 900_000)
    ]
    for now in (1.5, 1.6, 1.7, 2.8):  # one that is over ends with the next attempt
        take(refusals, "a", now, fold)
    refusals.finish(math.inf)
    assert sum(one.messages for one in told if one.helo == "a") == 9
    assert sum(one.messages for one in told if one.helo == "b") == 1
    before = len(told)
    refusals.finish(math.inf)
    assert len(told) == before


def test_no_window_folds_nothing(told: list[Message]) -> None:
    refusals = Refusals(told.append)
    for _ in range(20):
        take(refusals, "a", 0.0, Fold(0))
    assert [one.messages for one in told] == [1] * 20


def test_origins_without_end(
    told: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.mta.refusals._MOST", 10)
    refusals, fold = Refusals(told.append), Fold(10**9, denied=0)
    for number in range(100):
        for _ in range(3):
            take(refusals, str(number), 0.0, fold)
    refusals.finish(math.inf)
    assert sum(one.messages for one in told) == 300 and len(told) == 100


def test_the_sum_reads_as_it_was_written() -> None:
    found = refused()
    entry = dict(line.split("=", 1) for line in lines(found))
    assert read(entry) == found
    assert "rejected" in entry["MESSAGE"] or "17 messages more" in entry["MESSAGE"]
    assert entry["SMTPGUARD_MESSAGES"] == "17"


def test_a_client_that_is_refused_in_a_loop(desk: Desk) -> None:
    """By a real Postfix: refused for no login, and held beyond a limit."""
    desk.guard.apply(POLICY + LOGIN)
    done = desk.run(["/usr/bin/python3", "-c", CLIENT, "20"], timeout=300)
    assert done.stdout.count("554 ") == 180, done.stdout[-500:]

    def summed() -> int:
        return sum(one["messages"] for one in desk.mail(done.pid))

    wait_until(lambda: summed() >= 180, "180 refused messages in the journal")
    assert summed() == 180
    found = desk.mail(done.pid)
    assert len(found) < 90 and {one["kind"] for one in found} == {"rejected"}
    [planned] = [
        line
        for line in desk.guard.ctl("plan", "--json").stdout.splitlines()
        if "www-data" in line
    ]
    assert '"count":180' in planned.replace(" ", "")
    # what is held was taken: each has its queue id, and its entry
    done = desk.run(["/usr/bin/python3", "-c", CLIENT, "3"], user="games", timeout=300)
    ids = desk.ids_of(done.stdout)
    assert len(ids) == 27
    for queue_id in ids:
        assert desk.told(queue_id)["origin"]["pid"] == done.pid
    held = [one for one in desk.mail(done.pid) if one["answer"] == "hold"]
    assert len(held) == 17 and {one["messages"] for one in held} == {1}
