# SPDX-License-Identifier: GPL-2.0-or-later
"""A mail host with guardctl mail, and in the internet a relay and a sink.

The relay is a second Postfix: submission with TLS and SASL (Cyrus), and nothing for who
does not log in. What it is given it hands to the lab's MX, from its own address.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from tests.lab import INTERNET, MX4, Lab, Postfix, wait_until
from tests.lab.lab import Done

RELAY = "relay.example.com"
RELAY4, SINK4, NOBODY4 = "198.51.100.30", "198.51.100.40", "198.51.100.50"
HOME = "/srv/relay"
CONFIG = "/etc/postfix-relay"
USER, PASSWORD = "customer", "not a secret: but : and spaces"
TABLE = "/etc/smtp-guard/mail.toml"
SECRET = "/etc/smtp-guard/relay.password"
SELF_SIGNED_PORT, TLS_PORT, PORT = 2525, 465, 587
RELAY_MAIN = f"""\
compatibility_level = 3.6
queue_directory = {HOME}/spool
data_directory = {HOME}/data
maillog_file = /var/log/relay.log
maillog_file_prefixes = /var/log
myhostname = {RELAY}
mydestination =
inet_interfaces = {RELAY4}
inet_protocols = ipv4
smtp_bind_address = {RELAY4}
smtp_dns_support_level = disabled
transport_maps = static:smtp:[{MX4}]
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_tls_security_level = encrypt
smtpd_tls_chain_files = {HOME}/relay.pem
smtpd_sasl_auth_enable = yes
smtpd_sasl_local_domain = {RELAY}
smtpd_sasl_mechanism_filter = plain, login
"""
RELAY_MASTER = f"""\
25 inet n - n - - smtpd
{PORT} inet n - n - - smtpd
{TLS_PORT} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
{SELF_SIGNED_PORT} inet n - n - - smtpd -o smtpd_tls_chain_files={HOME}/self.pem
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
smtp unix - - n - - smtp
retry unix - - n - - error
error unix - - n - - error
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
CERTIFICATES = f"""\
set -eu
mkdir -p {HOME}/data {HOME}/spool
cd {HOME}
new="openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
$new -subj /CN=ca -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={RELAY} \\
    -keyout relay.key -out relay.csr
echo subjectAltName=DNS:{RELAY} >relay.ext
openssl x509 -req -in relay.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \\
    -extfile relay.ext -out relay.crt
cat relay.key relay.crt >relay.pem
$new -subj /CN={RELAY} -addext subjectAltName=DNS:{RELAY} -keyout self.key -out self.crt
cat self.key self.crt >self.pem
"""
# Names of the seed's examples, in nobody's addresses.
HOSTS = f"""\
{RELAY4} {RELAY}
{SINK4} yahoo.com mail.yahoo.com plain.example.org again.ru
{NOBODY4} gone.ru gone.example.org
"""
MORE_MAIN_CF = "smtp_dns_support_level = disabled\n"


def table(port: int = PORT, **more: str) -> str:
    """Write a [smart_host] for the relay; more are lines of it."""
    lines = {
        "host": f'"[{RELAY}]:{port}"',
        "user": f'"{USER}@{RELAY}"',
        "password_file": f'"{SECRET}"',
        **more,
    }
    return "[smart_host]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items())


WHOLE = (
    "relay_mynetworks = true\nclient_port_logging = false\n"
    'authorized_submit_users = ["root", "www-data"]\n'
    + table()
    + '[transports]\n"yahoo.com" = "relaylim"\n".ru" = "oneshot"\n'
    '"example.com" = "error:Bad domain!"\n'
)


class Site:
    """guardctl(), a host's Postfix, and what relay and sink saw."""

    def __init__(self, lab: Lab) -> None:
        """Start all of it."""
        self.lab = lab
        for where in (RELAY4, SINK4, NOBODY4):
            self.lab.check(
                ["ip", "addr", "add", f"{where}/32", "dev", "lo"], where=INTERNET
            )
        hosts = lab.path("/etc/hosts")
        hosts.write_text(hosts.read_text() + HOSTS)
        lab.check(["sh", "-c", CERTIFICATES])
        self.postfix = Postfix(lab)
        main = lab.path("/etc/postfix/main.cf")
        main.write_text(main.read_text() + MORE_MAIN_CF)
        self.postfix.start()
        self._start_relay()
        self._start_sink()
        self.write_secret(PASSWORD)

    def _start_relay(self) -> None:
        lab = self.lab
        lab.write(f"{CONFIG}/main.cf", RELAY_MAIN)
        lab.write(f"{CONFIG}/master.cf", RELAY_MASTER)
        # Cyrus SASL's own place for it, which needs no smtpd.conf
        lab.check(["saslpasswd2", "-p", "-c", "-u", RELAY, USER], PASSWORD)
        lab.check(["chown", "-R", "postfix", "/etc/sasldb2", f"{HOME}/data"])
        done = lab.run(
            ["postfix", "-c", CONFIG, "start"],
            where=INTERNET,
            unit="relay.service",
            output="/var/log/relay-start.log",
        )
        if done.returncode:
            raise RuntimeError(lab.path("/var/log/relay-start.log").read_text())
        wait_until(
            lambda: lab.check(["ss", "-Hltn", f"sport = :{PORT}"], where=INTERNET),
            "the relay",
        )

    def _start_sink(self) -> None:
        self._sink = "/mnt/sink.log"
        self.lab.start(
            ["python3", "-m", "tests.mail.sink", SINK4],
            where=INTERNET,
            unit="sink.service",
            output=self._sink,
        )
        wait_until(lambda: self.sink("ready"), "the sink")

    # ---- what is done there

    def write_secret(self, password: str) -> None:
        """Write the password's file as it has to be."""
        self.lab.write(SECRET, password + "\n", mode=0o600)

    def write_table(self, text: str) -> None:
        """Write mail.toml."""
        self.lab.write(TABLE, text)

    def append(self, file: str, text: str) -> None:
        """Add to a file of the host."""
        path = self.lab.path(file)
        path.write_text(path.read_text() + text)

    def guardctl(self, *words: str, text: str | None = None, **options: Any) -> Done:
        """Run guardctl mail; a limit for a host that is very busy."""
        return self.lab.run(["guardctl", "mail", *words], text, timeout=180, **options)

    def does(self, *words: str, **options: Any) -> str:
        """Run what must work: give what it printed."""
        done = self.guardctl(*words, **options)
        assert done.returncode == 0, f"{shlex.join(words)}: {done}"
        return done.stdout

    def postconf(self, *words: str) -> str:
        """Ask or tell the host's postconf."""
        return self.lab.check(["postconf", *words])

    def config(self) -> dict[str, bytes]:
        """Give every file of /etc/postfix but our records, by its name there."""
        top = self.lab.path("/etc/postfix")
        return {
            str(path.relative_to(top)): path.read_bytes()
            for path in sorted(top.rglob("*"))
            if path.is_file() and "state" not in path.parts
        }

    def is_running(self) -> bool:
        """Look for the host's Postfix itself: `postfix status` reads main.cf first."""
        return bool(self.postfix.processes()) and self.postfix.is_listening()

    # ---- what was seen there

    def sink(self, kind: str) -> list[dict[str, Any]]:
        """Give the sink's records of a kind."""
        lines = self.lab.path(self._sink).read_text().splitlines(keepends=True)
        records = [json.loads(x) for x in lines if x[:1] == "{" and x[-1:] == "\n"]
        return [record for record in records if record["kind"] == kind]

    def queue(self) -> list[str]:
        """Give the recipients that wait in the host's queue."""
        lines = self.lab.check(["postqueue", "-j"]).splitlines()
        return [r["address"] for x in lines for r in json.loads(x)["recipients"]]

    def log_of(self, recipient: str, since: int, status: str) -> str:
        """Wait for the line of a recipient's delivery with that status, and give it."""

        def lines() -> list[str]:
            log = self.postfix.log()[since:].splitlines()
            return [x for x in log if f"to=<{recipient}>" in x and "status=" in x]

        def found() -> str:
            return next((x for x in lines() if f"status={status}" in x), "")

        try:
            return wait_until(found, f"{recipient} {status}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.postfix.log()[-4000:]}") from None
