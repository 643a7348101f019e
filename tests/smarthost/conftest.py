# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab with a name server, and relays at addresses of its internet."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.lab import Lab, wait_until
from tests.lab.dns import NameServer
from tests.lab.lab import INTERNET, SCRATCH

RELAYS = ("198.51.100.61", "198.51.100.62", "198.51.100.63", "2001:db8:2::61")
ZONE = "example.com"


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
