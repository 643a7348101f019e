# SPDX-License-Identifier: GPL-2.0-or-later
"""A host whose mail log is in journald alone: no rsyslog, no maillog_file.

A real Postfix writes to /dev/log, which the lab's real journald serves, as on a Debian
without rsyslog; who-sent is asked without --log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab import Lab, wait_until
from tests.lab.guarded import Guard, start_journald
from tests.lab.postfix import LOG
from tests.mta.desk import Desk, is_by
from tests.mta.mailhost import POLICY, MailHost

# What systemd makes of /dev: journald's socket there; the machine's own has none.
DEV = """\
set -eu
mkdir -p /mnt/dev && mount -t tmpfs -o mode=755 dev /mnt/dev
for node in null zero full random urandom tty; do
    touch /mnt/dev/$node && mount --bind /dev/$node /mnt/dev/$node
done
ln -s /proc/self/fd /mnt/dev/fd
mkdir /mnt/dev/shm /mnt/dev/pts
ln -s /run/systemd/journal/dev-log /mnt/dev/log
mount --move /mnt/dev /dev
"""
JOINED = "joined by port and time"


@pytest.fixture(scope="module")
def desk(lab: Lab) -> Iterator[Desk]:
    lab.check(["sh", "-c", DEV])
    start_journald(lab)
    postfix = MailHost(lab)
    main = lab.path("/etc/postfix/main.cf")
    main.write_text(main.read_text().replace(f"maillog_file = {LOG}\n", ""))
    lab.path(LOG).unlink()
    postfix.start()
    desk = Desk(lab, postfix, Guard(lab, POLICY))
    desk.start_guard()
    yield desk
    desk.guard.stop()


def log(desk: Desk) -> list[str]:
    """Give what journald has of Postfix, once it has a file of it."""
    argv = ["journalctl", "-o", "json", "-a", "--identifier=postfix/pickup"]
    argv += ["--identifier=postfix/cleanup"]
    rows = [json.loads(line) for line in desk.lab.check(argv).splitlines()]
    return [row["MESSAGE"] for row in rows]


def test_postfix_writes_to_journald_and_to_no_file(desk: Desk) -> None:
    assert not desk.lab.path(LOG).exists()
    desk.swaks()
    wait_until(lambda: any("message-id=" in line for line in log(desk)), "a line")
    assert not desk.lab.path(LOG).exists()


def test_who_sent_what_guardd_was_not_told(desk: Desk) -> None:
    desk.stop_guard()
    try:
        done = desk.swaks("--header", "Message-Id: <only.in@the.journal>")
        [number] = desk.ids_of(done.stdout)
        sent = desk.run(
            ["/usr/sbin/sendmail", "-i", "-f", "local@host.example.net"]
            + ["somebody@example.org"],
            "Subject: hello\n\nhello\n",
        )
        pattern = r"(\w+): uid=\d+ from=<local@host.example.net>"
        handed = wait_until(
            lambda: re.findall(pattern, "\n".join(log(desk))), "pickup's line"
        )[0]
        forge(desk, sent.pid)
    finally:
        desk.start_guard()
    desk.guard.findings("--pid", str(done.pid))
    [row] = desk.who_sent(number)
    is_by(row, done, JOINED)
    [row] = desk.who_sent("<only.in@the.journal>")
    assert row["queue_id"] == number
    is_by(row, done, JOINED)
    [row] = desk.who_sent(handed)
    assert row["how"] is None and "handed in by sendmail(1)" in row["why"]
    # what any user wrote, with Postfix's name on it, tells nothing
    assert desk.who_sent("4FORGEDx1zz") == []
    assert any("4FORGEDx1zz" in line for line in log(desk))


def forge(desk: Desk, uid: int) -> None:
    """Have another user say what pickup says."""
    text = f"4FORGEDx1zz: uid={uid} from=<local@host.example.net>"
    desk.run(["logger", "--tag", "postfix/pickup", text], user="nobody")
    wait_until(lambda: any("4FORGED" in line for line in log(desk)), "the forged line")


def test_who_sent_what_guardd_was_told_needs_no_log(desk: Desk) -> None:
    done = desk.swaks()
    is_by(desk.told(*desk.ids_of(done.stdout)), done)
