# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab with a name server, and relays at addresses of its internet."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Lab, Postfix, wait_until
from tests.lab.dns import NameServer
from tests.lab.guarded import Guard, start_journald, start_resolver
from tests.lab.lab import INTERNET, SCRATCH
from tests.lab.postfix import MAIN_CF

RELAYS = ("198.51.100.61", "198.51.100.62", "198.51.100.63", "2001:db8:2::61")
ZONE = "example.com"
POLICY = """\
mode = "enforce"
include = ["postfix-smart-host"]

[[rule]]
name = "client"
user = "mail"
to = "smart-host"
verdict = "allow"
"""
CONNECT = """\
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
assert s.recv(3) == b"220"
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        for address in RELAYS:
            argv = ["ip", "addr", "add", address, "dev", "lo"]
            lab.check(argv + ["nodad"] * (":" in address), where=INTERNET)
        lab.start(
            [sys.executable, "-m", "tests.lab.mx", f"{SCRATCH}/mx.pem", *RELAYS],
            where=INTERNET,
            unit="relays.service",
            output=f"{SCRATCH}/mx.log",
        )
        wait_until(lambda: len(lab.mx_saw("ready")) == 2, "the relays")
        yield lab


@pytest.fixture(scope="module")
def dns(lab: Lab) -> NameServer:
    server = NameServer(lab)
    server.set(ZONE, "relay 4 IN A 198.51.100.61\n")
    return server


def start_postfix(lab: Lab, relayhost: str) -> Postfix:
    """Have all mail leave by this relay, whose name DNS knows."""
    postfix = Postfix(lab)
    main_cf = re.sub(r"(?m)^(smtp_host_lookup|transport_maps).*\n", "", MAIN_CF)
    lab.write("/etc/postfix/main.cf", f"{main_cf}relayhost = {relayhost}\n")
    postfix.start()
    return postfix


@contextlib.contextmanager
def guarding(lab: Lab, *relays: str) -> Iterator[Guard]:
    """Have a guardd that has looked up these addresses."""
    start_journald(lab)
    guard = Guard(lab, POLICY)
    guard.start()
    start_resolver(lab)
    wait_until(lambda: addresses(guard) == [*relays], "the first answer")
    yield guard
    guard.stop()


# ---- what a test asks


def status(guard: Guard) -> dict[str, Any]:
    done = guard.ctl("status", "--json")
    assert done.returncode == 0, done
    about: dict[str, Any] = json.loads(done.stdout)["smart_host"]
    return about


def addresses(guard: Guard) -> list[str]:
    return list(status(guard)["addresses"])


def connect(lab: Lab, address: str, port: int = 25, **options: Any) -> str:
    """Connect and be greeted, as user mail; gives "", or the reason why not."""
    argv = ["python3", "-c", CONNECT, address, str(port)]
    done = lab.run(argv, **{"user": "mail", "unit": "user.slice", **options})
    return "" if done.returncode == 0 else done.stderr.splitlines()[-1]


def in_force(lab: Lab, address: str, allowed: bool) -> None:
    """Wait until the kernel's verdict on an address is this."""
    want = "" if allowed else "PermissionError: [Errno 1] Operation not permitted"
    wait_until(lambda: connect(lab, address) == want, f"{address}: {want or 'allowed'}")
