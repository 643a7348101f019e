# SPDX-License-Identifier: GPL-2.0-or-later
"""relay_mynetworks = false with a real Postfix: who must log in, and who is let in."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import wait_until
from tests.lab.lab import HOST4, INTERNET, MX4, cgroup2_mount
from tests.mta.desk import FOLDER, Desk
from tests.mta.mailhost import PASSWORD, POLICY, XCLIENT_PORT
from tests.mta.test_postfix import PHP

LOGIN = ["--auth", "PLAIN", "-au", "app@host.example.net", "-ap", PASSWORD]
CRON, ELSEWHERE = "system.slice/cron.service", "user.slice"
RULES = """
[[local.rule]]
name = "cron"
unit = "{unit}"
verdict = "allow"

[[local.rule]]
name = "curl"
exe = "/usr/bin/curl"
user = "www-data"
verdict = "allow"

[[local.rule]]
name = "shop"
user = "games"
folder = "{folder}"
verdict = "allow"

[[local.rule]]
name = "reports"
user = "backup"
login = true
verdict = "allow"

[[rule]]
name = "turned"
user = "irc"
verdict = "redirect"
"""
# Two messages, of which each is answered for itself; then one all at once.
SEVERAL = """\
import smtplib, sys
with smtplib.SMTP(sys.argv[1], 25) as mail:
    for number in range(3):
        mail.mail("many@host.example.net"), mail.rcpt("somebody@example.org")
        print(mail.data(f"Subject: {number}\\r\\n\\r\\nhello\\r\\n"))
        mail.rset()  # what was refused at its end, Postfix does not forget by itself
    mail.sock.sendall(
        b"MAIL FROM:<many@host.example.net>\\r\\n"
        + b"RCPT TO:<somebody@example.org>\\r\\n" * 4
        + b"DATA\\r\\n"
    )
    print([mail.getreply()[0] for _ in range(6)])
    mail.sock.sendall(b"\\r\\n.\\r\\n")
    print(mail.getreply())
"""
SLOW = """\
import smtplib, sys
with smtplib.SMTP("127.0.0.1", 25) as mail:
    mail.mail("slow@host.example.net"), mail.rcpt("somebody@example.org")
    print("in the middle", flush=True)
    sys.stdin.readline()
    print(mail.data("Subject: slow\\r\\n\\r\\nhello\\r\\n"))
"""


def policy(desk: Desk, more: str = "", mode: str = "enforce") -> str:
    """Give the lab's policy with these keys in [mta]."""
    # in the lab a unit is below the lab's part of the cgroup tree
    unit = Path("/") / desk.lab.cgroup.relative_to(cgroup2_mount()) / CRON
    rules = RULES.format(unit=unit, folder=FOLDER)
    own = f'relay_mynetworks = false\nmode = "{mode}"\n{more}'
    # each refused message by itself, however many of one origin came before
    fold = '[fold]\nwindow = "0s"\n'
    return POLICY.replace("[mta]\n", f"{rules}\n{fold}\n[mta]\n{own}\n")


@pytest.fixture
def strict(desk: Desk) -> Iterator[Desk]:
    desk.guard.apply(policy(desk))
    yield desk
    desk.guard.apply(POLICY)


def test_who_is_not_named_must_log_in(strict: Desk) -> None:
    refused = strict.refused()
    assert "is to log in" in refused.stdout
    row = strict.mail_of(refused.pid)
    assert (row["kind"], row["answer"]) == ("rejected", "reject")
    assert "has not logged in" in row["reason"]
    # its queue id, which Postfix logs, leads to who it was
    [sent] = strict.who_sent(row["queue_id"], "--log", "/dev/null")
    assert (sent["origin"]["pid"], sent["answer"]) == (refused.pid, "reject")
    assert f"{row['queue_id']}: reject: END-OF-MESSAGE" in strict.postfix.log()
    # the control: likewise, having logged in
    done = strict.swaks(*LOGIN, server="127.0.0.1:587", unit=ELSEWHERE)
    row = strict.told(*strict.ids_of(done.stdout))
    assert (row["sasl_user"], row["answer"]) == ("app@host.example.net", "dunno")


@pytest.mark.parametrize(
    ("named", "not_"),
    [
        ({"unit": CRON}, {"unit": "system.slice/at.service"}),
        ({"user": "games", "cwd": f"{FOLDER}/cart"}, {"user": "games", "cwd": "/srv"}),
        ({"user": "games"}, {"user": "games", "cwd": f"{FOLDER}.evil"}),
    ],
    ids=["unit", "folder", "folder-itself"],
)
def test_a_named_origin_is_as_good_as_a_login(
    strict: Desk, named: dict[str, str], not_: dict[str, str]
) -> None:
    done = strict.swaks(**{"unit": ELSEWHERE, **named})
    assert strict.told(*strict.ids_of(done.stdout))["answer"] == "dunno"
    strict.refused(**not_)


def test_a_folder_of_a_user_s_own_mounts_is_none(strict: Desk) -> None:
    """Who makes a user namespace mounts what he likes where the rule looks."""
    send = "exec swaks --server 127.0.0.1:25 --to somebody@example.org"
    inside = f"cd {FOLDER} && {send} --from app@host.example.net"
    strict.lab.path(FOLDER).mkdir(parents=True, exist_ok=True)
    options = {"user": "games", "unit": ELSEWHERE, "cwd": "/srv"}
    mounted = [
        "unshare",
        "-Urm",
        "sh",
        "-c",
        f"mount -t tmpfs none {FOLDER} && {inside}",
    ]
    done = strict.lab.run(mounted, **options)
    assert " 554" in done.stdout and "smtp-guard: " in done.stdout, done
    plain = strict.lab.run(["sh", "-c", inside], **options)
    assert strict.ids_of(plain.stdout), plain


def test_a_named_program(strict: Desk) -> None:
    """Not its name: the file that the process executes."""
    argv = ["-sv", "smtp://127.0.0.1", "--mail-from", "a@host.example.net"]
    argv += ["--mail-rcpt", "somebody@example.org", "-T", "-"]
    text = "Subject: curl\n\nhello\n"
    done = strict.run(["curl", *argv], text, unit=ELSEWHERE)
    assert strict.ids_of(done.stderr)
    # another program of this name, and the program of another user
    strict.lab.check(["cp", "/usr/bin/python3", f"{FOLDER}/curl"])
    for path, user in ((f"{FOLDER}/curl", "www-data"), ("/usr/bin/curl", "irc")):
        args = argv if user == "irc" else ["-c", SLOW]
        done = strict.lab.run([path, *args], text, user=user, unit=ELSEWHERE)
        assert done.returncode != 0 or "(554" in done.stdout, done
        assert strict.mail_of(done.pid)["kind"] == "rejected"


def test_a_rule_may_ask_for_a_login_all_the_same(strict: Desk) -> None:
    strict.refused(user="backup")
    done = strict.swaks(*LOGIN, server="127.0.0.1:587", user="backup", unit=ELSEWHERE)
    assert strict.ids_of(done.stdout)


def test_who_is_turned_here_by_a_rule_need_not_log_in(strict: Desk) -> None:
    """It believes that it talks to the world's mail servers, where nobody logs in."""
    done = strict.swaks(server=f"{MX4}:25", user="irc", unit=ELSEWHERE)
    row = strict.told(*strict.ids_of(done.stdout))
    assert (row["origin"]["rule"], row["answer"]) == ("turned", "dunno")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_several_messages_and_pipelining(strict: Desk, host: str) -> None:
    argv = ["/usr/bin/python3", "-c", SEVERAL, host]
    done = strict.lab.run(argv, user="www-data", unit=ELSEWHERE)
    assert done.stdout.count("(554") == 4 and "354]" in done.stdout, done
    named = strict.run(argv, unit=CRON)
    assert named.stdout.count("(250, b'2.0.0 Ok: queued") == 4, named
    wait_until(lambda: len(strict.mail(named.pid)) == 4, "its four messages", 30)
    rows = strict.mail(done.pid)
    assert [row["kind"] for row in rows] == ["rejected"] * 4
    assert [row["recipients"] for row in rows] == [1, 1, 1, 4]


def test_before_the_message_is_sent(strict: Desk) -> None:
    """At DATA; every recipient of one that is refused at RCPT makes one finding."""
    to = ["--to", "a@example.org,b@example.org,c@example.org"]
    for state, setting in (
        ("DATA", "smtpd_data_restrictions"),
        ("RCPT", "smtpd_recipient_restrictions"),
    ):
        with strict.postfix.asking(setting):
            refused = strict.refused(*to)
            done = strict.swaks(*to, unit=CRON)
        assert strict.told(*strict.ids_of(done.stdout))["recipients"] == 3
        [row] = strict.mail(refused.pid)
        assert (row["kind"], row["state"]) == ("rejected", state)


@pytest.mark.parametrize("whole", ["enforce", "observe"])
def test_observed_it_is_told_and_let_pass(desk: Desk, whole: str) -> None:
    text = policy(desk, mode="observe" if whole == "enforce" else "enforce")
    desk.guard.apply(text.replace('mode = "enforce"', f'mode = "{whole}"', 1))
    try:
        done = desk.swaks(unit=ELSEWHERE)
        row = desk.told(*desk.ids_of(done.stdout))
        assert (row["answer"], row["origin"]["pid"]) == ("reject", done.pid)
        assert desk.mail_of(done.pid)["kind"] == "would-reject"
        [row] = desk.guard.findings("--pid", str(done.pid))
        assert row["queue_ids"] == desk.ids_of(done.stdout)
    finally:
        desk.guard.apply(POLICY)


def test_plan_writes_the_rule(desk: Desk) -> None:
    """What is told in observe mode, plan names; its rule in force, it passes."""
    argv = ["curl", "-sv", "smtp://127.0.0.1", "--mail-from", "a@host.example.net"]
    argv += ["--mail-rcpt", "somebody@example.org", "-T", "-"]
    options: dict[str, Any] = {"user": "irc", "unit": ELSEWHERE}
    text = "Subject: plan\n\nhello\n"
    desk.guard.apply(policy(desk, mode="observe"))
    try:
        done = desk.run(argv, text, **options)
        desk.told(*desk.ids_of(done.stderr))
        said = desk.guard.ctl("plan", "--user", "irc", "--json").stdout
        rows = [json.loads(line) for line in said.splitlines()]
        [row] = [row for row in rows if row["exe"] == "/usr/bin/curl"]
        assert (row["refused"], row["direction"]) == ("mail", "local")
        plain = desk.guard.ctl("plan", "--user", "irc").stdout
        assert "mail would be refused for no login" in plain
        desk.guard.apply(policy(desk))
        refused = desk.lab.run(argv, text, cwd=FOLDER, **options)
        assert refused.returncode != 0 and "554" in refused.stderr, refused
        desk.guard.apply(policy(desk).replace("[mta]", f"{row['rule']}\n\n[mta]"))
        assert desk.ids_of(desk.run(argv, text, **options).stderr)
    finally:
        desk.guard.apply(POLICY)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["php", "cart.php", "127.0.0.1", "25"], None),
        (
            ["msmtp", "--host=127.0.0.1", "--port=25", "--from=a@host.example.net"]
            + ["-d", "somebody@example.org"],
            "Subject: msmtp\n\nhello\n",
        ),
    ],
    ids=["php", "msmtp"],
)
def test_clients_are_told_why(strict: Desk, argv: list[str], text: str | None) -> None:
    strict.lab.write(f"{FOLDER}/cart.php", PHP)
    options: dict[str, Any] = {"user": "www-data", "cwd": FOLDER}
    done = strict.lab.run(argv, text, unit=ELSEWHERE, **options)
    assert "is to log in" in done.stdout + done.stderr, done
    done = strict.lab.run(argv, text, unit=CRON, **options)
    assert strict.ids_of(done.stdout + done.stderr), done


def test_behind_haproxy(strict: Desk) -> None:
    """Asked is who talks to the proxy; a client elsewhere is Postfix's to judge."""
    strict.postfix.start_haproxy()
    strict.refused(server="127.0.0.1:465")
    assert strict.ids_of(strict.swaks(server="127.0.0.1:465", unit=CRON).stdout)
    remote = strict.swaks(server=f"{HOST4}:465", where=INTERNET)
    assert strict.ids_of(remote.stdout)


def test_of_whom_nothing_is_known(desk: Desk) -> None:
    """Passes unless the policy says otherwise, and is told; others are not touched."""
    server = f"127.0.0.1:{XCLIENT_PORT}"
    nobody = ["--xclient", "ADDR=127.0.0.1 PORT=1 DESTADDR=127.0.0.1 DESTPORT=25"]
    other = ["--xclient", "ADDR=203.0.113.7 PORT=4711"]
    options = {"server": server, "unit": ELSEWHERE}
    try:
        for word, code in (("pass", ""), ("defer", "450 4.7.1"), ("reject", "554")):
            desk.guard.apply(policy(desk, f'unknown = "{word}"'))
            if code:
                desk.refused(*nobody, code=code, **options)
            else:
                done = desk.swaks(*nobody, **options)
                row = desk.told(*desk.ids_of(done.stdout))
                assert "not known which" in row["reason"]
                assert row["answer"] == "dunno"
            assert desk.ids_of(desk.swaks(*other, **options).stdout)
            remote = desk.swaks(server=f"{HOST4}:{XCLIENT_PORT}", where=INTERNET)
            assert desk.ids_of(remote.stdout)
    finally:
        desk.guard.apply(POLICY)


@pytest.mark.parametrize("unit", [CRON, ELSEWHERE])
def test_guardd_is_killed_between_connect_and_message(strict: Desk, unit: str) -> None:
    """The rule that let it pass stands in the kernel; the next guardd names it.

    With try_limit=2: the smtpd may hold a connection to the guardd that was killed.
    """
    with strict.postfix.without_guardd("DUNNO", tries=2):
        slow = strict.lab.start(
            ["/usr/bin/python3", "-c", SLOW],
            user="www-data",
            unit=unit,
            stdin=subprocess.PIPE,
        )
        assert slow.stdout and slow.stdout.readline() == "in the middle\n"
        strict.stop_guard(signal.SIGKILL)
        strict.start_guard()
        out, _ = slow.communicate("go\n", 60)
    assert ("(554" if unit == ELSEWHERE else "queued as") in out


@pytest.mark.parametrize(
    ("action", "code"), [("DUNNO", ""), ("DEFER no guardd", "450")]
)
def test_what_happens_without_guardd_is_main_cfs(
    strict: Desk, action: str, code: str
) -> None:
    """In the documented line, or as smtpd_policy_service_default_action."""
    strict.stop_guard()
    try:
        with strict.postfix.without_guardd(action):
            if code:
                assert "no guardd" in strict.refused(code=code, by="").stdout
            else:
                assert strict.ids_of(strict.swaks(unit=ELSEWHERE).stdout)
    finally:
        strict.start_guard()
    strict.refused()
