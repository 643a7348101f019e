# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits with a real Postfix: what is beyond is deferred, held, refused or told."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import wait_until
from tests.mta.desk import UNIT, Desk
from tests.mta.mailhost import POLICY

CRON = "system.slice/cron.service"
COUNTS = "/run/smtp-guard/smtp-guard.counts"
# By one client, all on one connection: number of recipients of each message.
BURST = """\
import smtplib, sys
for host in sys.argv[1:2]:
    mail = smtplib.SMTP(host, 25)
    for count in sys.argv[2:]:
        mail.mail("app@host.example.net")
        for number in range(int(count)):
            mail.rcpt(f"r{number}@example.org")
        print(*mail.data("Subject: burst\\r\\n\\r\\nhello\\r\\n"), flush=True)
        mail.rset()
    mail.quit()
"""


def policy(limits: str, mode: str = "enforce") -> str:
    """Give the lab's policy with these limits."""
    return f'{POLICY}mode = "{mode}"\n{limits}'


def limit(by: str = "user", action: str = "defer", **most: str | int) -> str:
    """Write one limit, by default of three messages an hour."""
    keys = most or {"messages_per_hour": 3}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    head = f'[[mta.limit]]\nname = "{by}s"\nby = "{by}"\naction = "{action}"'
    return "\n".join([head, *lines, ""])


@pytest.fixture
def counting(desk: Desk) -> Iterator[Desk]:
    """A desk with no counts, and afterwards none again."""
    yield desk
    desk.guard.apply(POLICY)
    forget(desk)


def forget(desk: Desk) -> None:
    """Begin to count from nothing, as after a boot."""
    desk.stop_guard()
    for end in ("", "-wal", "-shm"):
        desk.lab.path(f"{COUNTS}{end}").unlink(missing_ok=True)
    desk.start_guard()


def burst(desk: Desk, *recipients: int, **options: Any) -> list[str]:
    """Send messages to so many recipients each; give the answers."""
    argv = ["/usr/bin/python3", "-c", BURST, "127.0.0.1", *map(str, recipients)]
    return desk.run(argv, **options).stdout.splitlines()


def codes(answers: list[str]) -> list[int]:
    return [int(answer[:3]) for answer in answers]


def counts(desk: Desk) -> dict[tuple[str, str], dict[str, Any]]:
    """Ask guardctl limits --json."""
    done = desk.guard.ctl("limits", "--json")
    assert done.returncode == (0 if done.stdout else 1), done
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {(row["limit"], row["origin"]): row for row in rows}


def notices(desk: Desk, since: int = 0) -> list[dict[str, str]]:
    """Give the findings of limits that were met, but for so many first ones."""
    done = desk.lab.run(
        ["journalctl", "-qo", "json", "--all", "SMTPGUARD_KIND=limited"]
    )
    return [json.loads(line) for line in done.stdout.splitlines()][since:]


@pytest.mark.parametrize(
    ("action", "code", "text"),
    [("defer", 450, "4.7.1"), ("reject", 554, "5.7.1")],
)
def test_what_is_beyond_is_refused(
    counting: Desk, action: str, code: int, text: str
) -> None:
    began = len(notices(counting))
    counting.guard.apply(policy(limit(action=action)))
    answers = burst(counting, 1, 1, 1, 1, 1)
    assert codes(answers) == [250, 250, 250, code, code], answers
    assert "smtp-guard: limit users: " in answers[3] and text in answers[3]
    # the control: another user, and the same one by another door
    assert codes(burst(counting, 1, user="games")) == [250]
    assert codes(burst(counting, 1, unit=CRON)) == [code]
    row = counts(counting)["users", "uid 33"]
    assert (row["action"], row["mode"]) == (action, "enforce")
    assert (row["hour"]["messages"], row["hour"]["refused"]) == (3, 3)
    wait_until(lambda: notices(counting, began), "a finding of the limit", 30)
    [told] = notices(counting, began)  # once, not for each
    assert told["SMTPGUARD_ORIGIN"] == "uid 33"
    assert "limit users of 3 messages an hour" in told["MESSAGE"]
    text = counting.guard.ctl("limits").stdout
    assert "uid 33 (www-data), 3 refused" in text and "3/3" in text


def test_what_is_beyond_is_held(counting: Desk) -> None:
    counting.guard.apply(policy(limit(action="hold")))
    answers = burst(counting, 1, 1, 1, 1)
    assert codes(answers) == [250] * 4
    ids = counting.ids_of("\n".join(answers))
    queue = counting.lab.check(["postqueue", "-p"])
    assert [f"{queue_id}!" in queue for queue_id in ids] == [False] * 3 + [True]
    row = counting.told(ids[3])
    assert (row["answer"], row["limit"]) == ("hold", "users")
    assert counting.told(ids[2])["answer"] == "dunno"
    assert counts(counting)["users", "uid 33"]["hour"]["messages"] == 4
    counting.lab.check(["postsuper", "-d", ids[3]])


@pytest.mark.parametrize("how", ["notify", "observe"])
def test_what_is_beyond_is_told(counting: Desk, how: str) -> None:
    began = len(notices(counting))
    text = limit(action="notify") if how == "notify" else limit(action="reject")
    counting.guard.apply(policy(text, "observe" if how == "observe" else "enforce"))
    answers = burst(counting, *[1] * 6)
    assert codes(answers) == [250] * 6
    assert counts(counting)["users", "uid 33"]["hour"]["messages"] == 6
    wait_until(lambda: notices(counting, began), "a finding of the limit", 30)
    assert len(notices(counting, began)) == 1
    row = counting.told(counting.ids_of(answers[5])[0])
    assert row["answer"] == ("dunno" if how == "notify" else "reject")


def test_recipients_and_minutes(counting: Desk) -> None:
    text = limit(recipients_per_minute=10, messages_per_minute=5)
    counting.guard.apply(policy(text))
    # 11 at once never pass; 4 + 4 do, 3 more do not, 2 do, and then one message
    assert codes(burst(counting, 11, 4, 4, 3, 2)) == [450, 250, 250, 450, 250]
    row = counts(counting)["users", "uid 33"]
    assert row["minute"]["recipients"] == row["hour"]["recipients"] == 10
    assert (row["minute"]["messages"], row["minute"]["refused"]) == (3, 2)


def test_by_unit_by_folder_and_of_some_rules(counting: Desk) -> None:
    folders = limit("folder", below="/srv/www", messages_per_hour=2)
    units = limit("unit", messages_per_hour=4)
    counting.guard.apply(policy(folders + units))
    shop, blog = "/srv/www/shop.example/a/b", "/srv/www/blog.example"
    assert codes(burst(counting, 1, 1, 1, cwd=shop)) == [250, 250, 450]
    assert codes(burst(counting, 1, 1, 1, cwd=blog)) == [250, 250, 450]
    # the unit's four are full now, whatever the folder
    assert codes(burst(counting, 1, cwd="/srv/www/third")) == [450]
    assert codes(burst(counting, 1, cwd="/srv/www/third", unit=CRON)) == [250]
    assert codes(burst(counting, 1, 1, 1, cwd="/srv", unit=CRON)) == [250, 250, 450]
    found = {key: row["hour"]["messages"] for key, row in counts(counting).items()}
    assert found == {
        ("folders", "folder /srv/www/shop.example"): 2,
        ("folders", "folder /srv/www/blog.example"): 2,
        ("folders", "folder /srv/www/third"): 1,
        ("folders", "uid 33, elsewhere"): 2,
        ("units", "unit apache2.service"): 4,
        ("units", "unit cron.service"): 3,
    }
    rule = '[[local.rule]]\nname = "games"\nuser = "games"\nverdict = "allow"\n'
    some = limit(messages_per_hour=1, rule="games")
    counting.guard.apply(policy(some).replace("[mta]\n", f"{rule}\n[mta]\n", 1))
    assert codes(burst(counting, 1, 1, user="games")) == [250, 450]
    assert codes(burst(counting, 1, 1)) == [250, 250]


def test_guardd_is_killed_and_counts_go_on(counting: Desk) -> None:
    counting.guard.apply(policy(limit(messages_per_hour=7)))
    sent = 0
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        assert codes(burst(counting, 1, 1)) == [250, 250]
        sent += 2
        counting.stop_guard(how)
        assert counts(counting)["users", "uid 33"]["hour"]["messages"] == sent
        counting.start_guard()
    assert codes(burst(counting, 1, 1)) == [250, 450]


def test_no_mail_waits_for_the_counts(counting: Desk) -> None:
    """Where nothing can be counted: it is told, and mail flows."""
    counting.stop_guard()
    path = counting.lab.path(COUNTS)
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    counting.guard.write_policy(policy(limit(messages_per_hour=1)))
    counting.start_guard()
    try:
        assert codes(burst(counting, 1, 1)) == [250, 250]
        assert "messages are not counted" in counting.guard.log()
        done = counting.guard.ctl("limits")
        assert done.returncode == 69 and str(COUNTS) in done.stderr
    finally:
        path.rmdir()
    assert codes(burst(counting, 1, 1)) == [250, 450]


def test_a_file_that_is_no_database_is_made_anew(counting: Desk) -> None:
    counting.stop_guard()
    counting.lab.path(COUNTS).parent.mkdir(exist_ok=True)
    counting.lab.path(COUNTS).write_bytes(b"not a database, but long enough" * 99)
    counting.guard.write_policy(policy(limit(messages_per_hour=2)))
    counting.start_guard()
    assert codes(burst(counting, 1, 1, 1))[:2] == [250, 250]
    assert codes(burst(counting, 1, unit=UNIT)) == [450]
