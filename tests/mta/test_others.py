# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Exim, whose log has the port; nullmailer, which forwards by its own SMTP."""

from __future__ import annotations

import json
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, wait_until
from tests.lab.guarded import Guard, start_journald
from tests.mta.desk import FOLDER, UNIT
from tests.mta.mailhost import POLICY
from tests.mta.others import (
    EXIM_LOG,
    NULLMAILER_UNIT,
    start_exim,
    start_nullmailer,
    unpack,
)

WWW_DATA = pwd.getpwnam("www-data").pw_uid
CLIENTS = 20
CLIENT = """\
import smtplib, sys
print("ready", flush=True); sys.stdin.readline()
with smtplib.SMTP(sys.argv[1], 25, timeout=120) as mail:
    mail.ehlo(), mail.mail("app@host.example.net"), mail.rcpt("somebody@example.org")
    print(mail.data(f"Message-Id: <{sys.argv[2]}>\\r\\n\\r\\nhello\\r\\n"))
"""


@pytest.fixture(scope="module")
def guard(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """A host with Exim; no Postfix is there."""
    cache = tmp_path_factory.mktemp("packages")
    unpack(lab, cache, "exim4-daemon-light", "exim4-base", "nullmailer")
    start_journald(lab)
    start_exim(lab)
    lab.path(FOLDER).mkdir(parents=True)
    guard = Guard(lab, POLICY.partition("[mta]")[0])
    guard.start()
    yield guard
    guard.stop()


def who_sent(guard: Guard, what: str) -> dict[str, Any]:
    done = guard.ctl("who-sent", "--json", what, "--log", EXIM_LOG)
    assert done.returncode == 0, done
    [row] = map(json.loads, done.stdout.splitlines())
    return dict(row)


def log(guard: Guard) -> str:
    return guard.lab.path(EXIM_LOG).read_text()


def test_each_of_many_clients_of_one_second(guard: Guard) -> None:
    clients: dict[str, subprocess.Popen[str]] = {}
    for number in range(CLIENTS):
        name = f"{number}.exim@shop.example"
        server = ("127.0.0.1", "::1")[number % 2]
        clients[name] = guard.lab.start(
            ["/usr/bin/python3", "-c", CLIENT, server, name],
            user="www-data",
            unit=UNIT,
            cwd=FOLDER,
            stdin=subprocess.PIPE,
        )
    for client in clients.values():
        assert client.stdout and client.stdout.readline() == "ready\n"
    for client in clients.values():
        assert client.stdin
        client.stdin.write("go\n")
        client.stdin.flush()
    for name, client in clients.items():
        out, err = client.communicate(timeout=120)
        [number] = re.findall(r"OK id=([0-9A-Za-z-]+)", out) or [err]
        guard.findings("--pid", str(client.pid))
        for what in (number, f"<{name}>"):
            row = who_sent(guard, what)
            assert row["queue_id"] == number
            assert row["how"] == "joined by port and time", row
            assert row["origin"]["pid"] == client.pid
            assert row["origin"]["cwd"] == FOLDER


def test_without_the_port_it_says_what_to_set(guard: Guard) -> None:
    """The control of the above is the log_selector."""
    plain = re.sub(r"(\[[0-9.:]+\]):[0-9]+ ", r"\1 ", log(guard))
    guard.lab.write("/mnt/without", plain)
    number = re.findall(r"(\S+) <= app@", plain)[0]
    done = guard.ctl("who-sent", number, "--log", "/mnt/without")
    assert "log_selector = +incoming_port" in done.stdout, done


def test_by_its_sendmail_the_user_is_told(guard: Guard) -> None:
    done = guard.lab.run(
        ["exim4", "-i", "local@example.org"],
        "Subject: hello\n\nhello\n",
        user="www-data",
        unit=UNIT,
    )
    assert done.returncode == 0, done
    [number] = wait_until(
        lambda: re.findall(r"(\S+) <= \S+ U=www-data P=local", log(guard)), "its line"
    )
    row = who_sent(guard, number)
    assert (row["how"], row["uid"]) == (None, WWW_DATA)
    assert row["why"] == f"handed in by sendmail(1), by user ID {WWW_DATA}"


def test_nullmailer_is_the_sender_of_what_it_forwards(guard: Guard, lab: Lab) -> None:
    """It keeps mail in a queue of its own: the connection is its daemon's."""
    start_nullmailer(lab)
    done = lab.run(
        ["/usr/bin/nullmailer-inject", "somebody@example.org"],
        "Subject: hello\nMessage-Id: <by@nullmailer.example>\n\nhello\n",
        user="www-data",
        unit=UNIT,
    )
    assert done.returncode == 0, done
    wait_until(lambda: "by@nullmailer" in log(guard), "the message at Exim")
    pattern = r"(\S+) <= .*by@nullmailer"
    [number] = re.findall(pattern, log(guard))
    guard.findings("--exe", "/usr/lib/nullmailer/smtp")
    origin = who_sent(guard, number)["origin"]
    assert origin["exe"] == "/usr/lib/nullmailer/smtp", origin
    assert origin["unit"] == Path(NULLMAILER_UNIT).name
    assert origin["uid"] == pwd.getpwnam("mail").pw_uid
