# SPDX-License-Identifier: GPL-2.0-or-later
"""Sites that share a user: `folder` is where PHP's script is, wherever it goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guard import abi
from guard.event import Event, unpack_event
from guard.mta.admission import _origin, _works_in
from guard.policy.model import Limit, Rule
from tests.mta.desk import FOLDER, Desk
from tests.mta.mailhost import POLICY
from tests.mta.phpsites import SITES, Sites
from tests.mta.test_limits import codes, counts, forget, limit
from tests.mta.test_limits import policy as limiting

RULE = f"""
[[local.rule]]
name = "shop"
user = "www-data"
folder = "{FOLDER}"
verdict = "allow"
"""
STRICT = POLICY.replace(
    "[mta]\n", f'{RULE}\n[mta]\nrelay_mynetworks = false\nmode = "enforce"\n'
)
# What it says to the mail server, which is the same for all; prints the last answer.
TALK = """\
$mail = stream_socket_client('tcp://127.0.0.1:25');
foreach (['', 'EHLO x', 'MAIL FROM:<a@host.example.net>', 'RCPT TO:<b@example.org>',
          'DATA', "Subject: x\\r\\n\\r\\nx\\r\\n."] as $line) {
    if ($line !== '') fwrite($mail, "$line\\r\\n");
    do { $answer = fgets($mail); } while ($answer[3] === '-');
}
echo $answer;
"""
CHILD = "swaks --server 127.0.0.1:25 --to b@example.org --from a@host.example.net"
SCRIPTS = {
    "shop.example/mail.php": TALK,
    "shop.example/cart/mail.php": TALK,
    "shop.example/leaves.php": f"chdir('/srv'); {TALK}",
    "evil.example/mail.php": TALK,
    "evil.example/comes.php": f"chdir('{FOLDER}'); {TALK}",
    "evil.example/child.php": f"passthru('cd {FOLDER} && exec {CHILD}');",
    "evil.example/prepended.php": f"{TALK} exit;",
    "../elsewhere/comes.php": f"chdir('{FOLDER}'); {TALK}",
}


@pytest.fixture(scope="module")
def sites(desk: Desk) -> Sites:
    made = Sites(desk)
    for script, text in SCRIPTS.items():
        made.write(script, f"<?php {text}\n")
    return made


@pytest.fixture
def strict(sites: Sites, desk: Desk) -> Iterator[Sites]:
    """Only who the rule names need not log in."""
    desk.guard.apply(STRICT)
    yield sites
    desk.guard.apply(POLICY)


@pytest.mark.parametrize("script", ["mail.php", "cart/mail.php"])
def test_a_site_s_own_script_is_let_in(strict: Sites, script: str) -> None:
    assert "queued as" in strict.ask(f"shop.example/{script}")


@pytest.mark.parametrize(
    "script",
    [
        "evil.example/mail.php",
        "evil.example/comes.php",
        "evil.example/child.php",
        # it is what it says that it is, and works elsewhere: both are asked for
        "shop.example/leaves.php",
        "/srv/elsewhere/comes.php",
    ],
)
def test_another_s_script_is_not(strict: Sites, script: str) -> None:
    said = strict.ask(script)
    assert "554 5.7.1" in said and "is to log in" in said


def test_who_goes_there_without_php_is_let_in_as_ever(strict: Sites) -> None:
    """The control: the user may enter the folder, and that is all that was asked."""
    done = strict.desk.swaks(cwd=FOLDER)
    assert strict.desk.ids_of(done.stdout)


def test_to_claim_a_script_is_not_enough(strict: Sites) -> None:
    """PHP itself says that it is at the shop's script while it runs another."""
    argv = ["php", "-d", f"auto_prepend_file={SITES}/evil.example/prepended.php"]
    argv.append(f"{FOLDER}/mail.php")
    options = {"user": "www-data", "unit": "user.slice"}
    done = strict.lab.run(argv, cwd="/srv", **options)
    assert "554 5.7.1" in done.stdout, done
    row = strict.desk.mail_of(done.pid)["origin"]
    assert (row["script"], row["script_from"]) == (f"{FOLDER}/mail.php", "request")
    done = strict.lab.run(argv, cwd=FOLDER, **options)
    assert "queued as" in done.stdout, done


def test_a_limit_counts_by_the_script(sites: Sites, desk: Desk) -> None:
    folders = limit("folder", below=SITES, messages_per_hour=2)
    desk.guard.apply(limiting(folders))
    try:
        assert "queued as" in sites.ask("evil.example/child.php")
        asked = ["evil.example/comes.php"] * 3 + ["shop.example/leaves.php"] * 3
        asked += ["/srv/elsewhere/comes.php"] * 2
        answers = [sites.ask(script) for script in asked]
        assert codes(answers) == [250, 450, 450, 250, 250, 450, 250, 250]
        # from a command line, as cron would
        argv = ["php", f"{SITES}/blog.example/cron.php"]
        sites.write("blog.example/cron.php", f"<?php {TALK}")
        assert "queued as" in desk.run(argv, cwd="/srv").stdout
        found = {origin: row["hour"] for (_, origin), row in counts(desk).items()}
        assert {origin: hour["messages"] for origin, hour in found.items()} == {
            f"folder {SITES}/evil.example": 2,
            f"folder {SITES}/shop.example": 2,
            f"folder {SITES}/blog.example": 1,
            "uid 33, elsewhere": 2,
        }
        assert found[f"folder {SITES}/evil.example"]["refused"] == 2
    finally:
        desk.guard.apply(POLICY)
        forget(desk)


def event_of(script: str, flags: int) -> Event:
    """Give the event of a process that works in the shop's folder."""
    cwd = b"".join(part.encode() + b"\0" for part in FOLDER.split("/")[:0:-1])
    request = script.encode("utf-8", "surrogateescape") + b"\0/\0GET\0"
    raw = abi.RawEvent(abi=abi.ABI, kind=abi.EventKind.CONNECT, flags=flags, uid=33)
    raw.cwd_len, raw.request_len = len(cwd), len(request)
    head = bytes(raw)[: abi.RawEvent.text.offset]
    return unpack_event(head + cwd + request)


CUT = f"{FOLDER}/{'x' * 999}"[: abi.SCRIPT_LEN - 1]


@pytest.mark.parametrize(
    ("script", "flags", "is_in", "counted"),
    [
        (f"{FOLDER}/x.php", 0, True, "shop.example"),
        (f"/{FOLDER}//./cart/x.php", 0, True, "shop.example"),
        (f"{FOLDER}.evil/x.php", 0, False, "shop.example.evil"),
        (f"{SITES}/evil/x.php", 0, False, "evil"),
        # that this is a script says nobody: PHP's `-r`, or none at all
        ("Standard input code", 0, True, "shop.example"),
        ("-", 0, True, "shop.example"),
        # below the folder by its letters alone, or cut where that may begin
        (f"{FOLDER}/../evil/x.php", 0, False, ""),
        (f"{FOLDER}/link/../x.php", 0, False, ""),
        (CUT, 0, False, ""),
        (CUT[:-1], 0, True, "shop.example"),
        (f"{FOLDER}/\udcff\n/x.php", 0, True, "shop.example"),
        (f"{SITES}/\x1b\n/x.php", 0, False, "\x1b\n"),
        # mounts of a user's own
        (f"{FOLDER}/x.php", abi.Flag.FOREIGN_USERNS, False, ""),
        (f"{FOLDER}/x.php", abi.Flag.FOREIGN_MOUNTS, False, ""),
        # of the folder that it works in, not of the script
        (f"{FOLDER}/x.php", abi.Flag.CWD_CUT, False, "shop.example"),
        # its URI, perhaps
        (f"{FOLDER}/x.php", abi.Flag.REQUEST_CUT, True, "shop.example"),
        (f"{FOLDER}/x.php", abi.Flag.PARENT_REQUEST, True, "shop.example"),
    ],
)
def test_what_a_process_says(
    script: str, flags: int, is_in: bool, counted: str
) -> None:
    local, allow = abi.Direction.LOCAL, abi.Verdict.ALLOW
    rule = Rule(0, "shop", local, allow, folders=(Path(FOLDER),))
    by = Limit("sites", "folder", "defer", (1, None), (None, None), Path(SITES))
    event = event_of(script, flags)
    assert _works_in(event, rule) == is_in
    where = f"folder {SITES}/{counted}" if counted else "uid 33, elsewhere"
    assert _origin(by, event) == where
