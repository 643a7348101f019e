# SPDX-License-Identifier: GPL-2.0-or-later
"""One process that tries thousands of addresses does not fill the journal."""

from __future__ import annotations

import errno
import socket
from functools import partial

from guard.abi import MANY_BURSTS
from tests.faults.site import Site, policy
from tests.kernel.world import Child

BURST = 5
ADDRESSES = 3000


def try_all(port: int) -> int:
    """Connect to so many addresses of 127/8; gives how often it was denied."""
    denied = 0
    for number in range(ADDRESSES):
        with socket.socket() as client:
            to = (f"127.9.{number >> 8}.{number & 255}", port)
            denied += client.connect_ex(to) == errno.EPERM
    return denied


def test_thousands_of_addresses_are_a_hundred_entries_and_a_sum(site: Site) -> None:
    site.write_policy(policy(site.port, window="2s"))
    guardd = site.start()
    child = Child(partial(try_all, site.port), site.cgroup)
    pid = child.pid
    assert child.finish().value == ADDRESSES
    ledger = site.settled(guardd)
    assert ledger.judged == ledger.accounted == ADDRESSES
    sums = site.entries("summary")
    windows = len(sums)
    assert 1 <= windows <= 5  # on a machine that is slow
    assert sum(ledger.kinds.values()) <= windows * (BURST * MANY_BURSTS + 1) + 10
    for entry in sums:
        who, _, to = entry["MESSAGE"].partition(" -> ")
        assert f"pid {pid} " in who and to.startswith("many destinations, the first")
