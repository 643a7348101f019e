# SPDX-License-Identifier: GPL-2.0-or-later
"""A mail host with the package: one of Debian's mail servers, and a way out for it.

For scenarios under systemd. What they run is what apt installed: neither PATH nor
PYTHONPATH leads to the checkout any more, from where only this module is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kernel.world import MX4
from tests.lab.lab import wait_until
from tests.vm.booted import (
    CHECKOUT,
    POLICY,
    mail_exchanger,
    rogue,
    shell,
    who_connected,
)

DEBS = Path("/opt/smtp-guard/dist")
MX_LOG, MX_PEM = Path("/run/mx.log"), Path("/run/mx.pem")
# Sees to itself that it finds what it runs; the last two arguments come later.
MX = (
    "sh",
    "-ec",
    'cd /opt/smtp-guard && exec python3 -B -m tests.lab.mx "$0" "$@" >/run/mx.log',
    str(MX_PEM),
)
HOST = "host.example.net"
# Nothing of these is there once the package is purged.
TRACES = (
    *("/etc/smtp-guard", "/usr/lib/smtp-guard", "/usr/share/smtp-guard"),
    *("/run/smtp-guard", "/var/lib/smtp-guard", "/sys/fs/bpf/smtp-guard"),
    *("/usr/bin/guardctl", "/usr/sbin/guardd"),
    *("/etc/systemd/system/*/smtp-guard*", "/lib/systemd/system/smtp-guard*"),
    "/var/lib/systemd/deb-systemd-helper-enabled/*/smtp-guard*",
)

POSTFIX = f"""\
compatibility_level = 3.6
myhostname = {HOST}
mydestination =
smtp_host_lookup = native
relayhost = [{MX4}]
"""
EXIM = f"""\
dc_eximconfig_configtype='satellite'
dc_readhost='{HOST}'
dc_smarthost='{MX4}'
dc_local_interfaces='127.0.0.1 ; ::1'
dc_hide_mailname='false'
dc_localdelivery='mail_spool'
"""
OPENSMTPD = f"""\
listen on localhost
action "out" relay host "smtp://{MX4}"
match from local for any action "out"
"""


def _postfix() -> None:
    Path("/etc/postfix/main.cf").write_text(POSTFIX)
    shell("cp", "/usr/share/postfix/master.cf.dist", "/etc/postfix/master.cf")
    shell("newaliases")
    shell("systemctl", "daemon-reload")  # its generator reads main.cf
    shell("systemctl", "enable", "postfix.service")
    shell("systemctl", "restart", "postfix.service")


def _exim() -> None:
    Path("/etc/exim4/update-exim4.conf.conf").write_text(EXIM)
    shell("update-exim4.conf")
    shell("systemctl", "restart", "exim4.service")


def _opensmtpd() -> None:
    Path("/etc/smtpd.conf").write_text(OPENSMTPD)
    shell("systemctl", "restart", "opensmtpd.service")


def _sendmail() -> None:
    config = Path("/etc/mail/sendmail.cf")
    relay = re.sub("(?m)^DS.*$", f"DS[{MX4}]", config.read_text())
    config.write_text(relay)
    shell("systemctl", "restart", "sendmail.service")


# Name of the shipped policy: package, how it is told where mail goes.
MAIL_SERVERS: dict[str, tuple[str, Callable[[], None]]] = {
    "postfix": ("postfix", _postfix),
    "exim": ("exim4-daemon-light", _exim),
    "opensmtpd": ("opensmtpd", _opensmtpd),
    "sendmail": ("sendmail", _sendmail),
}


def leave_the_checkout() -> None:
    """From here on run what apt installed."""
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    os.environ.pop("PYTHONPATH", None)
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"


@contextlib.contextmanager
def mail_host() -> Iterator[None]:
    """Be a host with a name, no name server, and an MX that takes every message."""
    leave_the_checkout()
    shell("hostname", HOST)
    Path("/etc/mailname").write_text(f"{HOST}\n")
    # sendmail(8) asks for the names of recipients, wherever their mail goes.
    names = f"127.0.0.1 {HOST} localhost\n::1 localhost\n{MX4} example.org\n"
    Path("/etc/hosts").write_text(names)
    lookup = Path("/etc/nsswitch.conf")
    lookup.write_text(re.sub("(?m)^hosts:.*$", "hosts: files", lookup.read_text()))
    shell(
        *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
        *("-pkeyopt", "ec_paramgen_curve:P-256"),  # rsa takes long under emulation
        *("-subj", "/CN=mx.example.org", "-keyout", MX_PEM, "-out", f"{MX_PEM}.crt"),
    )
    with MX_PEM.open("ab") as pem:
        pem.write(Path(f"{MX_PEM}.crt").read_bytes())
    with mail_exchanger(*MX):
        yield


def apt(*words: str | Path) -> str:
    """Change what is installed; give what apt and the packages' scripts said."""
    argv = ["apt-get", "-qy", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"]
    return shell(*argv, *words)


def install(version: str, *options: str) -> str:
    """Do as the README says, with the package of one version."""
    (deb,) = DEBS.glob(f"smtp-guard_{version}_*.deb")
    said = apt("install", *options, deb)
    print(said)
    return said


def have(server: str) -> None:
    """Install a mail server of MAIL_SERVERS, in the place of any other."""
    package, configure = MAIL_SERVERS[server]
    known = ("dpkg-query", "-W", "-f", "${db:Status-Status}", package)
    if subprocess.run(known, capture_output=True).stdout != b"installed":
        apt("install", package)
    configure()


def mail_goes_out() -> None:
    """Hand sendmail(1) a message, and wait until the MX has it."""
    mark = f"mark {uuid.uuid4()}"
    subprocess.run(
        ["sendmail", "-i", "-f", f"app@{HOST}", "somebody@example.org"],
        input=f"Subject: {mark}\n\nhello\n",
        text=True,
        check=True,
    )
    try:
        wait_until(lambda: mark in MX_LOG.read_text(), mark, 120)
    except TimeoutError as error:
        last = shell("journalctl", "--lines=40", "--no-pager")
        raise TimeoutError(f"{error}\n{last}") from None


def planned() -> list[str]:
    """Give the units that `guardctl plan` would deny."""
    argv = ["guardctl", "plan", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode in (0, 1), done
    return [str(json.loads(line)["unit"]) for line in done.stdout.splitlines()]


def enforced() -> str:
    """Give the policy that was installed, as an admin has it after some days."""
    text = POLICY.read_text()
    assert text.count('\nmode = "observe"') == 1
    return text.replace('\nmode = "observe"', '\nmode = "enforce"')


def enforce() -> None:
    """Put that in force."""
    POLICY.write_text(enforced())
    print(shell("guardctl", "policy", "apply"))


def own_tests() -> None:
    """Run debian/tests as autopkgtest(1) would: to it, words on stderr are failures."""
    folder = CHECKOUT / "debian/tests"
    (names,) = re.findall("(?m)^Tests: (.*)$", (folder / "control").read_text())
    for name in names.split():
        done = subprocess.run([folder / name], capture_output=True, text=True)
        print(done.stdout)
        assert done.returncode == 0 and not done.stderr, done


def observed_then_enforced(server: str, version: str) -> None:
    """Install beside a mail server: it delivers all along, and a rogue is found out."""
    install(version)
    assert f'\ninclude = ["{server}"]\n' in POLICY.read_text()
    for name in ("smtp-guard-load", "smtp-guard"):
        shell("systemctl", "is-active", f"{name}.service")
        shell("systemctl", "is-enabled", f"{name}.service")
    own_tests()
    earlier = set(planned())  # rogues beside another mail server: the journal stays
    mail_goes_out()
    assert set(planned()) == earlier, "nothing that the mail server does"
    observed, denied = f"observed-{server}", f"denied-{server}"
    assert rogue(observed) == 0, "observe mode denies nothing"
    wait_until(lambda: f"{observed}.service" in planned(), "it in the plan", 60)
    enforce()
    mail_goes_out()
    assert rogue(denied) == errno.EPERM
    (found,) = who_connected("--verdict", "deny", "--unit", f"{denied}.service")
    assert found["dst"] == {"addr": MX4, "port": 25}
    assert found["exe"] == os.path.realpath(sys.executable)


def removed_then_purged() -> None:
    """Removing opens the host, and says so in the journal; purging forgets it."""
    apt("remove", "smtp-guard")
    assert rogue("after") == 0, "removed, the host is open"
    assert "guard unloaded" in shell("journalctl", "--boot", "--no-pager")
    assert POLICY.exists(), "what the admin wrote is not removed"
    assert "smtp" not in shell("nft", "list", "tables")
    apt("purge", "smtp-guard")
    left = [path for trace in TRACES for path in Path("/").glob(trace[1:])]
    assert not left, left
