# SPDX-License-Identifier: GPL-2.0-or-later
"""Mail by sendmail(1): each queue id leads to the process that called it.

The truth is what the generator did: each caller prints its own PID, and each of its
messages has a sender of its own, by which Postfix's log gives the queue id.
"""

from __future__ import annotations

import itertools
import json
import pwd
import re
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import Lab, wait_until
from tests.lab.lab import PATIENCE
from tests.mta.desk import FOLDER, LOG, Desk

EACH = 10
WWW_DATA = pwd.getpwnam("www-data").pw_uid
# Each waits for a line, so that all of a round send at once, and prints the PID of
# what calls sendmail(1). $1 or its like is the sender.
ORIGINS = {
    "mail.php": """\
<?php echo "ready\\n"; fgets(STDIN); echo getmypid(), "\\n";
mail("somebody@example.org", "hello", "hello", "", "-f" . $argv[1]);
""",
    "here.sh": """\
echo ready; read word; echo $$
printf 'Subject: hello\\n\\nhello\\n' >/tmp/mail.$$
/usr/sbin/sendmail -i -f "$1" somebody@example.org </tmp/mail.$$
rm /tmp/mail.$$
""",
    "argv.py": """\
import os, subprocess, sys
print("ready", flush=True); sys.stdin.readline(); print(os.getpid(), flush=True)
subprocess.run(["/usr/sbin/sendmail", "-i", "-f", sys.argv[1], "somebody@example.org"],
               input=b"Subject: hello\\n\\nhello\\n", check=True)
""",
    "popen.py": """\
import os, sys
print("ready", flush=True); sys.stdin.readline(); print(os.getpid(), flush=True)
pipe = os.popen(f"/usr/sbin/sendmail -i -f '{sys.argv[1]}' somebody@example.org", "w")
pipe.write("Subject: hello\\n\\nhello\\n"); pipe.close()
""",
    "open.pl": """\
$| = 1; print "ready\\n"; <STDIN>; print "$$\\n";
open(my $mail, "|-", "/usr/sbin/sendmail", "-i", "-f", $ARGV[0],
     "somebody\\@example.org") or die;
print $mail "Subject: hello\\n\\nhello\\n"; close($mail) or die;
""",
    "nested.sh": """\
echo ready; read word; sh ./inner.sh "$1"; true
""",
    "talks.py": """\
import os, subprocess, sys
print("ready", flush=True); sys.stdin.readline(); print(os.getpid(), flush=True)
talk = f"EHLO x\\nMAIL FROM:<{sys.argv[1]}>\\nRCPT TO:<somebody@example.org>\\nDATA\\n"
talk += "Subject: hello\\n\\nhello\\n.\\nQUIT\\n"
subprocess.run(["/usr/sbin/sendmail", "-bs"], input=talk.encode(),
               stdout=subprocess.DEVNULL, check=True)
""",
    "straight.py": """\
import os, sys
print("ready", flush=True); sys.stdin.readline(); print(os.getppid(), flush=True)
read, write = os.pipe(); os.write(write, b"Subject: hello\\n\\nhello\\n")
os.close(write); os.dup2(read, 0)
os.execv("/usr/sbin/sendmail",
         ["sendmail", "-i", "-f", sys.argv[1], "somebody@example.org"])
""",
    # Who called is gone before sendmail is there; it has his folder, and his unit.
    "leaves.py": """\
import os, sys, time
print("ready", flush=True); sys.stdin.readline()
parent = os.getpid()
if child := os.fork():
    print(child, flush=True); sys.exit()
while os.getppid() == parent: time.sleep(0.001)
read, write = os.pipe(); os.write(write, b"Subject: hello\\n\\nhello\\n")
os.close(write); os.dup2(read, 0)
os.execv("/usr/sbin/sendmail",
         ["sendmail", "-i", "-f", sys.argv[1], "somebody@example.org"])
""",
}
INNER = """\
echo $$
printf 'Subject: hello\\n\\nhello\\n' >/tmp/mail.$$
/usr/sbin/sendmail -i -f "$1" somebody@example.org </tmp/mail.$$
rm /tmp/mail.$$
"""
# As cron does: a daemon that was there before guardd, and a child without exec.
CRON = """\
import os, sys
print("ready", flush=True)
for line in sys.stdin:
    read, write = os.pipe()
    os.write(write, b"Subject: hello\\n\\nhello\\n"); os.close(write)
    if not (child := os.fork()):
        os.dup2(read, 0)
        os.execv("/usr/sbin/sendmail",
                 ["sendmail", "-i", "-f", line.strip(), "somebody@example.org"])
    os.close(read); os.waitpid(child, 0)
    print(os.getpid(), flush=True)
"""
PROGRAMS = {".php": "/usr/bin/php", ".sh": "/bin/sh", ".py": "/usr/bin/python3"}
PROGRAMS[".pl"] = "/usr/bin/perl"


@dataclass
class Sent:
    """A message that the generator sent, and by which process."""

    sender: str
    pid: int
    script: str


@pytest.fixture(scope="module")
def cron(lab: Lab) -> subprocess.Popen[str]:
    """Start the daemon; the desk comes after it."""
    process = lab.start(
        ["/usr/bin/python3", "-c", CRON],
        user="www-data",
        unit="system.slice/cron.service",
        stdin=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(scope="module")
def post(lab: Lab, cron: subprocess.Popen[str], desk: Desk) -> Desk:
    """Give the desk when sendmail(1) is followed."""
    lab.path(FOLDER).mkdir(parents=True, exist_ok=True)
    for name, text in {**ORIGINS, "inner.sh": INNER}.items():
        lab.write(f"{FOLDER}/{name}", text)
    lab.check(["chmod", "1777", "/tmp"])
    await_following(desk)
    return desk


def await_following(desk: Desk) -> None:
    def followed() -> bool:
        done = desk.guard.ctl("status", "--json")
        return bool(
            (json.loads(done.stdout)["mail"] or {}).get("sendmail") == "followed"
        )

    wait_until(followed, "sendmail(1) is followed")


def start(desk: Desk, script: str, sender: str) -> subprocess.Popen[str]:
    """Start a caller; it waits for a line."""
    program = PROGRAMS[script[script.index(".") :]]
    process = desk.hold([program, script, sender], cwd=FOLDER, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def send(
    desk: Desk, callers: dict[str, tuple[str, subprocess.Popen[str]]]
) -> list[Sent]:
    """Have all of them send at once, and learn who they were."""
    for _, process in callers.values():
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    sent = []
    for sender, (script, process) in callers.items():
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, (script, out, err)
        pid = int(out.split()[0])
        # who calls is exec'ed away: what started it did
        sent.append(Sent(sender, pid, script))
    return sent


def queue_id(desk: Desk, sender: str) -> str:
    """Wait for pickup to log the message of a sender."""
    pattern = rf"pickup\[\d+\]: (\w+): uid=\d+ from=<{re.escape(sender)}>"
    return wait_until(lambda: re.findall(pattern, desk.postfix.log()), sender)[0]


def answer(desk: Desk, sender: str) -> dict[str, Any]:
    """Wait for the one answer of who-sent to the queue id of a sender."""
    number = queue_id(desk, sender)

    def ask() -> list[dict[str, Any]]:
        return desk.who_sent(number, "--log", "/dev/null")

    [row] = wait_until(ask, f"{number} in the journal")
    return row


def test_each_queue_id_leads_to_its_caller(
    post: Desk, cron: subprocess.Popen[str]
) -> None:
    """Ten ways to call it, ten times each, all ten in the same moment."""
    sent: list[Sent] = []
    for copy in range(EACH):
        callers = {}
        for number, script in enumerate(ORIGINS):
            sender = f"s{number}.{copy}@host.example.net"
            callers[sender] = (script, start(post, script, sender))
        assert cron.stdin and cron.stdout
        sender = f"cron.{copy}@host.example.net"
        cron.stdin.write(f"{sender}\n")
        cron.stdin.flush()
        sent += send(post, callers)
        sent.append(Sent(sender, int(cron.stdout.readline()), "cron"))
    assert len({one.sender for one in sent}) == EACH * (len(ORIGINS) + 1)
    for one in sent:
        check(one, answer(post, one.sender))


def check(one: Sent, row: dict[str, Any]) -> None:
    """Assert that a row names who sent it."""
    assert row["how"] == "seen at sendmail(1)", row
    by = row["handed_in"]["caller"]
    if one.script == "leaves.py":
        by = row["handed_in"]["chain"][1]
    assert by["pid"] == one.pid, (one, row)
    assert row["uid"] == WWW_DATA
    if one.script == "cron":
        assert (by["known"], by["unit"]) == ("proc", "cron.service"), row
        return
    if one.script == "straight.py":  # the test itself started it, before guardd
        assert by["known"] == "proc", row
        return
    assert by["known"] == "kernel", row
    assert (by["uid"], by["unit"], by["cwd"]) == (WWW_DATA, "apache2.service", FOLDER)
    if one.script == "nested.sh":
        assert "./inner.sh" in by["args"]
        assert any(
            one.script in process["args"] for process in row["handed_in"]["chain"]
        )
    elif one.script != "leaves.py":
        assert one.script in by["args"]


def test_a_queue_that_waits_is_told_apart(post: Desk) -> None:
    """Postfix stands still: all files lie in maildrop at once, of one user."""
    callers = {}
    scripts = ("argv.py", "popen.py", "open.pl", "mail.php") * 5
    for number, script in enumerate(scripts):
        sender = f"w{number}@host.example.net"
        callers[sender] = (script, start(post, script, sender))
    with post.postfix.standing_still():
        sent = send(post, callers)
    for one in sent:
        check(one, answer(post, one.sender))


def test_without_the_record_the_user_alone_is_told(post: Desk) -> None:
    post.stop_guard()
    try:
        sender = "unseen@host.example.net"
        send(post, {sender: ("argv.py", start(post, "argv.py", sender))})
        number = queue_id(post, sender)
    finally:
        post.start_guard()
        await_following(post)
    [row] = post.who_sent(number, "--log", LOG)
    assert (row["how"], row["handed_in"], row["uid"]) == (None, None, WWW_DATA)
    assert row["why"] == f"handed in by sendmail(1), by user ID {WWW_DATA}"


@pytest.mark.parametrize("action", ["HOLD", "REJECT", "DISCARD"])
def test_whatever_becomes_of_it(post: Desk, action: str) -> None:
    """A header check takes it out of the usual way: cleanup ends otherwise."""
    sender = f"{action.lower()}@host.example.net"
    post.lab.write("/etc/postfix/checks", f"/^Subject: hello/ {action} for a test\n")
    post.lab.check(["postconf", "-e", "header_checks = regexp:/etc/postfix/checks"])
    post.lab.check(["postfix", "reload"])
    try:
        [sent] = send(post, {sender: ("argv.py", start(post, "argv.py", sender))})
        check(sent, answer(post, sender))
        assert f"{action.lower()}: header Subject: hello" in post.postfix.log()
    finally:
        post.lab.check(["postconf", "-X", "header_checks"])
        post.lab.check(["postfix", "reload"])


def test_a_message_that_is_queued_again_names_what_it_was(post: Desk) -> None:
    """By postsuper -r: a new queue id, and pickup has a file of Postfix's own."""
    sender = "again@host.example.net"
    post.lab.check(["postconf", "-e", "defer_transports = smtp"])
    post.lab.check(["postfix", "reload"])
    try:
        send(post, {sender: ("argv.py", start(post, "argv.py", sender))})
        number = queue_id(post, sender)
        deferred = post.lab.path("/var/spool/postfix/deferred")
        wait_until(lambda: list(deferred.rglob(number)), "it is deferred")
        post.lab.check(["postsuper", "-r", number])
        pattern = rf"pickup\[\d+\]: (\w+): uid=\d+ from=<.*> orig_id={number}"
        [later] = wait_until(
            lambda: re.findall(pattern, post.postfix.log()), "its new queue id", 120
        )
    finally:
        post.lab.check(["postconf", "-X", "defer_transports"])
        post.lab.check(["postfix", "reload"])
    [row] = post.who_sent(later, "--log", LOG)
    assert row["why"] == f"queued again by postsuper -r: ask for {number}, which it was"
    assert answer(post, sender)["handed_in"]["caller"]["args"][1] == "argv.py"


def test_the_library_is_replaced_as_an_upgrade_does(post: Desk) -> None:
    """A new file under its name, then a restart: followed, without one of guardd."""
    swap = "cp -p $0 $0.dpkg-new && mv $0.dpkg-new $0"
    post.lab.check(["sh", "-c", swap, "/usr/lib/postfix/libpostfix-global.so"])
    post.postfix.stop()
    post.postfix.start()
    numbers = itertools.count()

    def followed() -> bool:
        sender = f"u{next(numbers)}@host.example.net"
        [sent] = send(post, {sender: ("argv.py", start(post, "argv.py", sender))})
        number = queue_id(post, sender)
        rows = wait_until(lambda: post.who_sent(number, "--log", LOG), number)
        if rows[0]["handed_in"]:
            check(sent, rows[0])
        return bool(rows[0]["handed_in"])

    wait_until(followed, "a message that is followed")


def test_the_answer_for_eyes(post: Desk) -> None:
    sender = "eyes@host.example.net"
    send(post, {sender: ("mail.php", start(post, "mail.php", sender))})
    answer(post, sender)
    text = post.guard.ctl("who-sent", queue_id(post, sender)).stdout
    assert re.search(rf"arguments /usr/bin/php mail.php {sender}\n", text), text
    assert f"folder    {FOLDER}\n" in text
    assert "chain     pid" in text and "/usr/sbin/postdrop -r" in text


# A process makes a file in a folder `maildrop` of its own, holds it open, and has
# another one, which it is connected to, make a file in a folder `incoming`: with
# Postfix's own library, as pickup and cleanup do.
FORGER = """\
import ctypes, grp, os, pwd, socket, sys
user, group = pwd.getpwnam(sys.argv[1]), grp.getgrnam(sys.argv[2]).gr_gid
ctypes.CDLL("/usr/lib/postfix/libpostfix-util.so", ctypes.RTLD_GLOBAL)
postfix = ctypes.CDLL("/usr/lib/postfix/libpostfix-global.so")
ctypes.c_char_p.in_dll(postfix, "var_hash_queue_names").value = b""
postfix.mail_stream_file.restype = ctypes.c_void_p
def make(queue):
    made = postfix.mail_stream_file(queue, b"public", b"none", 0o644)
    postfix.mail_stream_cleanup(ctypes.c_void_p(made))
os.umask(0); os.mkdir("maildrop"); os.mkdir("incoming")
here = socket.socket(socket.AF_UNIX); here.bind(f"\\0{os.getpid()}"); here.listen()
if not os.fork():
    os.setegid(group); os.seteuid(user.pw_uid)
    make(b"maildrop")
    held = open("maildrop/" + os.listdir("maildrop")[0])
    there = socket.socket(socket.AF_UNIX); there.connect(f"\\0{os.getppid()}")
    there.recv(1); os._exit(0)
os.setegid(user.pw_gid); os.seteuid(user.pw_uid)
peer, _ = here.accept()
make(b"incoming")
print(os.listdir("incoming")[0], flush=True)
peer.send(b"x"); os.wait()
"""


def test_nobody_but_postfix_says_what_is_in_its_queue(post: Desk) -> None:
    """Who loads its library forges no answer; the control has both its accounts."""
    made = {}
    for user, group in (
        ("nobody", "nogroup"),
        ("nobody", "postdrop"),
        ("postfix", "postfix"),
        ("postfix", "postdrop"),
    ):
        folder = f"/srv/forger-{user}-{group}"
        post.lab.path(folder).mkdir()
        argv = ["/usr/bin/python3", "-c", FORGER, user, group]
        done = post.run(argv, user="root", cwd=folder)
        made[user, group] = done.stdout.strip()
    control = made.pop(("postfix", "postdrop"))
    # the last one has come through the same ring
    wait_until(lambda: post.who_sent(control, "--log", "/dev/null"), "the control")
    for number in made.values():
        assert not post.who_sent(number, "--log", "/dev/null"), made
