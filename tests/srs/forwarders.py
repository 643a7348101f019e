# SPDX-License-Identifier: GPL-2.0-or-later
"""Mail hosts that forward: each a Postfix with address, name and postsrsd of its own.

All on the lab's host, as instances of its Postfix (postmulti(1)); the name server is
the lab's, so MX and SPF are looked up as anywhere.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from tests.lab import Lab, wait_until
from tests.lab.dns import NameServer
from tests.lab.lab import MX4

ORIGIN = "198.51.100.71"  # in the internet: the only one that origin.example names
ADDRESSES = {
    "f1.example": "192.0.2.11",
    "f2.example": "192.0.2.12",
    "f3.example": "192.0.2.13",
    "final.example": "192.0.2.14",
}
# What docs/srs.md advises, and what the documentation of postsrsd has instead.
SRS_MAIN = """\
recipient_canonical_maps = tcp:127.0.0.1:{reverse}
recipient_canonical_classes = envelope_recipient,header_recipient
"""
EVERYTHING = """\
sender_canonical_maps = tcp:127.0.0.1:{forward}
sender_canonical_classes = envelope_sender
"""
MAIN_CF = """\
compatibility_level = 3.6
queue_directory = /srv/{name}/spool
data_directory = /srv/{name}/lib
myhostname = {name}
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = {address}
smtp_bind_address = {address}
inet_protocols = ipv4
smtpd_peername_lookup = no
maillog_file = /var/log/{name}.log
minimal_backoff_time = 1s
queue_run_delay = 1s
"""


def zones(dns: NameServer) -> None:
    """Serve each host's MX, and an SPF record that names it and nobody else."""
    for name, address in ADDRESSES.items():
        records = f"@ IN MX 10 mail\nmail IN A {address}\n@ IN A {address}\n"
        dns.set(name, f'{records}@ IN TXT "v=spf1 ip4:{address} -all"')
    records = f"@ IN MX 10 mail\nmail IN A {MX4}\n"
    dns.set("origin.example", f'{records}@ IN TXT "v=spf1 ip4:{ORIGIN} -all"')


class Forwarder:
    """One mail host."""

    def __init__(
        self, lab: Lab, name: str, main_cf: str = "", srs: str | None = None
    ) -> None:
        """Configure it, and start its postsrsd, if srs (lines of main.cf) is given."""
        self.lab, self.name, self.address = lab, name, ADDRESSES[name]
        self.folder = f"/etc/postfix-{name}"
        self.log_file = f"/var/log/{name}.log"
        number = int(self.address.rpartition(".")[2])
        self.ports = {"forward": 10_000 + number, "reverse": 11_000 + number}
        self.secret = f"/srv/{name}.secret"
        text = MAIN_CF.format(name=name, address=self.address) + main_cf
        text += (srs or "").format(**self.ports)
        lab.write(f"{self.folder}/main.cf", text)
        lab.check(
            ["cp", "/usr/share/postfix/master.cf.dist", f"{self.folder}/master.cf"]
        )
        lab.check(["mkdir", "-p", f"/srv/{name}/spool", f"/srv/{name}/lib"])
        lab.write(self.log_file, "")
        lab.check(["chown", "postfix:postfix", f"/srv/{name}/lib", self.log_file])
        self.postconf("-F", "*/*/chroot=n")
        if srs is not None:
            self._start_postsrsd()

    def _start_postsrsd(self) -> None:
        self.lab.write(self.secret, f"the secret of {self.name}\n", 0o600)
        self.lab.start(
            ["postsrsd", f"-s{self.secret}", f"-d{self.name}", "-l127.0.0.1", "-n8"]
            + [f"-f{self.ports['forward']}", f"-r{self.ports['reverse']}"],
            unit="system.slice/postsrsd.service",
            output=f"/var/log/postsrsd-{self.name}.log",
        )
        port = self.ports["reverse"]
        ask = ["ss", "-Hltn", f"sport = :{port}"]
        wait_until(lambda: self.lab.check(ask), "postsrsd")

    def only_what_comes_from_elsewhere(self) -> None:
        """Rewrite what smtpd(8) takes at port 25, and nothing else: docs/srs.md."""
        maps = f"sender_canonical_maps=tcp:127.0.0.1:{self.ports['forward']}"
        self.postconf(
            "-M",
            "cleanup-srs/unix=cleanup-srs unix n - n - 0 cleanup"
            f" -o {maps} -o sender_canonical_classes=envelope_sender",
        )
        self.postconf("-P", "smtp/inet/cleanup_service_name=cleanup-srs")

    def postconf(self, *argv: str) -> None:
        """Run postconf(1) on this instance."""
        self.lab.check(["postconf", "-c", self.folder, *argv])

    def do(self, *argv: str) -> None:
        """postfix(1): start, reload. To a file: master(8) keeps what it inherits."""
        done = self.lab.run(
            ["postfix", "-c", self.folder, *argv],
            unit=f"system.slice/postfix-{self.name}.service",
            output="/var/log/postfix-start.log",
            timeout=120,
        )
        if done.returncode != 0:
            said = self.lab.path("/var/log/postfix-start.log").read_text()
            raise RuntimeError(f"{argv}: {said}\n{self.log()}")

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.do("start")
        ask = ["ss", "-Hltn", f"src = {self.address}:25"]
        wait_until(lambda: self.lab.check(ask), f"{self.name} at port 25")

    def log(self) -> str:
        """Give its mail log."""
        return self.lab.path(self.log_file).read_text(errors="replace")

    def sendmail(self, text: str, *argv: str, user: str = "www-data") -> None:
        """Hand a message to sendmail(1) of this instance."""
        done = self.lab.run(
            ["sendmail", "-C", self.folder, "-i", *argv], text, user=user
        )
        assert done.returncode == 0, done


def instances(lab: Lab, names: Mapping[str, str]) -> None:
    """Have the host's own main.cf know them, and their addresses on its interface."""
    folders = ",".join(f"/etc/postfix-{name}" for name in names)
    lab.write(
        "/etc/postfix/main.cf",
        f"compatibility_level = 3.6\nalternate_config_directories = {folders}\n",
    )
    lab.check(["cp", "/usr/share/postfix/master.cf.dist", "/etc/postfix/master.cf"])
    for address in names.values():
        lab.check(shlex.split(f"ip addr add {address}/24 dev host0"))


def policyd_spf(final: Forwarder) -> None:
    """Have Debian's postfix-policyd-spf-python judge what final takes, and refuse."""
    final.postconf(
        "-M",
        "policyd-spf/unix=policyd-spf unix - n n - 0 spawn"
        " user=nobody argv=/usr/bin/policyd-spf",
    )
    final.lab.write(
        "/etc/postfix-policyd-spf-python/policyd-spf.conf",
        "debugLevel = 1\nTestOnly = 1\nHELO_reject = False\n"
        "Mail_From_reject = Fail\nPermError_reject = False\n"
        "TempError_Defer = False\nskip_addresses = 127.0.0.0/8\n",
    )
