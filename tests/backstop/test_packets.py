# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that no connect() sent: raw and packet sockets, cut, disguised, tagged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.backstop.ground import Ground, host_of, new_port
from tests.backstop.packets import ETH_P_ARP, Frames, Syn, send_raw
from tests.kernel.world import MX4, MX6, SMTP, World

Send = Callable[[Frames, Syn], None]


def raw_socket(_: Frames, syn: Syn) -> None:
    send_raw(syn.to, [syn.whole()])


def raw_socket_in_pieces(_: Frames, syn: Syn) -> None:
    send_raw(syn.to, syn.pieces())


def raw_socket_fragment_header(_: Frames, syn: Syn) -> None:
    send_raw(syn.to, syn.with_fragment_header())


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


RAW: list[Send] = [raw_socket, raw_socket_in_pieces]
PACKET: list[Send] = [
    packet_socket,
    packet_socket_cooked,
    packet_socket_past_the_queue,
    packet_socket_called_arp,
    packet_socket_called_nothing,
    packet_socket_called_the_other,
    packet_socket_in_pieces,
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
    from tests.backstop.ground import Wire

    world = ground.world if isinstance(ground, Ground) else ground
    frames = Frames.of(world)
    wire = Wire(world)
    try:
        with world.inside(world.host):
            done = world.control(lambda: send(frames, syn))
        # nftables tells the sender of a raw socket that it was not let out
        assert done.errno in (0, 1), done
        return wire.first_packets(syn.sport), wire.answers(syn.sport)
    finally:
        wire.close()


@pytest.mark.parametrize(("send", "mx"), CASES)
def test_without_the_second_lock_the_mx_answers(
    bare: World, send: Send, mx: str
) -> None:
    came, answers = answered(bare, send, Syn(mx, new_port()))
    assert came == 1 and answers >= 1


@pytest.mark.parametrize(("send", "mx"), CASES)
def test_nothing_comes_out_and_it_is_a_finding(
    standing: Ground, send: Send, mx: str
) -> None:
    syn = Syn(mx, new_port())
    raw = send.__name__.startswith("raw")
    with standing.found() as found:
        came, answers = answered(standing, send, syn)
    if standing.kind == "iptables" and not raw:
        assert answers >= 1 and not found  # it has no hook where these leave
        return
    assert answers == 0 and came == 0
    if standing.kind == "iptables" and send is raw_socket_in_pieces:
        assert not found  # the kernel's tcp match drops it before our rule
        return
    where = "output" if raw else "egress"
    assert [(one.lock, one.src, one.dst) for one in found] == [
        (f"{standing.kind}-{where}", (host_of(mx), syn.sport), (mx, SMTP))
    ]
