# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab host's Postfix: Debian's own, started as its unit starts it.

Without systemd, in the cgroup that systemd would give it. Its files are the
lab's (see lab.py), its configuration is Debian's plus the lines below.
"""

from __future__ import annotations

import uuid

from tests.lab.lab import MX4, MX6, Lab, wait_until

UNIT = "system.slice/system-postfix.slice/postfix@-.service"
LOG = "/var/log/mail.log"
DAEMONS = "/usr/lib/postfix/sbin"
MAIN_CF = f"""\
compatibility_level = 3.6
myhostname = host.example.net
mydestination =
mynetworks_style = host
inet_protocols = all
# A lab has no name server: the next hops stand here and in /etc/hosts.
smtp_host_lookup = native
transport_maps = texthash:/etc/postfix/transport
maillog_file = {LOG}
# What a guarded host is advised to set: the port joins a message to a process.
smtpd_client_port_logging = yes
# One connection a message: each is a question to the guard.
smtp_connection_cache_on_demand = no
# A new process, from the file that is there by then, every few connections.
max_use = 3
# Try again soon: a test waits for it.
minimal_backoff_time = 1s
queue_run_delay = 1s
"""
TRANSPORT = f"""\
example.org smtp:[mx.example.org]
v4.example.org smtp:[{MX4}]
v6.example.org smtp:[{MX6}]
"""


class Postfix:
    """start(), stop(), submit(), and what its log says."""

    def __init__(self, lab: Lab) -> None:
        """Configure, but do not start."""
        self.lab = lab
        self.unit = UNIT
        lab.write("/etc/postfix/main.cf", MAIN_CF)
        lab.write("/etc/postfix/transport", TRANSPORT)
        lab.check(["cp", "/usr/share/postfix/master.cf.dist", "/etc/postfix/master.cf"])
        # The log too: postsuper(8) ends where it cannot write its warnings there.
        lab.write(LOG, "")
        lab.check(["chown", "postfix:postfix", "/var/lib/postfix", LOG])

    def start(self, unit: str = UNIT) -> None:
        """ExecStartPre= and ExecStart= of postfix@-.service, then wait for it.

        unit is the cgroup it is started in; another one is `postfix start` by hand.
        """
        self.unit = unit
        self._do("/usr/lib/postfix/configure-instance.sh", "-")
        self._do("postmulti", "-i", "-", "-p", "start")
        wait_until(self.is_listening, "Postfix on 127.0.0.1:25")

    def stop(self) -> None:
        """ExecStop=, and the end of every process of the unit."""
        self._do("postmulti", "-i", "-", "-p", "stop")
        wait_until(lambda: not self.processes(), "the end of Postfix")

    def processes(self) -> list[int]:
        """Give the PIDs in the unit's cgroup."""
        procs = self.lab.cgroup / self.unit / "cgroup.procs"
        return [int(pid) for pid in procs.read_text().split()] if procs.exists() else []

    def is_listening(self) -> bool:
        """Tell whether somebody listens at port 25 of the host."""
        return bool(self.lab.check(["ss", "-Hltn", "sport = :25"]))

    def submit(
        self, recipient: str = "somebody@example.org", user: str = "root"
    ) -> str:
        """Hand sendmail(1) a message; give the words that mark it."""
        mark = f"mark {uuid.uuid4()}"
        self.lab.check(
            ["sendmail", "-i", "-f", "app@host.example.net", recipient],
            f"Subject: {mark}\n\nhello\n",
            user=user,
            unit="user.slice",
        )
        return mark

    def delivered(self, mark: str, timeout: float = 20) -> dict[str, object]:
        """Wait until the MX has the message with this mark, and give its record.

        Raises TimeoutError with the end of Postfix's log when it does not come.
        """
        try:
            return wait_until(
                lambda: self.lab.mx_saw("message", content=mark), mark, timeout
            )[0]
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log()[-4000:]}") from None

    def log(self) -> str:
        """Give the whole of Postfix's log."""
        log = self.lab.path(LOG)
        return log.read_text(errors="replace") if log.exists() else ""

    def replace_binaries(self) -> None:
        """Do what dpkg does in an upgrade: a new file, renamed over the old one."""
        self.lab.check(
            [
                "sh",
                "-euc",
                "for file in *; do cp -p $file $file.dpkg-new; done\n"
                "for file in *.dpkg-new; do mv $file ${file%.dpkg-new}; done",
            ],
            cwd=DAEMONS,
        )

    def _do(self, *argv: str) -> None:
        # To a file: master(8) inherits a pipe and would keep it open for ever.
        done = self.lab.run(argv, unit=self.unit, output="/var/log/postfix-start.log")
        if done.returncode != 0:
            said = self.lab.path("/var/log/postfix-start.log").read_text()
            raise RuntimeError(f"{argv}: exit {done.returncode}\n{said}\n{self.log()}")
