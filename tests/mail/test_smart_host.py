# SPDX-License-Identifier: GPL-2.0-or-later
"""All mail through one relay with TLS and SASL, and what can be wrong with that."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import INTERNET, MX4, wait_until
from tests.mail.site import (
    HOME,
    NOBODY4,
    PASSWORD,
    RELAY,
    RELAY4,
    SECRET,
    SELF_SIGNED_PORT,
    TABLE,
    TLS_PORT,
    USER,
    Site,
    table,
)

OURS = "/etc/postfix/smtp-guard"
CA = f'"{HOME}/ca.pem"'


def through(site: Site) -> str:
    """Send a message to the lab's MX; give the address that brought it there."""
    mark = site.postfix.submit("somebody@anywhere.example")
    peer: Any = site.postfix.delivered(mark, timeout=60)["peer"]
    return str(peer[0])


@pytest.mark.parametrize(
    ("port", "more"),
    [
        (587, {}),
        (587, {"tls": '"secure"', "ca_file": CA}),
        (TLS_PORT, {"tls": '"verify"', "ca_file": CA}),
        (SELF_SIGNED_PORT, {}),
    ],
    ids=["encrypt", "secure", "465", "self-signed-unchecked"],
)
def test_all_mail_goes_through_the_relay(
    site: Site, port: int, more: dict[str, str]
) -> None:
    site.write_table(table(port, **more))
    site.does("apply")
    assert through(site) == RELAY4
    assert site.guardctl("plan").returncode == 0


def test_control_without_it_mail_takes_another_way(site: Site) -> None:
    site.write_table(table())
    site.does("apply")
    site.does("revert")
    mark = site.postfix.submit("somebody@example.org")
    peer: Any = site.postfix.delivered(mark, timeout=60)["peer"]
    assert peer[0] not in (RELAY4, MX4)


def test_what_leads_past_it_is_told(site: Site) -> None:
    """Pinned or not: whoever has a smart host means all mail."""
    site.write_table(table())
    site.does("apply")
    assert through(site) == RELAY4, "the control"
    assert "past it by default_transport" not in site.does("plan")
    site.postconf("-e", f"default_transport=smtp:[{MX4}]")
    try:
        site.lab.check(["postfix", "reload"])
        since = len(site.postfix.log())
        site.postfix.submit("past@anywhere.example")
        # which has no TLS, and is asked for it as the relay is
        line = site.log_of("past@anywhere.example", since, "deferred")
        assert f"relay={MX4}" in line
        told = site.does("plan")
        assert f"mail may go past it by default_transport = smtp:[{MX4}]" in told
        assert "mail may go past it by transport_maps = texthash:/etc/postfix" in told
    finally:
        site.postconf("-X", "default_transport")
        site.lab.check(["postfix", "reload"])
        site.lab.check(["postsuper", "-d", "ALL"])


def test_what_a_service_sets_for_itself_is_told(site: Site) -> None:
    site.write_table(table())
    site.does("apply")
    assert "outweighs" not in site.does("plan"), "the control"
    site.postconf("-P", "smtp/unix/smtp_tls_security_level=may")
    try:
        said = site.does("plan")
        assert "smtp/unix has -o smtp_tls_security_level=may, which outweighs" in said
    finally:
        site.postconf("-PX", "smtp/unix/smtp_tls_security_level")


def test_tables_and_their_indexes_are_for_root_alone(site: Site) -> None:
    site.write_table(table())
    site.does("apply")
    for name in ("smart-host-auth", "smart-host-auth.db"):
        path = site.lab.path(f"{OURS}/{name}")
        assert path.stat().st_mode & 0o7777 == 0o600
        assert path.stat().st_uid == 0
    assert "customer" in site.lab.check(
        ["postmap", "-q", f"[{RELAY}]:587", f"hash:{OURS}/smart-host-auth"]
    )
    assert site.lab.run(["cat", f"{OURS}/smart-host-auth"], user="postfix").returncode


def test_the_settings_are_those_of_the_field(site: Site) -> None:
    site.write_table(table() + "authenticated_header = true\n")
    site.does("apply")
    asked = (
        "relayhost",
        "smtp_sasl_auth_enable",
        "smtp_sasl_tls_security_options",
        "smtp_tls_security_level",
        "smtpd_sasl_authenticated_header",
    )
    assert site.postconf("-h", *asked).split() == (
        f"[{RELAY}]:587 yes noanonymous encrypt yes".split()
    )


def test_mailchannels(site: Site) -> None:
    site.write_table(
        '[smart_host]\npreset = "mailchannels"\nuser = "account"\n'
        f'password_file = "{SECRET}"\n'
    )
    site.does("apply")
    assert site.postconf("-h", "relayhost").strip() == "smtp.mailchannels.net"


@pytest.mark.parametrize("file", ["/etc/none.pem", "/etc", "/etc/hosts", "/run/pipe"])
def test_authorities_that_postfix_cannot_load_are_refused(
    site: Site, file: str
) -> None:
    site.lab.check(["sh", "-c", "test -p /run/pipe || mkfifo /run/pipe"])
    before = site.config()
    for tls in ("secure", "encrypt"):
        site.write_table(table(tls=f'"{tls}"', ca_file=f'"{file}"'))
        for verb in ("plan", "apply"):
            done = site.guardctl(verb)
            assert done.returncode == 78
            assert f"ca_file: {file}: " in done.stderr
    assert site.config() == before


def test_checked_where_no_authorities_are_is_refused(site: Site) -> None:
    """All mail would wait: no certificate is trusted then."""
    site.write_table(table(tls='"secure"'))
    assert site.guardctl("plan").returncode == 1
    system = "/etc/ssl/certs/ca-certificates.crt"
    site.lab.check(["mount", "--bind", "/dev/null", system])
    done = site.guardctl("plan")
    assert done.returncode == 78
    assert "ca_file" in done.stderr


def test_false_takes_it_out_again(site: Site) -> None:
    before = site.config()
    site.write_table(table())
    site.does("apply")
    assert site.config() != before
    site.write_table("smart_host = false\n")
    site.does("apply")
    assert site.config() == before


# ---- the verbs


def test_set_show_off(site: Site) -> None:
    before = site.config()
    site.write_table("# of the admin's own\nclient_port_logging = true\n")
    words = (f"[{RELAY}]:587", f"{USER}@{RELAY}", "--password-file", "-")
    out = site.does("smart-host", "set", *words, text=f"{PASSWORD}\n")
    assert PASSWORD not in out
    assert f"+relayhost = [{RELAY}]:587" in out
    assert through(site) == RELAY4
    kept = site.lab.path("/etc/smtp-guard/smart-host.password")
    assert kept.stat().st_mode & 0o7777 == 0o600
    shown = json.loads(site.does("smart-host", "show", "--json"))
    assert (shown["host"], shown["relayhost"]) == (f"[{RELAY}]:587",) * 2
    assert PASSWORD not in site.does("show") + site.does("show", "--json")
    assert site.lab.path(TABLE).read_text().startswith("# of the admin's own\n")
    site.does("smart-host", "off")
    assert site.lab.path(TABLE).read_text().startswith("# of the admin's own\n")
    assert site.postconf("-h", "relayhost").strip() == ""
    site.does("revert")
    assert site.config() == before


def test_set_asks_for_the_password_on_a_terminal(site: Site) -> None:
    command = f"guardctl mail smart-host set [{RELAY}]:587 {USER}@{RELAY}"
    typed = PASSWORD.encode() + b"\n"
    program = (
        "import os, pty, sys, termios, time\n"
        "pid, fd = pty.fork()\n"
        f"if pid == 0: os.execvp('guardctl', {command.split()!r})\n"
        "seen = b''\n"
        "while b'Password' not in seen: seen += os.read(fd, 1024)\n"
        # what is typed before it stops to echo is thrown away
        "while termios.tcgetattr(fd)[3] & termios.ECHO: time.sleep(0.01)\n"
        f"os.write(fd, {typed!r})\n"
        "try:\n"
        "    while chunk := os.read(fd, 1024): seen += chunk\n"
        "except OSError: pass\n"
        "sys.stdout.write(seen.decode())\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = site.lab.run(["python3", "-c", program], timeout=180)
    assert done.returncode == 0, done
    assert PASSWORD not in done.stdout
    assert "all" not in site.does("smart-host", "test").split("login")[0]
    assert through(site) == RELAY4


def test_set_without_a_terminal_says_what_to_give(site: Site) -> None:
    done = site.guardctl("smart-host", "set", "[a.example]", "user")
    assert done.returncode == 2
    assert "--password-file" in done.stderr
    assert not site.lab.path(TABLE).exists()


def test_set_that_cannot_be_applied_leaves_the_table_as_it_was(site: Site) -> None:
    site.write_table("client_port_logging = true\n")
    before = site.config()
    words = ("[a.example]", "user", "--password-file", "/nonexistent")
    done = site.guardctl("smart-host", "set", *words)
    assert done.returncode == 78, done
    assert "/nonexistent" in done.stderr
    assert site.lab.path(TABLE).read_text() == "client_port_logging = true\n"
    assert site.config() == before


def test_a_systemd_credential(site: Site) -> None:
    site.lab.write("/run/credentials/test/relay", PASSWORD, mode=0o400)
    text = table().replace(
        f'password_file = "{SECRET}"', 'password_credential = "relay"'
    )
    site.write_table(text)
    done = site.guardctl("apply")
    assert done.returncode == 78
    assert "LoadCredential=relay" in done.stderr
    site.does("apply", env={"CREDENTIALS_DIRECTORY": "/run/credentials/test"})
    assert through(site) == RELAY4


# ---- what test says


def steps(site: Site, status: int, *more: str) -> dict[str, dict[str, str]]:
    """Run the test; give its answers by their names."""
    done = site.guardctl("smart-host", "test", "--json", *more)
    assert done.returncode == status, done
    assert PASSWORD not in done.stdout + done.stderr
    return {x["name"]: x for x in map(json.loads, done.stdout.splitlines())}


def test_the_handshake_is_made_and_no_mail_sent(site: Site) -> None:
    site.write_table(table(tls='"secure"', ca_file=CA))
    before = len(site.lab.mx_saw("message"))
    found = steps(site, 0)
    assert {name: x["state"] for name, x in found.items()} == dict.fromkeys(
        ("name", "connect", "certificate", "tls", "login"), "ok"
    )
    log = site.lab.path("/var/log/relay.log").read_text()
    assert (
        "disconnect" in log and "auth=1" in log and "mail=" not in log.splitlines()[-1]
    )
    assert len(site.lab.mx_saw("message")) == before


def test_a_port_that_is_tls_alone(site: Site) -> None:
    site.write_table(table(TLS_PORT, tls='"secure"', ca_file=CA))
    assert steps(site, 0)["login"]["state"] == "ok"


def test_a_wrong_password(site: Site) -> None:
    site.write_table(table(tls='"secure"', ca_file=CA))
    site.write_secret("wrong")
    found = steps(site, 1)
    assert list(found)[-1] == "login"
    assert found["login"]["state"] == "fail"
    assert "535" in found["login"]["detail"]


def test_a_self_signed_certificate(site: Site) -> None:
    site.write_table(table(SELF_SIGNED_PORT, tls='"secure"', ca_file=CA))
    found = steps(site, 1)
    assert list(found)[-1] == "certificate", "no password is sent after that"
    assert "self-signed" in found["certificate"]["detail"]
    assert "ca_file" in found["certificate"]["remedy"]


def test_a_self_signed_certificate_that_postfix_would_take(site: Site) -> None:
    site.write_table(table(SELF_SIGNED_PORT))
    found = steps(site, 0)
    assert found["certificate"]["state"] == "warn"
    assert "gets the password" in found["certificate"]["detail"]
    assert found["login"]["state"] == "ok"


def test_a_certificate_of_another_name(site: Site) -> None:
    text = table(tls='"secure"', ca_file=CA).replace(f"[{RELAY}]", f"[{RELAY4}]")
    site.write_table(text)
    found = steps(site, 1)
    assert list(found)[-1] == "certificate"
    assert "mismatch" in found["certificate"]["detail"]


def test_nobody_listens(site: Site) -> None:
    site.write_table(table().replace(RELAY, NOBODY4, 1))
    found = steps(site, 1)
    assert list(found)[-1] == "connect"
    assert "refused" in found["connect"]["detail"]


def test_no_such_name(site: Site) -> None:
    site.write_table(table().replace(RELAY, "nowhere.example", 1))
    assert list(steps(site, 1)) == ["name"]


def test_a_port_without_tls(site: Site) -> None:
    """The lab's MX speaks plain SMTP there."""
    site.write_table(table(25).replace(RELAY, MX4, 1))
    found = steps(site, 1)
    assert list(found)[-1] == "tls"
    assert "STARTTLS" in found["tls"]["detail"] + found["tls"]["remedy"]


@contextlib.contextmanager
def drip(site: Site, step: str) -> Iterator[None]:
    """Have tests/mail/drip.py at the table's relay."""
    argv = ["python3", "-m", "tests.mail.drip", NOBODY4, "587", step]
    relay = site.lab.start([*argv, f"{HOME}/relay.pem"], where=INTERNET)
    try:
        assert relay.stdout and relay.stdout.readline() == "ready\n"
        site.write_table(table().replace(RELAY, NOBODY4, 1))
        yield
    finally:
        relay.kill()
        relay.wait()


@pytest.mark.parametrize(
    ("step", "last", "at"),
    [
        ("greeting", "tls", "the greeting"),
        ("EHLO", "tls", "EHLO"),
        ("STARTTLS", "tls", "STARTTLS"),
        ("AUTH", "login", "AUTH"),
    ],
)
def test_a_relay_that_answers_a_byte_now_and_then(
    site: Site, step: str, last: str, at: str
) -> None:
    """It held the test for as long as it liked: no single read was ever too long."""
    with drip(site, step):
        found = steps(site, 1, "--timeout", "4")
    assert list(found)[-1] == last
    assert found[last]["state"] == "fail"
    assert f"within 4 s: it waited for {at}" in found[last]["detail"]
    assert "--timeout" in found[last]["remedy"]


def test_a_relay_that_answers_without_end(site: Site) -> None:
    with drip(site, "flood"):
        found = steps(site, 1, "--timeout", "60")
    assert list(found)[-1] == "tls"
    assert "says more than 64 KiB" in found["tls"]["detail"]


def test_postfix_itself_refuses_what_test_refuses(site: Site) -> None:
    """Control: with secure, mail waits instead of going to the self-signed one."""
    site.write_table(table(SELF_SIGNED_PORT, tls='"secure"', ca_file=CA))
    site.does("apply")
    since = len(site.postfix.log())
    site.postfix.submit("waits@anywhere.example")
    line = site.log_of("waits@anywhere.example", since, "deferred")
    assert "not trusted" in line or "not verified" in line
    site.lab.check(["postsuper", "-d", "ALL"])


def test_a_password_that_is_not_ascii(site: Site) -> None:
    password = "pässwörd: 密"
    site.lab.check(["saslpasswd2", "-p", "-c", "-u", RELAY, "umlaut"], password)
    site.write_secret(password)
    site.write_table(table(user=f'"umlaut@{RELAY}"'))
    assert steps(site, 0)["login"]["state"] == "ok"
    site.does("apply")
    assert through(site) == RELAY4


def test_a_name_that_postfix_does_not_look_for_in_etc_hosts(site: Site) -> None:
    """Control: with native it does, as everywhere else in this file."""
    site.write_table(table())
    site.postconf("-e", "smtp_dns_support_level=enabled", "smtp_host_lookup=dns")
    try:
        found = steps(site, 1)
        assert list(found) == ["name"]
        assert "smtp_host_lookup" in found["name"]["detail"]
        site.postconf("-e", "smtp_host_lookup=dns,native")
        assert steps(site, 0)["login"]["state"] == "ok"
    finally:
        site.postconf("-e", "smtp_dns_support_level=disabled")
        site.postconf("-e", "smtp_host_lookup=native")


def test_an_ipv6_address_as_postfix_takes_it(site: Site) -> None:
    """In any case; one with a zone, which we refuse, ends smtp(8) itself: control."""
    main = site.lab.path("/etc/postfix/main.cf")
    before = main.read_text()
    site.postconf("-e", "inet_protocols=all")
    site.write_table('[smart_host]\nhost = "[IPv6:2001:db8::1]:25"\n')
    try:
        site.does("apply")
        since = len(site.postfix.log())
        site.postfix.submit("six@anywhere.example")
        line = site.log_of("six@anywhere.example", since, "deferred")
        assert "connect to 2001:db8::1[2001:db8::1]:25" in line
        site.does("revert")
        site.postconf("-e", "relayhost=[fe80::1%lo]:25")
        site.postfix.submit("zone@anywhere.example")
        wait_until(
            lambda: (
                "fatal: valid hostname or network address required"
                in site.postfix.log()[since:]
            ),
            "the end of smtp(8)",
        )
    finally:
        main.write_text(before)
        site.lab.check(["postsuper", "-d", "ALL"])
        site.lab.check(["postfix", "stop"])  # it holds back a program that ended so
        site.postfix.start()
