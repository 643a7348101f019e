# SPDX-License-Identifier: GPL-2.0-or-later
"""A container: a network namespace whose packets the host forwards, or that has an
interface of its own on the host's wire.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from tests.kernel.world import HOST4, HOST6, Done, World, sysctl
from tests.lab.lab import CLONE_NEWNET, setns

# Documentation prefixes as well, RFC 5737 and RFC 3849.
INSIDE4, INSIDE6 = "198.51.100.2", "2001:db8:2::2"
GATE4, GATE6 = "198.51.100.1", "2001:db8:2::1"
NETWORK4, NETWORK6 = "198.51.100.0/24", "2001:db8:2::/64"
ON_WIRE4, ON_WIRE6 = "192.0.2.50", "2001:db8:1::50"

HOST_SIDE = f"""\
link add veth0 type veth peer name eth0 netns {{there}}
addr add {GATE4}/24 dev veth0
addr add {GATE6}/64 dev veth0 nodad
link set veth0 up
"""
INSIDE = f"""\
link set lo up
addr add {INSIDE4}/24 dev eth0
addr add {INSIDE6}/64 dev eth0 nodad
link set eth0 up
route add default via {GATE4}
route add default via {GATE6}
"""
MX_SIDE = f"""\
route replace {NETWORK4} via {HOST4}
route replace {NETWORK6} via {HOST6}
"""
WIRED = f"""\
addr add {ON_WIRE4}/24 dev eth1
addr add {ON_WIRE6}/64 dev eth1 nodad
link set eth1 up
"""


def inside_of(to: str) -> str:
    """Give the container's address of the same family."""
    return INSIDE6 if ":" in to else INSIDE4


class Container:
    """Acts in a namespace of its own, as members of a cgroup."""

    def __init__(self, world: World) -> None:
        """Make it, and routes there and back."""
        self.world = world
        with world.inside(world.host):  # where this thread is again afterwards
            self.netns = world._new_netns()
        there = f"/proc/{os.getpid()}/fd/{self.netns}"
        with world.inside(world.host):
            _ip(HOST_SIDE.format(there=there))
            sysctl("net/ipv4/ip_forward", "1")
            sysctl("net/ipv6/conf/all/forwarding", "1")
        with world.inside(self.netns):
            _ip(INSIDE)
        with world.inside(world.mx):
            _ip(MX_SIDE)

    def wire(self, kind: str) -> None:
        """Give it an interface on the host's wire: macvlan or ipvlan."""
        there = f"/proc/{os.getpid()}/fd/{self.netns}"
        mode = "bridge" if kind == "macvlan" else "l2"
        with self.world.inside(self.world.host):
            _ip(f"link add link host0 name eth1 netns {there} type {kind} mode {mode}")
        with self.world.inside(self.netns):
            _ip(WIRED)

    def act(self, function: Callable[[], Any], cgroup: Any = None) -> Done:
        """Do it inside, by default where the first lock is not."""

        def inside() -> Any:
            setns(self.netns, CLONE_NEWNET)
            return function()

        return self.world.act(inside, cgroup or self.world.free)

    def connect(self, to: str, port: int = 25, cgroup: Any = None, **more: Any) -> Done:
        """Connect from inside; gives what the other end sees of it."""
        return self.act(lambda: connect(to, port, **more), cgroup)

    def close(self) -> None:
        """End it, and what leads there."""
        with self.world.inside(self.world.host):
            _ip("link del veth0")
        os.close(self.netns)


def connect(
    to: str, port: int = 25, mark: int = 0, source: str = ""
) -> tuple[Any, ...]:
    """Connect; gives the socket's own end."""
    with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET) as sock:
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, 36, mark)  # SO_MARK
        if source:
            sock.bind((source, 0))
        sock.settimeout(3)
        sock.connect((to, port))
        return tuple(sock.getsockname()[:2])


@contextlib.contextmanager
def container(world: World) -> Iterator[Container]:
    """Have a container for a while."""
    made = Container(world)
    try:
        yield made
    finally:
        made.close()


def _ip(batch: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
