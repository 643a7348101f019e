# SPDX-License-Identifier: GPL-2.0-or-later
"""Fifty origins that send at once, what each did, and how an answer differs from it.

The truth is the generator's: each message has a sender of its own, by which Postfix's
log gives the queue id, and its origin was started with a user, unit, folder, program
and script that no other one has together.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kernel.phphost import Asking
from tests.lab import Lab, wait_until
from tests.lab.lab import HOST4, PATIENCE
from tests.mta.mailhost import PASSWORD
from tests.mta.programs import PROGRAMS

MESSAGES = 2000
JOINED = "joined by port and time"
Answers = dict[str, list[dict[str, Any]]]  # rows of who-sent, by queue id
# kind of program, host and port it sends to, origins of it, messages of each
_KINDS = (
    ("smtp each", "127.0.0.1", 25, 6, 50),
    ("smtp several", "::1", 25, 3, 50),
    ("smtp several", "127.0.0.1", 25, 2, 50),
    ("smtp pipelined", "::1", 25, 3, 50),
    ("smtp pipelined", HOST4, 25, 2, 50),
    ("smtp login", "127.0.0.1", 587, 3, 40),
    ("smtp login", "::1", 587, 2, 40),
    ("smtp each", "127.0.0.1", 465, 2, 40),  # through haproxy
    ("smtp several", "::1", 465, 2, 40),
    ("smtp perl", "127.0.0.1", 25, 4, 40),
    ("smtp php", "127.0.0.1", 25, 2, 40),
    ("smtp php", "[::1]", 25, 2, 40),
    ("smtp fpm", "127.0.0.1", 25, 4, 40),
    ("smtp bash", "127.0.0.1", 25, 3, 40),
    ("handed php", "", 0, 1, 30),
    ("handed sh", "", 0, 1, 30),
    ("handed perl", "", 0, 1, 30),
    ("handed popen", "", 0, 1, 30),
    ("handed argv", "", 0, 1, 30),
    ("smtp swaks", "127.0.0.1", 25, 1, 10),
    ("smtp curl", "127.0.0.1", 25, 1, 20),
    ("smtp msmtp", "127.0.0.1", 25, 1, 20),
    ("relayed nullmailer", "127.0.0.1", 25, 1, 20),
    ("relayed exim", "127.0.0.1", 25, 1, 20),
)
_USERS = ("www-data", "nobody", "games", "mail", "list", "uucp", "news", "irc", "man")
FPM_UNIT = "system.slice/php8.2-fpm.service"
_FPM_POOL = """
[{name}]
listen = {folder}/fpm.sock
listen.mode = 0666
user = {user}
group = nogroup
pm = static
pm.max_children = 1
catch_workers_output = yes
"""
# Asks the library what guardctl who-sent asks it, for every queue id of its input. Of
# the log it gets the lines of that queue id: to go through all each time takes minutes.
_ASK = """\
import re, sys
from collections import defaultdict
from pathlib import Path
from guard.cli.who_sent import _row
from guard.mta.maillog import files
from guard.mta.senders import senders
from guard.query import Filter, Journal
from guard.text import json_text
def torn(error): raise error
journal, log = Journal(), defaultdict(list)
for line in files(tuple(map(Path, sys.argv[1:])))():
    for word in set(re.findall(r"\\w+", line.text)):
        log[word].append(line)
for line in sys.stdin:
    name = line.strip()
    for sent in senders(name, journal, lambda: iter(log[name]), Filter(), torn):
        print(json_text(_row(sent)), flush=True)
"""


@dataclass
class Origin:
    """One of those that send, as it was started."""

    number: int
    kind: str
    host: str
    port: int
    count: int
    user: str
    unit: str
    process: subprocess.Popen[str] | None = None  # None: php-fpm runs it
    exe: str = ""  # of what connects, or calls sendmail(1)
    script: str = ""
    said: str = ""  # what it printed

    @property
    def name(self) -> str:
        """Begins the address of each of its senders."""
        return f"o{self.number}"

    @property
    def folder(self) -> str:
        """Where it works."""
        return f"/srv/www/site{self.number}"

    @property
    def pool(self) -> str:
        """Its pool of php-fpm."""
        return f"site{self.number}"


@dataclass
class Truth:
    """One message that the generator sent."""

    origin: Origin
    sender: str
    pid: int | None  # None: of a program that a mail system started
    queue_id: str = field(default="")  # as the client was told; "": it was not


def crowd(relays: bool) -> list[Origin]:
    """Give the origins; relays: nullmailer and Exim are there, else more of perl."""
    made: list[Origin] = []
    for kind, host, port, origins, count in _KINDS:
        if kind.startswith("relayed") and not relays:
            kind = "smtp perl"
        for _ in range(origins):
            number = len(made)
            user = _USERS[number % len(_USERS)]
            unit = f"site{number}.service"
            if kind == "smtp fpm":
                unit = FPM_UNIT.rpartition("/")[2]
            made.append(Origin(number, kind, host, port, count, user, unit))
    assert sum(one.count for one in made) == MESSAGES and len(made) == 50
    return made


def furnish(lab: Lab, origins: list[Origin]) -> None:
    """Write each one's program into its folder, and start php-fpm for some."""
    pools = "[global]\nerror_log = /var/log/fpm.log\ndaemonize = no\n"
    for one in origins:
        file, text, argv = PROGRAMS[one.kind]
        lab.write(f"{one.folder}/{file}", _put_in(text, one))
        lab.write(f"{one.folder}/mail", "Subject: hello\n\nhello\n")
        program, one.script = argv[0] if argv else "", f"{one.folder}/{file}"
        if one.kind == "smtp fpm":
            pools += _FPM_POOL.format(name=one.pool, folder=one.folder, user=one.user)
            program = fpm_program()
        elif file == "run.py" and not one.kind.startswith("handed"):
            program, one.script = argv[2], ""  # another process for each message
            if one.kind == "smtp swaks":
                program, one.script = "/usr/bin/perl", program
        one.exe = os.path.realpath(program)
    lab.write("/etc/php-fpm.conf", pools)
    argv = [fpm_program(), "--nodaemonize", "--fpm-config", "/etc/php-fpm.conf"]
    lab.start(argv, unit=FPM_UNIT, output="/mnt/fpm.out")
    sockets = [f"{one.folder}/fpm.sock" for one in origins if one.kind == "smtp fpm"]
    for path in sockets:
        wait_until(lab.path(path).exists, path)


def fpm_program() -> str:
    """Give the path of php-fpm."""
    return str(sorted(Path("/usr/sbin").glob("php-fpm*"))[0])


def _put_in(text: str, one: Origin) -> str:
    values = {"NAME": one.name, "COUNT": one.count, "HOST": one.host, "PORT": one.port}
    return re.sub(r"\b(NAME|COUNT|HOST|PORT)\b", lambda m: str(values[m[1]]), text)


def start(lab: Lab, origins: list[Origin]) -> None:
    """Start them all; each waits for a line."""
    for one in origins:
        if argv := PROGRAMS[one.kind][2]:
            argv = [_put_in(word, one) for word in argv]
            one.process = lab.start(
                [*argv, PASSWORD] if one.kind == "smtp login" else argv,
                user=one.user,
                unit=f"system.slice/{one.unit}",
                cwd=one.folder,
                stdin=subprocess.PIPE,
            )
    for one in origins:
        if one.process:
            assert one.process.stdout
            assert one.process.stdout.readline() == "ready\n", one


def send(lab: Lab, origins: list[Origin]) -> list[Truth]:
    """Have all of them send at once, to their end, and learn what they sent."""

    def listen(one: Origin) -> None:
        if one.process is None:
            pool = lab.path(f"{one.folder}/fpm.sock")
            one.said = Asking(pool, one.script, f"/{one.name}".encode()).answer()
        else:
            one.said, err = one.process.communicate("go\n", timeout=4 * PATIENCE)
            assert one.process.returncode == 0, (one, one.said[-500:], err[-2000:])

    threads = [threading.Thread(target=listen, args=(one,)) for one in origins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = [truth for one in origins for truth in _said(one)]
    assert len(sent) == sum(one.count for one in origins)
    return sent


def _said(one: Origin) -> Iterator[Truth]:
    found = re.findall(r"^sent (\S+) (\d+) ?(\w*)$", one.said, re.MULTILINE)
    assert len(found) == one.count, (one, one.said[-2000:])
    for sender, pid, queue_id in found:
        relayed = one.kind.startswith("relayed")
        yield Truth(one, sender, None if relayed else int(pid), queue_id)


def queue_ids(log: str, sent: list[Truth]) -> dict[str, Truth]:
    """Give the truth of every queue id in Postfix's log; KeyError: nobody sent it."""
    by_sender = {truth.sender: truth for truth in sent}
    ids = re.findall(r"qmgr\[\d+\]: (\w+): from=<([^>]*)>, size=", log)
    return {queue_id: by_sender[sender] for queue_id, sender in ids}


def unanswered(log: str) -> int:
    """Count the questions that Postfix had no answer to in its two seconds.

    On a machine with ten times as much to do as it can; such a message is joined.
    """
    return log.count("warning: problem talking to server")


def ask(lab: Lab, ids: list[str], *logs: str) -> Answers:
    """Give who-sent's rows for these queue ids; logs are files that it may read."""
    out = lab.check(
        ["python3", "-c", _ASK, *logs], "\n".join(ids), unit="user.slice", timeout=120
    )
    found: Answers = {queue_id: [] for queue_id in ids}
    for line in out.splitlines():
        row = json.loads(line)
        found[row["queue_id"]].append(row)
    return found


def differences(truth: dict[str, Truth], answers: Answers) -> dict[str, str]:
    """Say, of each queue id that does not lead to its origin, what is wrong."""
    wrong = {}
    for queue_id, one in truth.items():
        rows = answers.get(queue_id, [])
        what = _differs(one, rows[0]) if len(rows) == 1 else f"{len(rows)} answers"
        if what:
            wrong[queue_id] = f"{one.origin.kind}, {one.sender}: {what}"
    return wrong


def _differs(one: Truth, row: dict[str, Any]) -> str:
    origin = one.origin
    if origin.kind.startswith("handed"):
        if not row["handed_in"]:
            return f"not handed in: {row['why']}"
        by = row["handed_in"]["caller"]
        want = {"how": "seen at sendmail(1)", "script": origin.script}
        have = {"how": row["how"], "script": f"{by['cwd']}/{by['args'][1]}"}
    else:
        if not (by := row["origin"]):
            return f"no origin: {row['why']}"
        want = {"how": "told by the mail server", "sender": one.sender}
        have = {"how": row["how"], "sender": row["sender"]}
        if row["how"] == JOINED:  # see unanswered()
            del want["how"], want["sender"]
        want["port"], have["port"] = str(origin.port), str(by["dst"]["port"])
        if origin.script:
            want["script"], have["script"] = origin.script, by["script"]
        if origin.kind == "smtp fpm":
            want["pool"], have["pool"] = origin.pool, by["pool"]
        if origin.kind == "smtp login":
            want["login"], have["login"] = "app@host.example.net", row["sasl_user"]
    names = {"pid": one.pid, "exe": origin.exe, "cwd": origin.folder}
    names |= {"uid": pwd.getpwnam(origin.user).pw_uid, "unit": origin.unit}
    if origin.kind.startswith("relayed"):  # by a daemon, or a user of its own
        names = RELAYED[origin.kind] | {"unit": names["unit"]}
        if origin.kind == "relayed nullmailer":
            names["unit"] = "nullmailer.service"
    want |= {name: str(value) for name, value in names.items()}
    have |= {name: str(by[name]) for name in names}
    return ", ".join(
        f"{name} {have[name]} for {want[name]}"
        for name in want
        if have[name] != want[name]
    )


RELAYED: dict[str, dict[str, Any]] = {
    "relayed nullmailer": {"exe": "/usr/lib/nullmailer/smtp", "user": "mail"},
    "relayed exim": {"exe": "/usr/sbin/exim4", "user": "Debian-exim"},
}
