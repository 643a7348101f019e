# SPDX-License-Identifier: GPL-2.0-or-later
"""Without guardd: many messages of many origins at once, each told by the log's port.

With it, see test_volume.py. The truth is what the generator did: every client prints,
for each of its messages, the queue id that smtpd gave it.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from tests.mta.desk import Desk

ORIGINS, MESSAGES = 20, 2  # clients, and mails of each
USERS = ("www-data", "nobody", "games", "mail", "list")
UNITS = ("apache2.service", "php8.2-fpm.service", "cron.service", "user@1.service")
# Waits for the word, sends, and is gone.
CLIENT = """\
import smtplib, sys
host, sender, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
with smtplib.SMTP(host, 25, timeout=120) as mail:
    for number in range(count):
        mail.mail(sender), mail.rcpt("somebody@example.org")
        code, text = mail.data(f"Subject: {number}\\r\\n\\r\\nhello\\r\\n")
        print(code, text.decode(), flush=True)
"""


@dataclass
class Origin:
    """A client that the generator started."""

    process: subprocess.Popen[str]
    user: str
    unit: str
    folder: str
    sender: str
    ids: list[str]


def start(desk: Desk, number: int, copy: int) -> Origin:
    """Start one client of a kind: its user, unit, folder and address family."""
    user, unit = USERS[number % len(USERS)], UNITS[number // len(USERS)]
    folder = f"/srv/site{number}"
    desk.lab.path(folder).mkdir(parents=True, exist_ok=True)
    sender = f"s{number}.{copy}@host.example.net"
    process = desk.lab.start(
        ["/usr/bin/python3", "-c", CLIENT, ("127.0.0.1", "::1")[number % 2], sender]
        + [str(MESSAGES)],
        user=user,
        unit=f"system.slice/{unit}",
        cwd=folder,
        stdin=subprocess.PIPE,
    )
    return Origin(process, user, unit, folder, sender, [])


def send(batch: list[Origin]) -> None:
    """Have all of them send in the same moment, and learn their queue ids."""
    for origin in batch:
        assert origin.process.stdin
        origin.process.stdin.write("go\n")
        origin.process.stdin.flush()
    for origin in batch:
        out, err = origin.process.communicate(timeout=180)
        origin.ids = re.findall(r"queued as (\w+)", out)
        assert len(origin.ids) == MESSAGES, (out, err)


def test_the_log_alone_leads_there_as_well(desk: Desk) -> None:
    """Joined by port and time, for as many clients of the same second."""
    batch = []
    desk.stop_guard()
    try:
        batch = [start(desk, number, 9) for number in range(ORIGINS)]
        send(batch)
    finally:
        desk.start_guard()
    pids = [str(origin.process.pid) for origin in batch]
    for pid in pids:
        desk.guard.findings("--pid", pid)
    for origin in batch:
        for queue_id in origin.ids:
            row = desk.logged(queue_id)
            assert row["how"] == "joined by port and time", row
            assert row["origin"]["pid"] == origin.process.pid
            assert row["origin"]["cwd"] == origin.folder
