# SPDX-License-Identifier: GPL-2.0-or-later
"""Smart hosts that Postfix finds by DNS: mail exchangers, and MailChannels' preset."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from email import message_from_string
from typing import Any

import pytest

from tests.lab import INTERNET
from tests.lab.dns import NameServer
from tests.mail.site import (
    HOME,
    NOBODY4,
    PASSWORD,
    RELAY,
    RELAY4,
    SINK4,
    USER,
    Site,
    table,
)

# Nobody listens at the exchanger that comes first.
ZONE = f"""\
relay 60 IN A {RELAY4}
dead 60 IN A {NOBODY4}
out 60 IN MX 20 relay
out 60 IN MX 10 dead
"""
OUT = "out.example.com"
CA = f'"{HOME}/ca.pem"'
MAIN = "/etc/postfix/main.cf"
# A user of this host, who logs in to its own Postfix.
SUBMIT = """\
import smtplib, sys
s = smtplib.SMTP("127.0.0.1", 25, timeout=60)
s.login("app@host.example.net", "app's own")
s.sendmail("app@host.example.net", [sys.argv[1]], f"Subject: {sys.argv[2]}\\n\\nx\\n")
s.quit()
"""


@pytest.fixture(scope="module")
def named(whole_site: Site) -> NameServer:
    dns = NameServer(whole_site.lab)
    dns.set("example.com", ZONE)
    dns.set("mailchannels.net", f"smtp 60 IN A {RELAY4}\n")
    # smtp(8) is chrooted by Debian's master.cf, with a copy that a start makes
    chroot = "/var/spool/postfix/etc/resolv.conf"
    whole_site.lab.check(["cp", "/etc/resolv.conf", chroot])
    return dns


@pytest.fixture
def by_dns(site: Site, named: NameServer) -> Iterator[Site]:
    """Postfix asks DNS, as it does by default, and nobody leads mail elsewhere."""
    before = site.lab.path(MAIN).read_text()
    lines = "smtp_dns_support_level|smtp_host_lookup|transport_maps"
    text = re.sub(rf"(?m)^({lines})\b.*\n", "", before)
    site.lab.path(MAIN).write_text(text)
    yield site
    site.does("revert")
    site.lab.path(MAIN).write_text(before)
    site.lab.check(["postfix", "reload"])
    site.lab.check(["postsuper", "-d", "ALL"])


def through(site: Site, recipient: str = "somebody@anywhere.example") -> str:
    """Send a message; give the address that brought it to the lab's MX."""
    found: Any = site.postfix.delivered(site.postfix.submit(recipient), timeout=60)
    return str(found["peer"][0])


def login(site: Site, status: int) -> tuple[str, str]:
    """Run smart-host test; give the last step and its state."""
    done = site.guardctl("smart-host", "test", "--json")
    assert done.returncode == status, done
    last = json.loads(done.stdout.splitlines()[-1])
    return last["name"], last["state"]


def without_brackets(**more: str) -> str:
    return table(587, **more).replace(f"[{RELAY}]:587", f"{OUT}:587", 1)


@pytest.mark.parametrize(
    "more", [{}, {"tls": '"verify"', "ca_file": CA}], ids=["encrypt", "verify"]
)
def test_without_brackets_it_is_the_mail_exchangers(
    by_dns: Site, more: dict[str, str]
) -> None:
    """With the port given, TLS, and the password of the name in the table."""
    by_dns.write_table(without_brackets(**more))
    by_dns.does("apply")
    since = len(by_dns.postfix.log())
    assert through(by_dns) == RELAY4
    log = by_dns.postfix.log()[since:]
    assert f"connect to dead.example.com[{NOBODY4}]:587: Connection refused" in log
    assert f"relay={RELAY}[{RELAY4}]:587" in log
    assert login(by_dns, 0) == ("login", "ok")


def test_control_with_brackets_no_exchanger_is_asked_for(by_dns: Site) -> None:
    text = without_brackets().replace(f"{OUT}:587", f"[{OUT}]:587")
    by_dns.write_table(text)
    by_dns.does("apply")
    since = len(by_dns.postfix.log())
    by_dns.postfix.submit("waits@anywhere.example")
    line = by_dns.log_of("waits@anywhere.example", since, "deferred")
    assert "not found" in line
    assert login(by_dns, 1) == ("name", "fail")


def test_secure_wants_the_name_that_was_written(by_dns: Site) -> None:
    """DNS must not be able to name another: postconf(5), smtp_tls_secure_cert_match."""
    by_dns.write_table(without_brackets(tls='"secure"', ca_file=CA))
    by_dns.does("apply")
    since = len(by_dns.postfix.log())
    by_dns.postfix.submit("waits@anywhere.example")
    line = by_dns.log_of("waits@anywhere.example", since, "deferred")
    assert "not verified" in line or "Connection refused" in line
    assert "Server certificate not verified" in by_dns.postfix.log()[since:]
    assert login(by_dns, 1) == ("certificate", "fail")


# ---- MailChannels


@pytest.fixture
def submission(by_dns: Site) -> Site:
    """The host's own Postfix takes mail of users who log in."""
    lab = by_dns.lab
    lab.check(["saslpasswd2", "-p", "-c", "-u", "host.example.net", "app"], "app's own")
    by_dns.postconf("-e", "smtpd_sasl_auth_enable=yes")
    by_dns.postconf("-F", "smtp/inet/chroot=n")
    by_dns.lab.check(["postfix", "reload"])
    return by_dns


def received(site: Site, subject: str) -> str:
    """Give the headers of a message as the relay handed it on."""
    found = site.postfix.delivered(f"Subject: {subject}", timeout=60)
    peer: Any = found["peer"]
    assert peer[0] == RELAY4
    return str(found["content"]).partition("\n\n")[0].replace("\r", "")


def test_mailchannels_knows_which_user_sent_it(submission: Site) -> None:
    """At the relay, which wants TLS and a password, at port 25 as the seed has it."""
    site = submission
    words = ("smart-host", "set", "MailChannels", f"{USER}@{RELAY}")
    answers = {}
    options: tuple[list[str], ...] = ([], ["--authenticated-header"])
    for header in options:
        site.does(*words, *header, "--password-file", "-", text=PASSWORD)
        assert site.postconf("-h", "relayhost").strip() == "smtp.mailchannels.net"
        subject = f"authenticated {len(header)}"
        argv = ["python3", "-c", SUBMIT, "somebody@anywhere.example", subject]
        site.lab.check(argv, timeout=120)
        answers[len(header)] = received(site, subject)
    told = "(Authenticated sender: app@host.example.net)"
    assert told not in answers[0], "the control: it is an option"
    assert answers[1].count("Authenticated sender") == 1
    lines: list[str] = message_from_string(answers[1]).get_all("Received", [])
    own = [x for x in lines if "by host.example.net" in x and "with ESMTPA" in x]
    assert len(own) == 1 and told in own[0]

    mark = site.postfix.submit("somebody@anywhere.example")
    content = str(site.postfix.delivered(mark, timeout=60)["content"])
    assert "Authenticated sender" not in content, "sendmail(1): nobody logged in"


def test_the_relay_takes_nothing_without_a_password(by_dns: Site) -> None:
    """Control: what went through did log in."""
    by_dns.write_table('[smart_host]\npreset = "mailchannels"\n')
    by_dns.does("apply")
    since = len(by_dns.postfix.log())
    by_dns.postfix.submit("refused@anywhere.example")
    assert "554" in by_dns.log_of("refused@anywhere.example", since, "bounced")


SILENT = """\
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 53))
print("ready", flush=True)
while True: s.recv(512)
"""


def test_a_name_server_that_says_nothing(by_dns: Site) -> None:
    """Nor is the C library asked then, which waits as long as resolv.conf says."""
    site = by_dns
    site.write_table(table())
    resolv = site.lab.path("/etc/resolv.conf")
    before = resolv.read_text()
    silent = site.lab.start(["python3", "-c", SILENT, SINK4], where=INTERNET)
    try:
        assert silent.stdout and silent.stdout.readline() == "ready\n"
        resolv.write_text(f"nameserver {SINK4}\noptions timeout:30 attempts:2\n")
        began = time.monotonic()
        done = site.guardctl("smart-host", "test", "--json", "--timeout", "2")
        assert time.monotonic() - began < 30
        (name,) = map(json.loads, done.stdout.splitlines())
        assert "no name server answers" in name["detail"]
    finally:
        resolv.write_text(before)
        silent.kill()
        silent.wait()
