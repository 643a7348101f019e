# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the tests ask: mail in by a real client, who-sent's answer out."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.cli.output import mail_row
from guard.finding import Message
from guard.journal import read
from tests.journald import served
from tests.lab import Lab, wait_until
from tests.lab.guarded import Guard
from tests.lab.lab import Done
from tests.mta.mailhost import SOCKET, MailHost

FOLDER = "/srv/www/shop.example"
UNIT = "system.slice/apache2.service"
LOG = "/var/log/mail.log"


@dataclass
class Desk:
    """A mail host under guard."""

    lab: Lab
    postfix: MailHost
    guard: Guard

    def start_guard(self) -> None:
        """Start guardd and wait until Postfix can ask it."""
        self.guard.start()
        wait_until(self.answers, "the policy service")

    def answers(self) -> bool:
        """Tell whether somebody listens where Postfix asks."""
        return served(self.lab.path(SOCKET), kind="stream")

    def stop_guard(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End guardd."""
        self.guard.stop(how)
        wait_until(lambda: not self.answers(), "the end of the policy service")

    def run(self, argv: list[str], text: str | None = None, **options: Any) -> Done:
        """Run a client as the web server would, in a site's folder."""
        options = {"user": "www-data", "unit": UNIT, "cwd": FOLDER, **options}
        self.lab.path(options["cwd"]).mkdir(parents=True, exist_ok=True)
        done = self.lab.run(argv, text, **options)
        assert done.returncode == 0, done
        return done

    def swaks(self, *argv: str, server: str = "127.0.0.1:25", **options: Any) -> Done:
        """Send a mail by swaks(1)."""
        plain = ["--to", "somebody@example.org", "--from", "app@host.example.net"]
        return self.run(["swaks", "--server", server, *plain, *argv], **options)

    def refused(
        self,
        *argv: str,
        server: str = "127.0.0.1:25",
        code: str = "554",
        by: str = "smtp-guard: ",
        **options: Any,
    ) -> Done:
        """Send a mail that is answered with this code, in our words or by others."""
        plain = ["--to", "somebody@example.org", "--from", "app@host.example.net"]
        options = {"user": "www-data", "unit": "user.slice", "cwd": "/srv", **options}
        self.lab.path(options["cwd"]).mkdir(parents=True, exist_ok=True)
        done = self.lab.run(["swaks", "--server", server, *plain, *argv], **options)
        assert done.returncode != 0 and "queued as" not in done.stdout, done
        by = "" if server.endswith(":587") else by
        assert f" {code}" in done.stdout and by in done.stdout, done
        return done

    def mail(self, pid: int) -> list[dict[str, Any]]:
        """Give the findings of messages of a process, refused ones too, in order."""
        done = self.lab.run(
            ["journalctl", "-qo", "json", "--all", f"SMTPGUARD_PID={pid}"]
        )
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        found = [read(one) for one in entries if "SMTPGUARD_QUEUE_ID" in one]
        return [mail_row(one) for one in found if isinstance(one, Message)]

    def mail_of(self, pid: int) -> dict[str, Any]:
        """Wait for the last finding of a message of a process."""
        return wait_until(lambda: self.mail(pid), f"a message of pid {pid}", 30)[-1]

    def ids_of(self, said: str) -> list[str]:
        """Give the queue ids in smtpd's answers to a client."""
        return re.findall(r"queued as (\w+)", said)

    def who_sent(self, *argv: str) -> list[dict[str, Any]]:
        """Ask guardctl who-sent --json; [] for exit status 1."""
        done = self.guard.ctl("who-sent", "--json", *argv)
        assert done.returncode == (0 if done.stdout else 1), done
        return [json.loads(line) for line in done.stdout.splitlines()]

    def told(self, queue_id: str) -> dict[str, Any]:
        """Wait until guardd's journal has this message, and give the answer."""

        def ask() -> list[dict[str, Any]]:
            rows = self.who_sent(queue_id, "--log", "/dev/null")
            assert len(rows) < 2, rows
            return rows

        return wait_until(ask, f"{queue_id} in the journal", 30)[0]

    def logged(self, queue_id: str) -> dict[str, Any]:
        """Give the answer out of Postfix's own log."""
        [row] = self.who_sent(queue_id, "--log", LOG)
        return row

    def hold(self, argv: list[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program and leave it running."""
        return self.lab.start(argv, user="www-data", unit=UNIT, **options)


def is_by(
    row: dict[str, Any], done: Done, how: str = "told by the mail server"
) -> None:
    """Assert that a row of who-sent names the client that ended as `done`."""
    assert row["how"] == how, row
    assert row["origin"]["pid"] == done.pid, row
    assert row["origin"]["user"] == "www-data"
    assert row["origin"]["unit"] == Path(UNIT).name
