# SPDX-License-Identifier: GPL-2.0-or-later
"""For scenarios with systemd: a network, guardd and rogues as units of its own.

The guest is the test's, so here the guard is where a mail host has it: at the root
of the cgroup tree, under its usual pins, in the guest's own journal.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kernel.world import HOST_NETWORK, MX4, MX6, MX_NETWORK
from tests.lab.lab import wait_until

UNITS = Path("/run/systemd/system")
SINK = ("/opt/smtp-guard/tests/vm/inside/sink",)
POLICY = Path("/etc/smtp-guard/policy.toml")
CHECKOUT = Path(__file__).resolve().parents[2]
LOAD, SERVICE = "smtp-guard-load.service", "smtp-guard.service"
NAMES, NAMES_PATH = "smtp-guard-names.service", "smtp-guard-names.path"
PROGRAMS = {"guardd": Path("/usr/sbin/guardd"), "guardctl": Path("/usr/bin/guardctl")}
INSTALLED = {
    LOAD: f"systemd/system/{LOAD}",
    SERVICE: f"systemd/system/{SERVICE}",
    NAMES: f"systemd/system/{NAMES}",
    NAMES_PATH: f"systemd/system/{NAMES_PATH}",
    "smtp-guard.sysusers": "sysusers.d/smtp-guard.conf",
    "smtp-guard.tmpfiles": "tmpfiles.d/smtp-guard.conf",
    "smtp-guard-postfix.tmpfiles": "tmpfiles.d/smtp-guard-postfix.conf",
    "smtp-guard.catalog": "systemd/catalog/smtp-guard.catalog",
}
ENFORCE = 'mode = "enforce"\n'
GUARDD = f"""\
[Service]
Type=notify
NotifyAccess=all
ExecStart=/opt/smtp-guard/tests/vm/inside/guardd --policy {POLICY}
ExecReload=kill -HUP $MAINPID
"""
ROGUE = f"""\
import socket
with socket.socket() as client:
    raise SystemExit(client.connect_ex(("{MX4}", 25)))
"""


def shell(*argv: str | Path) -> str:
    """Run a program that must end with 0, and give what it printed."""
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{argv} ended with {done.returncode}\n{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def mail_exchanger(*server: str) -> Iterator[None]:
    """Have another host, a namespace, that takes connections to port 25.

    server is a program with its arguments, given MX4 and MX6; without one every
    connection is taken and closed.
    """
    shell("ip", "netns", "add", "mx")
    network("ip", HOST_NETWORK.format(mx="mx"))
    network("ip -n mx", MX_NETWORK)
    with listening("nsenter", "--net=/run/netns/mx", *(server or SINK), MX4, MX6):
        wait_until(lambda: listeners("mx") >= {MX4, MX6}, "the other host", 60)
        yield


@contextlib.contextmanager
def listening(*server: str) -> Iterator[None]:
    """Run a server until the end."""
    process = subprocess.Popen(server, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def network(ip: str, batch: str) -> None:
    """Run lines of ip(8)."""
    subprocess.run([*ip.split(), "-b", "-"], input=batch, text=True, check=True)


def listeners(netns: str = "") -> set[str]:
    """Give the addresses of this or another namespace whose port 25 is open."""
    inside = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
    lines = shell(*inside, "ss", "-Hltn", "sport", "=", "25").splitlines()
    return {line.split()[3].rpartition(":")[0].strip("[]") for line in lines}


def unit(name: str, text: str) -> None:
    """Write a unit for this boot."""
    UNITS.mkdir(parents=True, exist_ok=True)
    (UNITS / name).write_text(text)
    shell("systemctl", "daemon-reload")


def install(policy: str = ENFORCE) -> None:
    """Have the units as a package leaves them, not enabled and not started."""
    for name in ("guardd", "guardctl"):
        program = PROGRAMS[name]
        shutil.copy(CHECKOUT / "tests/vm/inside" / name, program)
        program.chmod(0o755)
    lib = Path("/usr/lib")
    for name, target in INSTALLED.items():
        (lib / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / "units" / name, lib / target)
    POLICY.parent.mkdir(exist_ok=True)
    POLICY.write_text(policy)
    shell("systemd-sysusers", "smtp-guard.conf")
    shell("systemd-tmpfiles", "--create", "smtp-guard.conf")
    shell("journalctl", "--update-catalog")
    shell("systemctl", "daemon-reload")


def start_guardd(policy: str = ENFORCE) -> None:
    """Put a policy in force, with guardd as systemd starts it."""
    POLICY.parent.mkdir(exist_ok=True)
    POLICY.write_text(policy)
    unit("smtp-guard.service", GUARDD)
    shell("systemctl", "start", "smtp-guard.service")


def in_unit(name: str, *argv: str | Path, user: str = "root") -> int:
    """Run a program in a unit of its own, to its end; give its exit status."""
    how = ["systemd-run", "--quiet", "--wait", "--collect", f"--uid={user}"]
    return subprocess.run([*how, f"--unit={name}.service", *argv]).returncode


def rogue(name: str, first: str = "", user: str = "root") -> int:
    """Connect to MX4 in a unit of its own; give the errno, 0 is a connection.

    first is Python to run before.
    """
    program = UNITS / f"{name}.py"
    UNITS.mkdir(parents=True, exist_ok=True)
    program.write_text(first + ROGUE)
    return in_unit(name, sys.executable, program, user=user)


def who_connected(*options: str) -> list[dict[str, Any]]:
    """Ask guardctl until it has an answer, and give its findings."""

    def ask() -> list[dict[str, Any]]:
        argv = ["guardctl", "who-connected", "--json", *options]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode in (0, 1), done  # 1: nothing found
        return [json.loads(line) for line in done.stdout.splitlines()]

    return wait_until(ask, f"an answer to who-connected {options}", 60)
