# SPDX-License-Identifier: GPL-2.0-or-later
"""What guardd could not tell of messages is counted: in status, and in a finding."""

from __future__ import annotations

import json
import signal
import socket
from typing import Any

import pytest

from guard.finding import Kind, Notice
from guard.journal import Found
from guard.mta.policy_service import _MOST_CLIENTS as MOST_CLIENTS
from guard.scribe import Clerk
from tests.journal.findings import finding, mail
from tests.journald import served
from tests.lab import wait_until
from tests.lab.guarded import start_journald
from tests.mta.desk import Desk
from tests.mta.mailhost import SOCKET
from tests.mta.test_delegation import REAL

JOURNALD = "system.slice/systemd-journald.service"


def status(desk: Desk) -> dict[str, Any]:
    """Give what status knows of mail."""
    done = desk.guard.ctl("status", "--json")
    found: dict[str, Any] = json.loads(done.stdout)["mail"] or {}
    return found


def lost(desk: Desk, field: str) -> list[int]:
    """Give what the findings of a loss say in a field."""
    out = desk.lab.check(["journalctl", "-o", "json", "-a", "SMTPGUARD_KIND=lost"])
    rows = [json.loads(line) for line in out.splitlines()]
    return [int(row[field]) for row in rows if field in row]


def connect(desk: Desk) -> socket.socket:
    asking = socket.socket(socket.AF_UNIX)
    asking.settimeout(60)
    asking.connect(str(desk.lab.path(SOCKET)))
    return asking


def test_clients_that_are_too_many_are_counted(desk: Desk) -> None:
    extra = 5
    before = status(desk)["refused"]
    assert before == 0
    clients = []
    try:
        for _ in range(MOST_CLIENTS + extra):
            clients.append(connect(desk))
        # who was let in is answered; the others find the end
        refused = 0
        for client in clients:
            try:
                client.sendall(REAL.replace(b"END-OF-MESSAGE", b"RCPT") + b"\n\n")
                refused += not client.recv(100)
            except OSError:
                refused += 1
        assert refused >= extra  # smtpds of other tests may ask as well
        wait_until(lambda: status(desk)["refused"] == refused, "the count in status")
        wait_until(lambda: lost(desk, "SMTPGUARD_REFUSED_CLIENTS"), "the finding")
        assert sum(lost(desk, "SMTPGUARD_REFUSED_CLIENTS")) == refused
        text = desk.guard.ctl("status").stdout
        assert f"{refused} connections of Postfix refused" in text
    finally:
        for client in clients:
            client.close()


def test_messages_that_waited_for_journald_when_guardd_was_killed(desk: Desk) -> None:
    count = 3
    [pid] = [
        int(pid)
        for pid in (desk.lab.cgroup / JOURNALD / "cgroup.procs").read_text().split()
    ]
    desk.lab.check(["kill", "-KILL", str(pid)])
    taken = desk.lab.path("/run/systemd/journal/socket")
    wait_until(lambda: not served(taken), "no journald")
    with connect(desk) as asking:
        for _ in range(count):
            asking.sendall(REAL + b"\n\n")
            assert asking.recv(100) == b"action=DUNNO\n\n"
    # the first is in the scribe's hand, which waits with it
    wait_until(lambda: status(desk).get("waiting") == count, "the count in status")
    assert "3 messages wait for journald" in desk.guard.ctl("status").stdout
    desk.stop_guard(signal.SIGKILL)
    start_journald(desk.lab)
    desk.start_guard()
    wait_until(lambda: lost(desk, "SMTPGUARD_LOST_MESSAGES"), "the finding")
    assert lost(desk, "SMTPGUARD_LOST_MESSAGES") == [count]
    wait_until(lambda: status(desk).get("waiting") == 0, "nothing waits")


def test_messages_beyond_what_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """No journald is needed to see what is put aside; one that takes all is a list."""
    monkeypatch.setattr("guard.scribe._MOST_WAITING", 2)
    clerk = Clerk(lambda found: None)
    written: list[Found] = []
    monkeypatch.setattr(clerk._delivery, "write", written.append)
    found = [mail(None, unknown="no-port"), finding(), mail(None, unknown="no-port")]
    for one in (lambda: found[0], *found[1:], lambda: found[0]):
        clerk.tell(one)
    assert clerk.messages_waiting == 3  # one in the queue, two that are dropped
    clerk._write_notices()
    assert written[:2] == found[:2]
    [said] = written[2:]
    assert isinstance(said, Notice) and said.kind is Kind.LOST
    assert said.fields == {"DROPPED": "2", "LOST_MESSAGES": "2"}
    assert clerk.messages_waiting == 0
