# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's Postfix as docs/postfix.md has it: it tells guardd of every message.

smtpd runs in its chroot. Beside port 25: 587 with SASL, and behind a proxy two
that believe what XCLIENT and the PROXY protocol say.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from tests.lab import Lab, Postfix, wait_until
from tests.lab.postfix import UNIT

DOCS = Path(__file__).resolve().parents[2] / "docs/postfix.md"
SOCKET = "/var/spool/postfix/smtp-guard/policy"
XCLIENT_PORT, PROXIED_PORT = 10026, 10025
HAPROXY = "system.slice/haproxy.service"
PASSWORD = "not a secret"
POLICY = f"""\
mode = "enforce"
include = ["postfix"]

[local]
audit = true
default = "allow"

[mta]
socket = "{SOCKET}"
"""
MAIN_CF = """\
smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, reject
smtpd_delay_reject = yes
"""
MASTER_CF = f"""\
587 inet n - y - - smtpd
  -o syslog_name=postfix/submission
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
{XCLIENT_PORT} inet n - y - - smtpd
  -o smtpd_authorized_xclient_hosts=127.0.0.0/8
  -o mynetworks=0.0.0.0/0,[::]/0
{PROXIED_PORT} inet n - y - - smtpd
  -o smtpd_upstream_proxy_protocol=haproxy
  -o mynetworks=0.0.0.0/0,[::]/0
"""
HAPROXY_CFG = f"""\
defaults
  mode tcp
  timeout connect 20s
  timeout client 60s
  timeout server 60s
listen smtps
  bind :465
  bind :::465 v6only
  server postfix 127.0.0.1:{PROXIED_PORT} send-proxy
"""


def documented() -> str:
    """Give the lines of main.cf that the documentation advises."""
    found = re.search(r"```main\.cf\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found, f"{DOCS} shows no main.cf"
    return found[1]


def asked() -> str:
    """Give the restriction that the documentation advises."""
    found = re.search(r"check_policy_service\s+(\{[^}]*\})", documented())
    assert found, documented()
    return f"check_policy_service {found[1]}"


class MailHost(Postfix):
    """Postfix that asks; start_haproxy() puts one in front of it."""

    def __init__(self, lab: Lab) -> None:
        """Configure, but do not start."""
        super().__init__(lab)
        for name, more in (
            ("main.cf", documented() + MAIN_CF),
            ("master.cf", MASTER_CF),
        ):
            path = lab.path(f"/etc/postfix/{name}")
            path.write_text(path.read_text() + more)
        lab.write(
            "/etc/postfix/sasl/smtpd.conf",
            "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN\n",
        )

    def start(self, unit: str = UNIT) -> None:
        """Start as the unit does, with an account in the chroot's database."""
        super().start(unit)
        database = "/var/spool/postfix/etc/sasldb2"
        self.lab.check(
            ["saslpasswd2", "-p", "-c", "-f", database]
            + ["-u", "host.example.net", "app"],
            PASSWORD,
        )
        self.lab.check(["chown", "postfix", database])

    def start_haproxy(self) -> None:
        """Start haproxy on port 465 and wait until it listens."""
        self.lab.write("/etc/haproxy/haproxy.cfg", HAPROXY_CFG)
        self.lab.start(
            ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"],
            unit=HAPROXY,
            output="/mnt/haproxy.log",
        )
        wait_until(
            lambda: self.lab.check(["ss", "-Hltn", "sport = :465"]).count("\n") == 2,
            "haproxy on port 465",
        )

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Have no process of Postfix do anything meanwhile."""
        unit = self.lab.cgroup / self.unit
        (unit / "cgroup.freeze").write_text("1")
        wait_until(
            lambda: "frozen 1" in (unit / "cgroup.events").read_text(), "no motion"
        )
        try:
            yield
        finally:
            (unit / "cgroup.freeze").write_text("0")

    @contextlib.contextmanager
    def asking(self, setting: str) -> Iterator[None]:
        """Have Postfix ask at this setting as well, before what stands there."""
        was = self.lab.check(["postconf", "-h", setting]).strip()
        with self._set(f"{setting}={asked()}, {was}"):
            yield

    @contextlib.contextmanager
    def without_guardd(self, action: str, tries: int = 1) -> Iterator[None]:
        """Have Postfix do this when nobody answers, asked so many times."""
        line = f"{{ unix:smtp-guard/policy, try_limit={tries}, "
        line += f"{{ default_action = {action} }} }}"
        with self._set(f"smtpd_end_of_data_restrictions=check_policy_service {line}"):
            yield

    @contextlib.contextmanager
    def _set(self, line: str) -> Iterator[None]:
        path = self.lab.path("/etc/postfix/main.cf")
        text = path.read_text()
        try:
            self.lab.check(["postconf", "-e", line])
            self._do("postfix", "reload")
            yield
        finally:
            path.write_text(text)
            self._do("postfix", "reload")

    def queue_ids(self, since: int = 0) -> list[str]:
        """Give the queue ids of smtpd's clients, from that place in the log on."""
        return re.findall(r"/smtpd\[\d+\]: (\w+): client=", self.log()[since:])
