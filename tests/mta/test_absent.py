# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd is away, hangs or is killed: mail flows, and is accounted for later."""

from __future__ import annotations

import signal
import socket
import subprocess
import time

from tests.lab import wait_until
from tests.mta.desk import LOG, Desk, is_by
from tests.mta.mailhost import SOCKET

SLOW = """\
import smtplib, sys
with smtplib.SMTP("127.0.0.1", 25) as mail:
    mail.mail("slow@host.example.net"), mail.rcpt("somebody@example.org")
    print("in the middle", flush=True)
    sys.stdin.readline()
    print(mail.data("Subject: slow\\r\\n\\r\\nhello\\r\\n"))
"""
JOINED = "joined by port and time"


def test_mail_flows_without_guardd_and_is_joined_later(desk: Desk) -> None:
    desk.stop_guard()
    try:
        began = time.monotonic()
        done = desk.swaks()
        assert time.monotonic() - began < 20
        [queue_id] = desk.ids_of(done.stdout)
    finally:
        desk.start_guard()
    desk.guard.findings("--pid", str(done.pid))
    is_by(desk.logged(queue_id), done, JOINED)
    text = desk.guard.ctl("who-sent", queue_id, "--log", LOG).stdout
    assert JOINED in text
    # and the smtpd that had a connection to the old guardd asks the new one
    done = desk.swaks()
    is_by(desk.told(*desk.ids_of(done.stdout)), done)


def test_mail_flows_while_guardd_hangs(desk: Desk) -> None:
    """Its answer never comes: timeout, then default_action."""
    assert desk.guard._process
    desk.guard._process.send_signal(signal.SIGSTOP)
    try:
        done = desk.swaks(timeout=60)
    finally:
        desk.guard._process.send_signal(signal.SIGCONT)
    [queue_id] = desk.ids_of(done.stdout)
    assert "problem talking to server" in desk.postfix.log()
    # it reads the question after all, and knows whose connection that was
    is_by(desk.told(queue_id), done)


def test_mail_flows_when_the_socket_refuses(desk: Desk) -> None:
    desk.stop_guard()
    path = desk.lab.path(SOCKET)
    left = socket.socket(socket.AF_UNIX)
    try:
        left.bind(str(path))  # nobody listens
        path.chmod(0o666)
        done = desk.swaks()
        [queue_id] = desk.ids_of(done.stdout)
        assert "Connection refused" in desk.postfix.log()
    finally:
        left.close()
        desk.start_guard()
    desk.guard.findings("--pid", str(done.pid))
    is_by(desk.logged(queue_id), done, JOINED)


def test_guardd_is_killed_between_connect_and_message(desk: Desk) -> None:
    """What the kernel keeps of the connection, the next guardd finds."""
    slow = desk.hold(["/usr/bin/python3", "-c", SLOW], stdin=subprocess.PIPE)
    assert slow.stdout
    assert slow.stdout.readline() == "in the middle\n"
    desk.stop_guard(signal.SIGKILL)
    desk.start_guard()
    out, _ = slow.communicate("go\n", 30)
    row = desk.told(*desk.ids_of(out))
    assert row["origin"]["pid"] == slow.pid
    assert row["how"] == "told by the mail server"


def test_the_queue_directory_is_made_anew(desk: Desk) -> None:
    desk.lab.check(["rm", "-r", "/var/spool/postfix/smtp-guard"])
    wait_until(desk.answers, "the socket once more")
    done = desk.swaks()
    is_by(desk.told(*desk.ids_of(done.stdout)), done)


def test_postfix_has_nothing_against_the_folder(desk: Desk) -> None:
    assert "smtp-guard" not in desk.lab.check(["postfix", "check"])
