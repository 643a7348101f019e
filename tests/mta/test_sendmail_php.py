# SPDX-License-Identifier: GPL-2.0-or-later
"""Mail by PHP's mail(): the queue id leads to the script, and to its request."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.mta.desk import Desk
from tests.mta.phpsites import SITES, Sites
from tests.mta.test_sendmail import answer, await_following

TO = "somebody@example.org"
MAIL = f"mail('{TO}', 'hello', 'hello', '', '-f' . $_GET['q']);"
COMMAND = f"/usr/sbin/sendmail -i -f \" . $_GET['q'] . \" {TO}"
SCRIPTS = {
    "shop.example/mail.php": MAIL,
    "blog.example/mail.php": MAIL,
    # not by mail(): a shell that does more is what called
    "shop.example/shell.php": f'passthru("date >/dev/null; echo | {COMMAND}; true");',
    # by a program of its own
    "shop.example/python.php": """\
putenv("sender=" . $_GET['q']); passthru('python3 ../mail.py 2>&1');""",
    # its request is over, and the worker at the next one, when the message comes
    # (the shell stays until the other has begun: one without parents is nobody's)
    "shop.example/later.php": """\
putenv("sender=" . $_GET['q']); exec('sh ../later.sh >/dev/null 2>&1 &
while ! test -e /srv/www/begun; do sleep 0.1; done');""",
    "evil.example/stay.php": "while (!file_exists('/srv/www/gone')) usleep(10000);",
}
PYTHON = f"""\
import os, subprocess
subprocess.run(["/usr/sbin/sendmail", "-i", "-f", os.environ["sender"], "{TO}"],
               input=b"Subject: hello\\n\\nhello\\n", check=True)
"""
LATER = f"""\
touch /srv/www/begun
while ! test -e /srv/www/go; do sleep 0.1; done
echo | /usr/sbin/sendmail -i -f $sender {TO}
true
"""


@pytest.fixture(scope="module")
def sites(desk: Desk) -> Sites:
    made = Sites(desk)
    for script, text in SCRIPTS.items():
        made.write(script, f"<?php {text}\n")
    made.write("mail.py", PYTHON)
    made.write("later.sh", LATER)
    made.lab.check(["chmod", "1777", SITES])
    await_following(desk)
    return made


def handed_in(sites: Sites, sender: str) -> dict[str, Any]:
    """Wait for the answer to the queue id of a sender."""
    row = answer(sites.desk, sender)
    assert row["how"] == "seen at sendmail(1)", row
    found: dict[str, Any] = row["handed_in"]
    return found


@pytest.mark.parametrize(
    ("script", "comm"),
    [("mail", "php-fpm"), ("shell", "sh"), ("python", "python3")],
)
def test_a_request_of_php_fpm(sites: Sites, script: str, comm: str) -> None:
    sender = f"{script}@host.example.net"
    uri = f"/order/{script}".encode()
    sites.ask(f"shop.example/{script}.php", uri, "POST", query=sender)
    found = handed_in(sites, sender)
    assert found["script"] == f"{SITES}/shop.example/{script}.php"
    assert (found["script_from"], found["incomplete"]) == ("request", [])
    assert (found["request_method"], found["request_uri"]) == ("POST", uri.decode())
    assert found["caller"]["comm"].startswith(comm), found
    assert found["pool"] == ("shop" if script == "mail" else None)
    text = sites.desk.guard.ctl("who-sent", found_id(sites, sender)).stdout
    assert f"script    {SITES}/shop.example/{script}.php\n" in text
    assert f"request   POST {uri.decode()}\n" in text


def found_id(sites: Sites, sender: str) -> str:
    [number] = set(
        re.findall(rf"(\w+): uid=\d+ from=<{sender}>", sites.desk.postfix.log())
    )
    return str(number)


def test_requests_of_one_worker_are_told_apart(sites: Sites) -> None:
    """Postfix stands still: all lie in maildrop when the worker is long elsewhere."""
    asked = [(site, n) for n in range(4) for site in ("shop", "blog")]
    with sites.desk.postfix.standing_still():
        for site, number in asked:
            sender = f"{site}{number}@host.example.net"
            uri = f"/{site}/{number}".encode()
            sites.ask(f"{site}.example/mail.php", uri, query=sender)
    for site, number in asked:
        found = handed_in(sites, f"{site}{number}@host.example.net")
        assert found["script"] == f"{SITES}/{site}.example/mail.php"
        assert found["request_uri"] == f"/{site}/{number}"


def test_a_request_that_is_over_when_the_message_comes(sites: Sites) -> None:
    """It is known by what it started, and the next one is not taken for it."""
    sender = "later@host.example.net"
    sites.ask("shop.example/later.php", b"/order", query=sender)
    stays = sites.asking("evil.example/stay.php", b"/innocent")
    try:
        sites.lab.path("/srv/www/go").touch()
        found = handed_in(sites, sender)
    finally:
        sites.lab.path("/srv/www/gone").touch()
        stays.answer()
    assert found["script"] == f"{SITES}/shop.example/later.php", found
    assert found["request_uri"] == "/order"


@pytest.mark.parametrize("argv", [["php", "mail.php"], ["php", "blog.example/x.php"]])
def test_a_command_line(sites: Sites, argv: list[str]) -> None:
    """PHP's own, from the folder that it is called in, with no request of a web's."""
    sender = f"cli{len(argv[1])}@host.example.net"
    text = f"<?php mail('{TO}', 'hello', 'hello', '', '-f{sender}');"
    sites.write(argv[1], text)
    sites.desk.run(argv, cwd=SITES)
    found = handed_in(sites, sender)
    assert (found["script"], found["script_from"]) == (f"{SITES}/{argv[1]}", "request")
    assert (found["request_method"], found["request_uri"]) == (None, None)
    assert found["caller"]["args"] == argv


@pytest.mark.parametrize(
    ("program", "name", "text"),
    [
        ("python3", "x.py", "import os; os.system({command!r})"),
        ("perl", "x.pl", "system({command!r}) == 0 or die"),
        ("sh", "x.sh", "{command}\ntrue"),
    ],
)
def test_a_script_of_another_language(
    sites: Sites, program: str, name: str, text: str
) -> None:
    """By its argument, from the folder that it was started in."""
    sender = f"{program}@host.example.net"
    command = f"echo | /usr/sbin/sendmail -i -f {sender} {TO}; true"
    if program != "sh":
        command = f"/usr/sbin/sendmail -i -f {sender} {TO} </dev/null"
    sites.write(f"tools/{name}", text.format(command=command))
    sites.desk.run([program, f"../tools/{name}"], cwd=f"{SITES}/shop.example")
    found = handed_in(sites, sender)
    assert (found["script"], found["script_from"]) == (f"{SITES}/tools/{name}", "args")
    assert found["request_uri"] is None


HOSTILE = [
    b"/\x1b[2J\r\n0::/\nSMTPGUARD_UID=0",
    b"/\xff\xfe\xe2\x80\xae\x7f",
    b"/" + b"\n" * 4096,
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_names(sites: Sites, number: int) -> None:
    """Nothing of a script's name, its folder, URI or method steers a terminal."""
    folder = "evil.example/\x1b]0;x\x07\n\udcff\u202e" + "d" * 200
    sender, uri = f"hostile{number}@host.example.net", HOSTILE[number]
    sites.write(f"{folder}/mail.php", f"<?php {MAIL}")
    sites.ask(f"{folder}/mail.php", uri, "G\x1b\n", query=sender)
    found = handed_in(sites, sender)
    shown = f"{SITES}/{folder}/mail.php".replace("\udcff", "\\xff")
    assert found["script"] == shown
    assert found["request_method"] == "G\x1b\n"
    told = uri[:191].decode("utf-8", "backslashreplace")
    assert found["request_uri"] == told
    assert found["incomplete"] == (["request-cut"] if len(uri) > 191 else [])
    queue_id = found_id(sites, sender)
    for options in ((), ("--json",)):
        out = sites.desk.guard.ctl("who-sent", queue_id, *options).stdout
        assert all(line.isprintable() for line in out.split("\n")), options
        assert "\x1b" not in out and "\u202e" not in out
    said = sites.desk.guard.ctl("who-sent", queue_id).stdout
    assert "\\x1b]0;x\\x07\\x0a\\xff\\u202e" in said and "G\\x1b\\x0a" in said
    argv = ["journalctl", "-qo", "json", "--all", f"SMTPGUARD_QUEUE_ID={queue_id}"]
    entry = json.loads(sites.lab.check(argv))
    assert entry["SMTPGUARD_UID"] == "33" and entry["MESSAGE"].isprintable()


def test_without_the_probe_the_folder_and_the_pool(sites: Sites) -> None:
    """What called has a folder: the one that PHP went into for the request."""
    sender = "unprobed@host.example.net"
    untold = Sites(sites.desk, told=False)
    untold.ask("shop.example/mail.php", b"/order", query=sender)
    found = handed_in(sites, sender)
    assert (found["script"], found["script_from"]) == (f"{SITES}/shop.example/", "cwd")
    assert (found["pool"], found["request_uri"]) == ("shop", None)


def test_nothing_is_made_up(sites: Sites) -> None:
    sender = "plain@host.example.net"
    argv = ["/usr/sbin/sendmail", "-i", "-f", sender, TO]
    sites.desk.run(argv, "Subject: hello\n\nhello\n")
    found = handed_in(sites, sender)
    assert (found["script"], found["script_from"]) == (None, None)
