# SPDX-License-Identifier: GPL-2.0-or-later
"""Other mail programs in a lab: Debian's own packages, unpacked, at their usual paths.

They conflict with Postfix's package, so they are not installed: an overlay in the
lab's mount namespace lays their files over its /usr, and is gone with the lab.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.lab import Lab, wait_until

EXIM_LOG = "/var/log/exim4/mainlog"
EXIM_UNIT = "system.slice/exim4.service"
NULLMAILER_UNIT = "system.slice/nullmailer.service"
EXIM_CONF = """\
primary_hostname = host.example.net
spool_directory = /srv/exim/spool
log_file_path = /var/log/exim4/%slog
# What docs/postfix.md advises.
log_selector = +incoming_port
local_interfaces = <; 127.0.0.1 ; ::1
acl_smtp_rcpt = accept
acl_smtp_data = accept
keep_environment =
never_users =
# Nothing is delivered: who sent it is told when it is taken.
queue_only
begin routers
begin transports
"""


def unpack(lab: Lab, cache: Path, *packages: str) -> None:
    """Have the files of these packages in the lab; skips where there are none."""
    done = subprocess.run(
        ["apt-get", "download", "-o", "APT::Sandbox::User=root", *packages],
        cwd=cache,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no packages to be had: apt-get download: {done.stderr[-300:]}")
    lab.check(["mkdir", "-p", "/srv/others"])
    for package in cache.glob("*.deb"):
        lab.check(["dpkg-deb", "-x", str(package), "/srv/others"])
    over = "lowerdir=/srv/others/usr:/usr"
    lab.check(["mount", "-t", "overlay", "-o", over, "overlay", "/usr"])


def account(lab: Lab, name: str, number: int) -> None:
    """Make an account in the lab's own /etc."""
    for file, line in (
        ("passwd", f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin"),
        ("group", f"{name}:x:{number}:"),
    ):
        path = lab.path(f"/etc/{file}")
        if f"\n{name}:" not in path.read_text():
            path.write_text(f"{path.read_text()}{line}\n")


def start_exim(lab: Lab) -> None:
    """Start Exim's daemon on port 25, and wait until it listens."""
    account(lab, "Debian-exim", 64110)
    lab.write("/etc/exim4/exim4.conf", EXIM_CONF)
    lab.check(["install", "-d", "-o", "Debian-exim", "/srv/exim/spool"])
    lab.check(["install", "-d", "-o", "Debian-exim", "/var/log/exim4"])
    lab.start(["exim4", "-bdf"], unit=EXIM_UNIT, output="/mnt/exim.log")
    wait_until(
        lambda: lab.check(["ss", "-Hltn", "sport = :25"]).count("\n") == 2,
        "Exim on port 25",
    )


def start_nullmailer(lab: Lab) -> None:
    """Start nullmailer's daemon, which forwards to the host's own port 25."""
    lab.write("/etc/mailname", "host.example.net\n")
    lab.write("/etc/nullmailer/remotes", "127.0.0.1 smtp --port=25\n")
    spool = "/var/spool/nullmailer"
    lab.check(["mkdir", "-p", "/srv/spool"])
    lab.check(["mount", "--bind", "/srv/spool", "/var/spool"])
    own = ["-o", "mail", "-g", "mail"]  # as nullmailer-queue is, which is set-user-id
    folders = [f"{spool}{name}" for name in ("", "/queue", "/tmp", "/failed")]
    lab.check(["install", "-d", *own, *folders])
    lab.check(["mkfifo", "-m", "622", f"{spool}/trigger"])
    lab.check(["chown", "mail:mail", f"{spool}/trigger"])
    lab.start(
        ["/usr/sbin/nullmailer-send"],
        user="mail",
        unit=NULLMAILER_UNIT,
        output="/mnt/nullmailer.log",
    )
