# SPDX-License-Identifier: GPL-2.0-or-later
"""Interfaces, whatever they are called: none may pass for another."""

from __future__ import annotations

import errno
import os
import socket
import subprocess

import pytest

from tests.backstop.container import connect
from tests.backstop.ground import Ground, policy
from tests.kernel.world import HOST4, HOST6, World

# To python-iptables 1.0.1 and IPv6 the first three are "lo"; the last are as
# long as a name can be (IFNAMSIZ), or would need quotes elsewhere.
NAMES = ["tun0", "bond0", "venet0", "abcdefghijklmno", "eth0.7@x-1_"]
ENDS = {"203.0.113.2": "203.0.113.3", "2001:db8:7::2": "2001:db8:7::3"}


def _pair(world: World, name: str) -> None:
    """Join the hosts once more, by an interface of this name."""

    there = f"/proc/{os.getpid()}/fd/{world.mx}"
    lines = [f"link add name {name} type veth peer name mx1 netns {there}"]
    lines += [f"link set {name} up"]
    with world.inside(world.host):
        for here in ENDS:
            bits = "/64 nodad" if ":" in here else "/24"
            head, _, rest = bits.partition(" ")
            lines.append(f"addr add {here}{head} dev {name} {rest}")
        _ip(lines)
    with world.inside(world.mx):
        lines = ["link set mx1 up"]
        for there in ENDS.values():
            bits = "/64 nodad" if ":" in there else "/24"
            head, _, rest = bits.partition(" ")
            lines.append(f"addr add {there}{head} dev mx1 {rest}")
        _ip(lines)


def _ip(lines: list[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


@pytest.mark.parametrize("name", NAMES)
def test_none_is_taken_for_another(standing: Ground, name: str) -> None:
    world = standing.world
    _pair(world, name)
    try:
        with world.serve(world.mx, *ENDS.values()), standing.found() as found:
            for there in ENDS.values():
                assert standing.free(lambda to=there: connect(to)).errno == (
                    errno.ECONNREFUSED
                )
        assert [one.dst for one in found] == [(to, 25) for to in ENDS.values()]
    finally:
        _ip([f"link del {name}"])


def test_each_name_can_be_an_uplink(ground: Ground) -> None:
    names = ", ".join(f'"{name}"' for name in NAMES)
    _ip(
        [
            f"link add name {name} type veth peer name peer{number}"
            for number, name in enumerate(NAMES)
        ]
    )
    ground.start(policy(ground.kind, backstop=f"uplinks = [{names}]\n"))
    state = ground.ctl("verify", "--json").stdout
    assert f"in force, by {ground.kind}" in state


def test_loopback_is_left_alone(standing: Ground) -> None:
    """Also by addresses of this host's other interfaces, which lead there as well."""
    world = standing.world
    local = ("127.0.0.1", "::1", HOST4, HOST6)
    with world.serve(world.host, *local), standing.found() as found:
        for to in local:
            assert standing.free(lambda to=to: connect(to)).errno == 0
        assert standing.free(lambda: connect("::ffff:127.0.0.1")).errno == 0
        with socket.socket() as sock:
            assert sock.connect_ex((HOST4, 25)) == 0
    assert not found
