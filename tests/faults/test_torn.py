# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that make no sense: TornEvent, or a finding the journal can hold.

Malformed policies are in tests/policy/test_hostile.py.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard import abi
from guard.errors import TornEvent
from guard.event import HEADER_SIZE, unpack_event
from guard.origin import Naming
from guard.ringbuf import RingBuffer
from tests.faults.site import Site
from tests.journal.findings import fields

FULL = ctypes.sizeof(abi.RawEvent)
NAMING = Naming()


def survives(raw: bytes) -> bool:
    """Take raw the way the scribe does; anything but TornEvent escapes."""
    try:
        event = unpack_event(raw)
    except TornEvent as error:
        assert error.exit_status == 65
        assert str(error).isprintable()
        return False
    assert all(b"=" in field for field in fields(NAMING.finding(event)))
    return True


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, connects: Path) -> Iterator[bytes]:
    """One event of the kernel's."""
    with Site(tmp_path_factory.mktemp("torn"), connects) as site:
        site.start().end()
        site.connect(1)
        table = site.guard.map("ring")
        ring = RingBuffer(table.fd)
        [raw] = ring.samples()
        ring.close()
        yield raw


def test_the_real_event_is_whole(real: bytes) -> None:
    assert survives(real)


@settings(max_examples=2000)
@given(st.binary(max_size=2 * HEADER_SIZE))
def test_any_bytes(raw: bytes) -> None:
    survives(raw)


@settings(max_examples=1000)
@given(
    st.binary(min_size=HEADER_SIZE - 8, max_size=HEADER_SIZE - 8),
    st.lists(st.integers(0, 900), min_size=4, max_size=4),
    st.binary(max_size=3000),
)
def test_any_bytes_that_begin_well(
    head: bytes, lengths: list[int], text: bytes
) -> None:
    """The version and enums in order, so that what follows is looked at."""
    start = abi.ABI.to_bytes(2, "little") + bytes([1, 0, 1, 0, 0, head[0] % 10])
    ends = b"".join(length.to_bytes(2, "little") for length in lengths)
    survives(start + head[8:] + ends + text)


def test_real_events_cut_short(real: bytes) -> None:
    whole = [survives(real[:length]) for length in range(len(real) + 1)]
    assert whole == [False] * len(real) + [True]


def test_real_events_with_bytes_changed(real: bytes) -> None:
    chance = random.Random(3)
    whole = 0
    for _ in range(5000):
        raw = bytearray(real)
        for _ in range(chance.choice((1, 2, 8, 64))):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        whole += survives(bytes(raw))
    assert 0 < whole < 5000


def test_bytes_past_the_texts_are_no_harm(real: bytes) -> None:
    assert unpack_event(real + bytes(FULL - len(real))) == unpack_event(real)
