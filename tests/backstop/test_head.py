# SPDX-License-Identifier: GPL-2.0-or-later
"""The head of a recorded packet: whatever its bytes are, no more than an answer."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guard.backstop.packet import Head, unpack_head
from tests.backstop.packets import ETH_P_8021Q, Syn
from tests.kernel.world import HOST4, HOST6, MX4, MX6

ETHER = bytes(range(12))
SYNS = [Syn(MX4, 40000), Syn(MX6, 40000)]


def ends(syn: Syn) -> Head:
    here = HOST6 if syn.version6 else HOST4
    return Head((here, syn.sport), (syn.to, syn.dport))


@pytest.mark.parametrize("syn", SYNS, ids=["ipv4", "ipv6"])
def test_what_a_hand_made_packet_says(syn: Syn) -> None:
    kind = struct.pack("!H", syn.ethertype)
    tag = struct.pack("!HH", ETH_P_8021Q, 7)
    packets = [syn.whole(), syn.with_options(), syn.pieces()[0]]
    if syn.version6:
        packets += syn.with_fragment_header()
    for packet in packets:
        for head in (b"", ETHER + kind, ETHER + tag + kind):
            found = unpack_head(head + packet, framed=bool(head))
            assert found == ends(syn), (head, packet)


@pytest.mark.parametrize("syn", SYNS, ids=["ipv4", "ipv6"])
def test_what_has_no_ports_gives_none(syn: Syn) -> None:
    whole = syn.whole()
    for cut in range(len(whole) - 16):
        assert unpack_head(whole[:cut]) is None
    assert unpack_head(syn.pieces()[1]) is None  # a later fragment


def test_an_ipv4_address_in_ipv6_is_told_as_what_it_is() -> None:
    packet = Syn(f"::ffff:{MX4}", 1).whole()
    head = unpack_head(packet)
    assert head and head.dst == (MX4, 25)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x45" + bytes(8) + b"\x06" + bytes(14))  # no room for options it claims
@example(b"\x4f" + bytes(8) + b"\x06" + bytes(50))
@example(b"\x40" + bytes(8) + b"\x06" + bytes(30))  # a header of no length
@example(b"\x60" + bytes(5) + b"\x00" + bytes(33) + b"\x00\xff" * 4)
@example(b"\x60" + bytes(5) + b"\x2c" + bytes(33) + b"\x2c\x00\x00\x00" * 40)
@example(b"\x60" + bytes(5) + b"\x06" + bytes(33))  # ends before the ports
def test_no_bytes_make_it_raise(raw: bytes) -> None:
    for framed in (False, True):
        if head := unpack_head(raw, framed):
            assert all(0 <= port < 1 << 16 for _, port in (head.src, head.dst))


@given(
    st.sampled_from(SYNS), st.integers(0, 60), st.integers(0, 255), st.integers(0, 160)
)
def test_one_wrong_byte_makes_it_no_worse(
    syn: Syn, place: int, value: int, size: int
) -> None:
    raw = bytearray(syn.whole())
    raw[place % len(raw)] = value
    unpack_head(bytes(raw[:size]))
    unpack_head(ETHER + b"\x08\x00" + bytes(raw[:size]), framed=True)
