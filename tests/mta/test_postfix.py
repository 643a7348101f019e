# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Postfix asks a real guardd: every queue id leads to the client's process."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.lab import wait_until
from tests.lab.lab import HOST4, INTERNET, ROUTER4
from tests.mta.desk import FOLDER, LOG, Desk, is_by
from tests.mta.mailhost import PASSWORD, XCLIENT_PORT

PHP = """\
<?php // As mailer libraries do: no mail(), a socket of its own.
$mail = fsockopen($argv[1], (int)$argv[2]);
$say = function ($line) use ($mail) {
    if ($line !== '') fwrite($mail, "$line\\r\\n");
    do { $answer = fgets($mail); echo $answer; } while ($answer[3] === '-');
};
$say(''); $say('EHLO shop.example');
$say('MAIL FROM:<shop@host.example.net>'); $say('RCPT TO:<somebody@example.org>');
$say('DATA'); $say("Subject: order\\r\\n\\r\\nthanks\\r\\n."); $say('QUIT');
"""
# Everything at once, then it is gone: it never reads an answer.
PIPELINED = """\
import os, socket, sys
mail = socket.create_connection((sys.argv[1], 25))
mail.recv(1000)  # Postfix refuses who talks before it is greeted
print("greeted", flush=True)
sys.stdin.readline()
mail.sendall(
    b"EHLO shop.example\\r\\nMAIL FROM:<fast@host.example.net>\\r\\n"
    b"RCPT TO:<somebody@example.org>\\r\\nDATA\\r\\nSubject: " + sys.argv[2].encode()
    + b"\\r\\n\\r\\nhello\\r\\n.\\r\\nQUIT\\r\\n"
)
{ends}
os._exit(0)
"""
SEVERAL = """\
import smtplib, sys
with smtplib.SMTP("127.0.0.1", 25) as mail:
    for number in range(5):
        print(mail.mail("many@host.example.net"), mail.rcpt("somebody@example.org"))
        print(mail.data(f"Subject: {number}\\r\\n\\r\\nhello\\r\\n"))
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", HOST4])
def test_php_by_a_socket_of_its_own(desk: Desk, host: str) -> None:
    desk.lab.write(f"{FOLDER}/cart.php", PHP)
    name = f"[{host}]" if ":" in host else host
    done = desk.run(["php", "cart.php", name, "25"])
    row = desk.told(*desk.ids_of(done.stdout))
    is_by(row, done)
    assert row["origin"]["args"] == ["php", "cart.php", name, "25"]
    assert row["origin"]["cwd"] == FOLDER
    assert row["origin"]["dst"] == {"addr": host, "port": 25}
    assert (row["sender"], row["recipients"]) == ("shop@host.example.net", 1)
    assert row["client"] == row["origin"]["src"]
    assert row["size"] > 20


@pytest.mark.parametrize(
    "argv",
    [
        ["msmtp", "--host=127.0.0.1", "--port=25", "--from=a@host.example.net", "-d"]
        + ["somebody@example.org"],
        ["curl", "-sv", "smtp://127.0.0.1", "--mail-from", "a@host.example.net"]
        + ["--mail-rcpt", "somebody@example.org", "-T", "-"],
    ],
    ids=["msmtp", "curl"],
)
def test_other_clients(desk: Desk, argv: list[str]) -> None:
    done = desk.run(argv, "Subject: x\r\n\r\nhello\r\n")
    is_by(desk.told(*desk.ids_of(done.stdout + done.stderr)), done)


def test_several_messages_on_one_connection(desk: Desk) -> None:
    done = desk.run(["/usr/bin/python3", "-c", SEVERAL])
    ids = desk.ids_of(done.stdout)
    assert len(set(ids)) == 5
    rows = [desk.told(queue_id) for queue_id in ids]
    for row in rows:
        is_by(row, done)
    assert len({row["origin"]["connection"] for row in rows}) == 1

    [row] = desk.guard.findings("--pid", str(done.pid))
    assert row["queue_ids"] == ids
    shown = desk.guard.ctl("who-connected", "--pid", str(done.pid)).stdout
    assert f"sent {ids[0]} {ids[1]}" in shown


@pytest.mark.parametrize(
    "ends",
    ["mail.close()", "mail.shutdown(socket.SHUT_RDWR)", "pass"],
    ids=["close", "shutdown", "exit"],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_that_is_gone_before_its_mail_is_read(
    desk: Desk, host: str, ends: str
) -> None:
    """smtpd stands still until the row has gone from the map of owners."""
    mark = f"gone-{time.monotonic_ns()}"
    argv = ["/usr/bin/python3", "-c", PIPELINED.format(ends=ends), host, mark]
    client = desk.hold(argv, stdin=subprocess.PIPE)
    assert client.stdin and client.stdout
    assert client.stdout.readline() == "greeted\n"
    with desk.postfix.standing_still():
        client.stdin.write("go\n")
        client.stdin.flush()
        assert client.wait(30) == 0
        wait_until(lambda: has_ended(desk, client.pid), "the end of its connection")
    desk.postfix.delivered(mark, 40)
    row = desk.told(desk.postfix.queue_ids()[-1])
    assert (row["how"], row["sender"]) == (
        "told by the mail server",
        "fast@host.example.net",
    )
    assert row["origin"]["pid"] == client.pid
    assert row["origin"]["unit"] == "apache2.service"


def has_ended(desk: Desk, pid: int) -> bool:
    """Ask the journal whether the connection of a process has ended."""
    [row] = desk.guard.findings("--pid", str(pid))
    return bool(row["outcome"] == "closed")


def test_recipients_that_are_refused_and_deferred_are_not_counted(desk: Desk) -> None:
    to = "a@example.org,b@example.org,nobody@[,c@example.org"
    done = desk.swaks("--to", to)
    row = desk.told(*desk.ids_of(done.stdout))
    is_by(row, done)
    assert row["recipients"] == 3
    # deferred: its next hop is not there; the queue id stays the message's
    done = desk.swaks("--to", "a@example.com")
    is_by(desk.told(*desk.ids_of(done.stdout)), done)


def test_submission_with_a_login(desk: Desk) -> None:
    login = ["--auth", "PLAIN", "-au", "app@host.example.net", "-ap", PASSWORD]
    done = desk.swaks(*login, server="127.0.0.1:587")
    row = desk.told(*desk.ids_of(done.stdout))
    is_by(row, done)
    assert (row["sasl_user"], row["sasl_method"]) == ("app@host.example.net", "PLAIN")
    assert row["origin"]["dst"]["port"] == 587
    text = desk.guard.ctl("who-sent", row["queue_id"]).stdout
    assert "login     app@host.example.net (PLAIN)" in text
    assert f"pid {done.pid} (swaks), user www-data" in text


def test_a_message_id_leads_there_too(desk: Desk) -> None:
    mark = f"<{time.monotonic_ns()}@shop.example>"
    done = desk.swaks("--header", f"Message-Id: {mark}")
    desk.told(*desk.ids_of(done.stdout))
    [row] = desk.who_sent(mark, "--log", LOG)
    is_by(row, done)
    assert not desk.who_sent("<nobody@knows.example>", "--log", LOG)


def test_xclient_names_the_client_that_it_gives(desk: Desk) -> None:
    """The connection is the filter's; the message is not."""
    server = f"127.0.0.1:{XCLIENT_PORT}"
    xclient = "ADDR=203.0.113.7 PORT=4711 DESTADDR=192.0.2.10 DESTPORT=25"
    done = desk.swaks("--xclient", xclient, server=server)
    row = desk.told(*desk.ids_of(done.stdout))
    assert row["origin"] is None
    assert row["client"] == {"addr": "203.0.113.7", "port": 4711}
    assert "no connection of a process of this host" in row["why"]
    # no port, as nginx does it: the proxy's own stays
    done = desk.swaks("--xclient", "ADDR=203.0.113.7 NAME=x.example", server=server)
    row = desk.told(*desk.ids_of(done.stdout))
    assert row["origin"] is None
    assert row["client"]["addr"] == "203.0.113.7"


def test_xclient_of_a_filter_leads_back_to_the_first_client(desk: Desk) -> None:
    first = desk.swaks()
    origin = desk.told(*desk.ids_of(first.stdout))["origin"]
    xclient = f"ADDR=127.0.0.1 PORT={origin['src']['port']}"
    xclient += " DESTADDR=127.0.0.1 DESTPORT=25"
    done = desk.swaks(
        "--xclient", xclient, server=f"127.0.0.1:{XCLIENT_PORT}", user="nobody"
    )
    is_by(desk.told(*desk.ids_of(done.stdout)), first)


def test_haproxy_is_never_the_sender(desk: Desk) -> None:
    desk.postfix.start_haproxy()
    desk.lab.write(f"{FOLDER}/cart.php", PHP)
    for host in ("127.0.0.1", "[::1]"):
        done = desk.run(["php", "cart.php", host, "465"])
        row = desk.told(*desk.ids_of(done.stdout))
        is_by(row, done)
        assert row["origin"]["dst"]["port"] == 465
    remote = desk.swaks(server=f"{HOST4}:465", where=INTERNET)
    row = desk.told(*desk.ids_of(remote.stdout))
    assert row["origin"] is None
    assert row["client"]["addr"] == ROUTER4
    assert "no connection of a process of this host" in row["why"]


def test_a_remote_client_is_no_process_of_this_host(desk: Desk) -> None:
    done = desk.swaks(server=f"{HOST4}:{XCLIENT_PORT}", where=INTERNET)
    row = desk.told(*desk.ids_of(done.stdout))
    assert row["origin"] is None and row["client"]["addr"] == ROUTER4
