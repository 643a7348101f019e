# SPDX-License-Identifier: GPL-2.0-or-later
"""More packets than can be told: all of them are counted, few of them journalled."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter

from guard.finding import Kind
from tests.backstop.ground import Ground, policy
from tests.backstop.packets import IPPROTO_RAW, Syn
from tests.journald import until
from tests.kernel.world import MX4, SMTP

# The socket holds 4 MiB; a packet of 160 bytes with its head takes about 1 KiB there.
MORE_THAN_IT_HOLDS = 30_000
FEW = 50  # entries of the journal that a flood may take


def flood(to: str, count: int, ports: int) -> None:
    """Send so many first packets, from so many ports in turn."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    packets = [Syn(to, 30000 + number).whole() for number in range(ports)]
    with socket.socket(family, socket.SOCK_RAW, IPPROTO_RAW) as sock:
        for number in range(count):
            with contextlib.suppress(PermissionError):  # so nftables tells of it
                sock.sendto(packets[number % ports], (to, 0))


def books(ground: Ground) -> Counter[str]:
    """Count what guardd told of packets to the MX's port 25."""
    told: Counter[str] = Counter()
    for kind in (Kind.BACKSTOP, Kind.SUMMARY):
        for one in ground.all_findings(kind):
            told[kind.value] += one.count
            told["entries"] += 1
    for entry in ground.lost():
        told["lost"] += int(str(entry["SMTPGUARD_BACKSTOP"]))
        told["entries"] += 1
    told["packets"] = told["backstop"] + told["summary"] + told["lost"]
    return told


def test_a_flood_is_folded_and_every_packet_counted(ground: Ground, mx: str) -> None:
    ground.start(policy(ground.kind, window="2s"))
    count = 20_000
    assert ground.free(lambda: flood(mx, count, 1)).errno == 0
    until(lambda: books(ground)["packets"] >= count, "all packets told")
    told = books(ground)
    assert told["packets"] == count and told["summary"]
    assert told["entries"] < FEW, told


def test_what_a_stopped_guardd_does_not_read_is_counted(
    ground: Ground, mx: str
) -> None:
    guardd = ground.start(policy(ground.kind, window="2s"))
    with guardd.paused():
        assert ground.free(lambda: flood(mx, MORE_THAN_IT_HOLDS, 100)).errno == 0
    total = MORE_THAN_IT_HOLDS
    until(lambda: books(ground)["packets"] >= total, "all packets told")
    # and those that follow are not counted twice
    assert ground.free(lambda: flood(mx, 10, 10)).errno == 0
    total += 10
    until(lambda: books(ground)["packets"] >= total, "all packets told")
    told = books(ground)
    assert told["packets"] == total, told
    assert told["lost"] and told["backstop"] and told["summary"]
    assert told["entries"] < FEW, told


def test_a_flood_to_ever_other_ends_does_not_keep_guardd_from_its_work(
    ground: Ground,
) -> None:
    """Each one is an identity of its own: by no fold, but by their number alone."""
    count = 3000
    guardd = ground.start(policy(ground.kind, window="5s"))

    def spray() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, IPPROTO_RAW) as sock:
            for number in range(count):
                to = f"203.0.113.{number % 250 + 1}"
                with contextlib.suppress(PermissionError):
                    sock.sendto(Syn(to, 20000 + number, SMTP).whole(), (MX4, 0))

    assert ground.free(spray).errno == 0
    ticks = len(guardd.messages)
    guardd.until(lambda: len(guardd.messages) > ticks + 1, "two more ticks", 10)
    until(lambda: books(ground)["packets"] >= count, "all packets told", 60)
    assert books(ground)["packets"] == count
