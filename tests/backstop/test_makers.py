# SPDX-License-Identifier: GPL-2.0-or-later
"""Who sent what no connect() showed: named by the kernel's record of its socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from functools import partial

from guard.finding import Finding
from tests.backstop.ground import Ground, host_of, new_port
from tests.backstop.packets import IPPROTO_RAW, Syn
from tests.kernel.world import MX4, MX6

_SCRIPT = """
import contextlib, socket, sys
family, packet, to = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3]
sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
with contextlib.suppress(PermissionError):  # nftables tells it
    sock.sendto(packet, (to, 0))
"""


def family_of(mx: str) -> int:
    return int(socket.AF_INET6 if ":" in mx else socket.AF_INET)


def execute_and_send(syn: Syn) -> list[str]:
    """Send by a program of its own, which ends at once; gives its arguments."""
    argv = [sys.executable, "-c", _SCRIPT, str(family_of(syn.to))]
    argv += [syn.whole().hex(), syn.to]
    assert os.spawnv(os.P_WAIT, sys.executable, argv) == 0
    return argv


def about(found: list[Finding], syn: Syn) -> Finding:
    (one,) = (one for one in found if one.src == (host_of(syn.to), syn.sport))
    return one


def test_a_sender_that_ended_at_once_is_named(standing: Ground, mx: str) -> None:
    syn = Syn(mx, new_port())
    with standing.found() as found, standing.guardd.paused():
        done = standing.guarded(partial(execute_and_send, syn))
    one = about(found, syn)
    assert not os.path.exists(f"/proc/{one.pid}")
    assert one.args == tuple(done.value)
    assert one.exe == os.path.realpath(sys.executable)
    assert one.ancestors[0].pid == done.pid and one.uid == 0
    assert (one.lock or "").endswith("-output") and not one.makers
    # this guard watches a cgroup, not the host: of others it does not know
    # how deep a runner of tests stands is not the matter
    assert set(one.incomplete) - {"ancestors-cut"} == {"maker", "maybe-others"}


def test_without_a_record_it_is_not_named(standing: Ground, mx: str) -> None:
    """The control: the same where no program of ours is asked."""
    syn = Syn(mx, new_port())
    with standing.found() as found, standing.guardd.paused():
        standing.free(partial(execute_and_send, syn))
    one = about(found, syn)
    assert (one.pid, one.exe, one.uid) == (0, None, 0)
    assert "no-process" in one.incomplete


def test_of_several_each_is_named(standing: Ground, mx: str) -> None:
    """A process that holds a raw socket and sends nothing can have been it."""
    syn = Syn(mx, new_port())

    def hold_and_have_it_sent() -> list[str]:
        with socket.socket(family_of(mx), socket.SOCK_RAW, IPPROTO_RAW):
            return execute_and_send(syn)

    with standing.found() as found:
        done = standing.guarded(hold_and_have_it_sent)
    one = about(found, syn)
    assert (one.pid, one.exe, one.uid) == (0, None, 0)
    assert one.incomplete[0] == "one-of"
    holder, sender = one.makers
    assert holder.pid == done.pid
    assert sender.args == tuple(done.value) and sender.exe == holder.exe
    told = standing.ctl(
        *("who-connected", "--json", "--from-port", str(syn.sport)),
        *("--directory", str(standing.site.journald.directory)),
    )
    row = json.loads(told.stdout)
    assert [maker["pid"] for maker in row["makers"]] == [holder.pid, sender.pid]


def test_who_cannot_have_sent_it_is_not_named(standing: Ground) -> None:
    """A socket of the other family, and one of another group."""
    syn = Syn(MX4, new_port())

    def hold_and_have_it_sent() -> list[str]:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, IPPROTO_RAW):
            os.setegid(34)
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, IPPROTO_RAW):
                os.setegid(0)
                return execute_and_send(syn)

    with standing.found() as found:
        done = standing.guarded(hold_and_have_it_sent)
    one = about(found, syn)
    assert one.args == tuple(done.value) and not one.makers


def test_a_socket_that_was_handed_on_names_its_maker(standing: Ground) -> None:
    syn = Syn(MX6, new_port())

    def make_and_hand_on() -> int:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, IPPROTO_RAW)
        if not (child := os.fork()):
            with contextlib.suppress(PermissionError):
                sock.sendto(syn.whole(), (syn.to, 0))
            os._exit(0)
        sock.close()
        os.waitpid(child, 0)
        return os.getpid()

    with standing.found() as found:
        done = standing.guarded(make_and_hand_on)
    one = about(found, syn)
    assert one.pid == done.value and "maker" in one.incomplete
