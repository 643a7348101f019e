# SPDX-License-Identifier: GPL-2.0-or-later
"""Connects that go on and on, and a server that has them all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.backstop.ground import NOBODY
from tests.kernel.world import SMTP, Child, World

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT, the ports are soon back
_PAUSE_SECONDS = 0.0005


class Flow:
    """One process that connects in a loop until it is told to end."""

    def __init__(self, cgroup: Path, to: str, uid: int = 0, port: int = SMTP) -> None:
        """Begin, as a member of this cgroup."""
        self._stop = multiprocessing.Event()
        self._made = multiprocessing.Value("q", 0)
        self._child = Child(lambda: self._loop(to, uid, port), cgroup)
        self._ended: Counter[int] | None = None

    def _loop(self, to: str, uid: int, port: int) -> Counter[int]:
        if uid:
            os.setgroups([])
            os.setuid(uid)
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        seen: Counter[int] = Counter()
        while not self._stop.is_set():
            with socket.socket(family) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.settimeout(5)
                try:
                    sock.connect((to, port))
                    seen[0] += 1
                except OSError as error:
                    seen[error.errno or -1] += 1
            self._made.value += 1
            time.sleep(_PAUSE_SECONDS)  # guardd is to have a share of the CPU
        return seen

    @property
    def made(self) -> int:
        """Count the connects so far."""
        return int(self._made.value)

    def end(self) -> Counter[int]:
        """Stop it, and tell how often each errno came; 0 is connected."""
        if self._ended is None:
            self._stop.set()
            self._ended = self._child.finish().value
        return self._ended


@contextlib.contextmanager
def flows(*places: tuple[Path, str, int]) -> Iterator[list[Flow]]:
    """Have a flow for each of cgroup, MX and uid."""
    made = [Flow(*place) for place in places]
    try:
        yield made
    finally:
        for flow in made:
            flow.end()


@contextlib.contextmanager
def taker(world: World, *addresses: str) -> Iterator[None]:
    """Have a process at the MX that takes and ends each connection at once."""
    stop, stopped = socket.socketpair()
    servers = [world.listen(world.mx, address) for address in addresses]
    for server in servers:
        server.setblocking(False)

    def take() -> None:
        stop.close()
        while stopped not in (ready := select.select([*servers, stopped], [], [])[0]):
            for server in ready:
                with contextlib.suppress(OSError):
                    while True:
                        server.accept()[0].close()

    child = Child(take, None)
    try:
        yield
    finally:
        stop.close()
        for server in servers:
            server.close()
        stopped.close()
        child.finish()


LAWFUL, STRANGER = 0, NOBODY
