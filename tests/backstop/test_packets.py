# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that no connect() sent: raw and packet sockets, cut, disguised, tagged."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.backstop.ground import Ground, Wire, host_of, new_port
from tests.backstop.packets import (
    ACK,
    CWR,
    ECE,
    ETH_P_8021Q,
    ETH_P_ARP,
    IPPROTO_RAW,
    PSH,
    SYN,
    URG,
    Frames,
    Syn,
    send_raw,
)
from tests.journald import until
from tests.kernel.world import MX4, MX6, SMTP, Child, World

_UNGUARDED = 2626
Send = Callable[[Frames, Syn], None]


def raw_socket(_: Frames, syn: Syn) -> None:
    send_raw(syn.to, [syn.whole()])


def raw_socket_in_pieces(_: Frames, syn: Syn) -> None:
    send_raw(syn.to, syn.pieces())


def raw_socket_fragment_header(_: Frames, syn: Syn) -> None:
    send_raw(syn.to, syn.with_fragment_header())


def raw_socket_options(_: Frames, syn: Syn) -> None:
    send_raw(syn.to, [syn.with_options()])


def raw_socket_more_flags(_: Frames, syn: Syn) -> None:
    more = replace(syn, flags=SYN | PSH | URG | ECE | CWR)
    send_raw(syn.to, [more.whole()])


def packet_socket(frames: Frames, syn: Syn) -> None:
    frames.raw([syn.whole()], syn.ethertype)


def packet_socket_cooked(frames: Frames, syn: Syn) -> None:
    frames.cooked([syn.whole()], syn.ethertype)


def packet_socket_past_the_queue(frames: Frames, syn: Syn) -> None:
    frames.raw([syn.whole()], syn.ethertype, bypass=True)


def packet_socket_called_arp(frames: Frames, syn: Syn) -> None:
    frames.raw([syn.whole()], syn.ethertype, called=ETH_P_ARP)


def packet_socket_called_nothing(frames: Frames, syn: Syn) -> None:
    frames.raw([syn.whole()], syn.ethertype, called=0)


def packet_socket_called_the_other(frames: Frames, syn: Syn) -> None:
    other = Syn(MX4 if syn.version6 else MX6, 1).ethertype
    frames.raw([syn.whole()], syn.ethertype, called=other)


def packet_socket_in_pieces(frames: Frames, syn: Syn) -> None:
    frames.raw(syn.pieces(), syn.ethertype)


def packet_socket_fragment_header(frames: Frames, syn: Syn) -> None:
    frames.raw(syn.with_fragment_header(), syn.ethertype)


def packet_socket_options(frames: Frames, syn: Syn) -> None:
    frames.raw([syn.with_options()], syn.ethertype)


RAW: list[Send] = [
    raw_socket,
    raw_socket_in_pieces,
    raw_socket_options,
    raw_socket_more_flags,
]
PACKET: list[Send] = [
    packet_socket,
    packet_socket_cooked,
    packet_socket_past_the_queue,
    packet_socket_called_arp,
    packet_socket_called_nothing,
    packet_socket_called_the_other,
    packet_socket_in_pieces,
    packet_socket_options,
]
ONLY_IPV6: list[Send] = [raw_socket_fragment_header, packet_socket_fragment_header]
CASES = [
    pytest.param(send, mx, id=f"{send.__name__}-{'ipv6' if ':' in mx else 'ipv4'}")
    for send in (*RAW, *PACKET, *ONLY_IPV6)
    for mx in (MX4, MX6)
    if mx == MX6 or send not in ONLY_IPV6
]


def answered(ground: Ground | World, send: Send, syn: Syn) -> tuple[int, int]:
    """Send it; gives how many first packets came, and how often the MX answered."""
    world = ground.world if isinstance(ground, Ground) else ground
    frames = Frames.of(world)
    wire = Wire(world)
    try:
        with world.inside(world.host):
            done = world.control(lambda: send(frames, syn))
        # nftables tells the sender that it was not let out
        assert done.errno in (0, errno.EPERM, errno.ENOBUFS), done
        return wire.first_packets(syn.sport), wire.answers(syn.sport)
    finally:
        wire.close()


@pytest.mark.parametrize(("send", "mx"), CASES)
def test_without_the_second_lock_the_mx_answers(
    bare: World, send: Send, mx: str
) -> None:
    came, answers = answered(bare, send, Syn(mx, new_port()))
    assert came == 1
    # a first fragment too short for its headers Linux does not take: RFC 7112
    assert answers or (":" in mx and "pieces" in send.__name__)


@pytest.mark.parametrize(("send", "mx"), CASES)
def test_nothing_comes_out_and_it_is_a_finding(
    standing: Ground, send: Send, mx: str
) -> None:
    syn = Syn(mx, new_port())
    raw = send.__name__.startswith("raw")
    with standing.found() as found:
        came, answers = answered(standing, send, syn)
    if standing.kind == "iptables" and not raw:
        assert came == 1 and not found  # it has no hook where these leave
        return
    assert (came, answers) == (0, 0)
    if standing.kind == "iptables" and send is raw_socket_in_pieces:
        assert not found  # the kernel's tcp match drops it before our rule
        return
    where = "output" if raw else "egress"
    assert [(one.lock, one.src, one.dst) for one in found] == [
        (f"{standing.kind}-{where}", (host_of(mx), syn.sport), (mx, SMTP))
    ]


@pytest.mark.parametrize("number", [0, 7])
def test_a_tag_of_a_vlan_hides_nothing(
    standing: Ground, bare: World, mx: str, number: int
) -> None:
    """The tag of no VLAN, 0, is none to who receives it."""
    tag = struct.pack("!HH", ETH_P_8021Q, number)

    def send(frames: Frames, syn: Syn) -> None:
        packets = [[syn.whole()], [syn.with_options()], syn.pieces()]
        if syn.version6:
            packets.append(syn.with_fragment_header())
        for pieces in packets:
            with contextlib.suppress(OSError):  # so nftables tells of it
                frames.raw(pieces, syn.ethertype, tag=tag)

    came, answers = answered(bare, send, Syn(mx, new_port()))
    assert came == 3 + (":" in mx) and bool(answers) == (number == 0)
    syn = Syn(mx, new_port())
    with standing.found() as found:
        came, answers = answered(standing, send, syn)
    if standing.kind == "iptables":
        assert came and not found  # it has no hook where these leave
        return
    assert (came, answers) == (0, 0)
    assert len(found) == 3 + (":" in mx)
    assert {(one.lock, one.src, one.dst) for one in found} == {
        ("nftables-egress", (host_of(mx), syn.sport), (mx, SMTP))
    }


def test_a_packet_socket_may_send_what_is_no_first_packet(
    standing: Ground, mx: str
) -> None:
    syn, other = Syn(mx, new_port(), flags=ACK), Syn(mx, new_port(), dport=_UNGUARDED)
    frames = Frames.of(standing.world)

    def send() -> None:
        frames.raw([syn.whole(), other.whole()], syn.ethertype)
        send_raw(mx, [syn.whole(), other.whole()])

    with standing.found() as found, standing.wire() as wire:
        assert standing.free(send).errno == 0
        assert wire.first_packets(syn.sport) == 2
        assert wire.first_packets(other.sport, _UNGUARDED) == 2
    assert not found


def test_a_raw_socket_is_traced_to_its_only_holder(standing: Ground, mx: str) -> None:
    """While it lives: /proc has no record of who had one."""
    syn = Syn(mx, new_port())
    ready, go = multiprocessing.Event(), multiprocessing.Event()

    def send_and_stay() -> int:
        family = socket.AF_INET6 if ":" in mx else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW, IPPROTO_RAW) as sock:
            with contextlib.suppress(PermissionError):
                sock.sendto(syn.whole(), (mx, 0))
            ready.set()
            assert go.wait(30)
        return os.getpid()

    with standing.found() as found:
        child = Child(send_and_stay, standing.world.free)
        assert ready.wait(30)
        until(
            lambda: any(
                one.src == (host_of(mx), syn.sport) for one in standing.all_findings()
            ),
            "the finding",
        )
        go.set()
        pid = child.finish().value
    (one,) = found
    assert (one.pid, one.uid) == (pid, 0) and one.exe
    assert {"from-proc", "raw-socket"} <= set(one.incomplete)
