# SPDX-License-Identifier: GPL-2.0-or-later
"""Who made a raw socket is known after both are gone; other sockets pay nothing."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from guard.abi import Counter
from guard.kernel import Guard
from guard.makers import Kept, MadeSocket, Makers
from guard.tables import KEY0
from tests.kernel.world import MX4, MX6, World

KEPT = 256  # sockets that were closed
OPEN = 1024  # those that are open, and have room beside them
RAW = ((socket.AF_INET, MX4), (socket.AF_INET6, MX6))


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def make(family: int, number: int = 1) -> None:
    for _ in range(number):
        socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP).close()


@pytest.fixture
def makers(guard: Guard) -> Iterator[Makers]:
    """What is kept of this test's sockets alone."""
    table = guard.map("makers")
    for key in list(table.keys()):
        table.delete(key)
    guard.map("closed").put(KEY0, bytes(guard.map("closed").value_size))
    yield Makers(guard)


def of(kept: Kept, pid: int) -> list[MadeSocket]:
    return [one for one in kept.makers if one.event.pid == pid]


@pytest.mark.parametrize(("family", "_"), RAW)
def test_a_maker_is_known_after_its_end(
    world: World, makers: Makers, family: int, _: str
) -> None:
    before = now_ns()
    script = f"import socket; socket.socket({family}, 3, 6)"
    argv = [sys.executable, "-c", script]
    pid = world.act(partial(os.spawnv, os.P_WAIT, sys.executable, argv)).pid
    assert not os.path.exists(f"/proc/{pid}")
    (one,) = makers.since(before).makers
    assert one.family == family and (one.uid, one.gid) == (0, 0)
    assert one.event.args == tuple(argv) and one.event.exe.startswith("/")
    assert one.event.ancestors[0].pid == pid
    assert one.event.cgroup.endswith("/guarded")
    assert before < one.event.time_ns < one.event.ended_ns < now_ns()
    assert makers.since(now_ns()).makers == ()  # it was closed before


def test_one_that_is_open_is_known_by_its_inode(world: World, makers: Makers) -> None:
    reader, writer = os.pipe()

    def hold() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, 6) as sock:
            inode = os.fstat(sock.fileno()).st_ino
            os.write(writer, struct.pack("=Q", inode))
            made = makers.since(now_ns()).makers
        assert [one.socket for one in made] == [inode]
        return inode

    done = world.act(hold)
    (inode,) = struct.unpack("=Q", os.read(reader, 8))
    assert done.value == inode
    for end in (reader, writer):
        os.close(end)


def test_no_other_socket_is_kept(world: World, makers: Makers) -> None:
    def act() -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                socket.socket(family, kind).close()

    assert world.act(act).errno == 0
    assert makers.since(0).makers == ()
    assert world.control(partial(make, socket.AF_INET)).errno == 0
    assert makers.since(0).makers == ()  # the cgroup is not guarded
    assert world.act(partial(make, socket.AF_INET)).errno == 0
    assert len(makers.since(0).makers) == 1  # and this is what it shows


def test_the_user_is_the_one_netfilter_tells_of(world: World, makers: Makers) -> None:
    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, 6):
            os.setegid(34)
            os.seteuid(33)

    assert world.act(act).errno == 0
    (one,) = makers.since(0).makers
    assert (one.uid, one.gid, one.event.uid) == (0, 0, 0)


def test_the_last_that_were_closed_are_kept(world: World, makers: Makers) -> None:
    pid = world.act(partial(make, socket.AF_INET, KEPT + 44)).pid
    assert len(of(makers.since(0), pid)) == KEPT
    assert len(list(makers.since(0).makers)) == KEPT


def test_without_room_a_socket_is_made_and_counted(
    world: World, guard: Guard, makers: Makers
) -> None:
    """It is no reason to refuse one."""
    lost = guard.counters()[Counter.NO_MAKER]

    def act() -> int:
        held = [socket.socket(socket.AF_INET, socket.SOCK_RAW, 6) for _ in range(900)]
        child = os.fork()
        if not child:
            more = [
                socket.socket(socket.AF_INET, socket.SOCK_RAW, 6) for _ in range(900)
            ]
            os._exit(len(more) != 900)
        _, status = os.waitpid(child, 0)
        return status + len(held) - 900

    assert world.act(act).value == 0
    counted = guard.counters()[Counter.NO_MAKER] - lost
    assert counted == 1800 - OPEN - KEPT
    assert not makers.since(0).whole
