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
# One that hands all to the mail server on port 25, as whoever wrote it says.
EXIM_RELAY_CONF = """\
primary_hostname = host.example.net
spool_directory = /srv/exim/spool
log_file_path = /var/log/exim4/%slog
untrusted_set_sender = *
keep_environment =
never_users =
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = smtp
begin transports
smtp:
  driver = smtp
"""


def unpack(lab: Lab, cache: Path, *packages: str) -> None:
    """Have the files of these packages in the lab; skips where there are none."""
    if why := _unpacked(lab, cache, packages):
        pytest.skip(f"no packages to be had: {why}")
    _lay_over(lab)


def _unpacked(lab: Lab, cache: Path, packages: tuple[str, ...]) -> str:
    """Unpack them beside; gives why not."""
    if why := _downloaded(cache, packages):
        # lists may be so old that the files they name are gone
        subprocess.run(["apt-get", "-q", "update"], capture_output=True)
        if why := _downloaded(cache, packages):
            return why
    lab.check(["mkdir", "-p", "/srv/others"])
    for package in cache.glob("*.deb"):
        lab.check(["dpkg-deb", "-x", str(package), "/srv/others"])
    return ""


def _downloaded(cache: Path, packages: tuple[str, ...]) -> str:
    done = subprocess.run(
        ["apt-get", "download", "-o", "APT::Sandbox::User=root", *packages],
        cwd=cache,
        capture_output=True,
        text=True,
    )
    return f"apt-get download: {done.stderr[-300:]}" if done.returncode else ""


def _lay_over(lab: Lab) -> None:
    over = "lowerdir=/srv/others/usr:/usr"
    lab.check(["mount", "-t", "overlay", "-o", over, "overlay", "/usr"])


def relays(lab: Lab, cache: Path) -> bool:
    """Have nullmailer and Exim beside Postfix, which keeps its sendmail(1).

    Before Postfix is started; False: their packages are not to be had.
    """
    if _unpacked(lab, cache, ("exim4-daemon-light", "exim4-base", "nullmailer")):
        return False
    for name in ("sbin/sendmail", "bin/mailq", "bin/newaliases", "lib/sendmail"):
        lab.path(f"/srv/others/usr/{name}").unlink(missing_ok=True)
    _lay_over(lab)
    # what lay over /usr before, and Postfix's part of /var/spool
    lab.check(["mount", "--bind", "/mnt/usr/lib/postfix", "/usr/lib/postfix"])
    lab.check(["mkdir", "-p", "/srv/spool/postfix"])
    lab.check(["mount", "--bind", "/var/spool/postfix", "/srv/spool/postfix"])
    lab.check(["mount", "--rbind", "/srv/spool", "/var/spool"])
    return True


def account(lab: Lab, name: str, number: int) -> None:
    """Make an account in the lab's own /etc."""
    for file, line in (
        ("passwd", f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin"),
        ("group", f"{name}:x:{number}:"),
    ):
        path = lab.path(f"/etc/{file}")
        if f"\n{name}:" not in path.read_text():
            path.write_text(f"{path.read_text()}{line}\n")


def relay_by_exim(lab: Lab, configuration: str = EXIM_RELAY_CONF) -> None:
    """Have Exim hand on what its sendmail(1) is given."""
    account(lab, "Debian-exim", 64110)
    lab.write("/etc/exim4/exim4.conf", configuration)
    lab.check(["install", "-d", "-o", "Debian-exim", "/srv/exim/spool"])
    lab.check(["install", "-d", "-o", "Debian-exim", "/var/log/exim4"])


def start_exim(lab: Lab) -> None:
    """Start Exim's daemon on port 25, and wait until it listens."""
    relay_by_exim(lab, EXIM_CONF)
    lab.start(["exim4", "-bdf"], unit=EXIM_UNIT, output="/mnt/exim.log")
    wait_until(
        lambda: lab.check(["ss", "-Hltn", "sport = :25"]).count("\n") == 2,
        "Exim on port 25",
    )


def start_nullmailer(lab: Lab) -> None:
    """Start nullmailer's daemon, which forwards to the host's own port 25."""
    lab.check(["mkdir", "-p", "/srv/spool"])
    lab.check(["mount", "--bind", "/srv/spool", "/var/spool"])
    relay_by_nullmailer(lab)


def relay_by_nullmailer(lab: Lab) -> None:
    """Likewise, where /var/spool is the lab's own already."""
    lab.write("/etc/mailname", "host.example.net\n")
    lab.write("/etc/nullmailer/remotes", "127.0.0.1 smtp --port=25\n")
    spool = "/var/spool/nullmailer"
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
