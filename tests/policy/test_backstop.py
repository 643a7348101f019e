# SPDX-License-Identifier: GPL-2.0-or-later
"""[backstop]: what it may say, and the place and remedy of what it may not."""

from __future__ import annotations

import ipaddress

import pytest

from guard.errors import PolicyError
from guard.policy import Problem, parse

HEAD = 'mode = "enforce"\n[backstop]\n'


def test_defaults() -> None:
    backstop = parse('mode = "enforce"\n').backstop
    assert (backstop.kind, backstop.mark, backstop.group) == ("auto", 1 << 27, 2525)
    assert backstop.forward == () and backstop.uplinks is None
    assert backstop.socket_mark == backstop.mark


def test_all_keys() -> None:
    backstop = parse(
        HEAD
        + 'kind = "iptables"\nmark = 0x80000001\ngroup = 65535\n'
        + 'forward = ["198.51.100.0/24", "2001:db8::1"]\n'
        + 'uplinks = ["eth0", "eth0", "br-0.7@x_", "abcdefghijklmno"]\n'
    ).backstop
    assert (backstop.kind, backstop.mark, backstop.group) == (
        *("iptables", 0x80000001),
        65535,
    )
    assert backstop.forward == (
        ipaddress.ip_network("198.51.100.0/24"),
        ipaddress.ip_network("2001:db8::1/128"),
    )
    assert backstop.uplinks == ("eth0", "br-0.7@x_", "abcdefghijklmno")


def test_off_marks_nothing() -> None:
    backstop = parse(HEAD + 'kind = "off"\nforward = []\n').backstop
    assert backstop.socket_mark == 0
    assert backstop.forward == () and backstop.uplinks is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('kind = "pf"', "is not"),
        ("kind = 1", "1 is not"),
        ("kind = []", "is not"),
        ("mark = 0", "0 is not"),
        ("mark = -1", "-1 is not"),
        ("mark = 4294967296", "4294967296 is not"),
        ("mark = true", "true is not"),
        ('mark = "0x1"', "is not"),
        ("group = 0", "0 is not"),
        ("group = 65536", "65536 is not"),
        ("group = 1.5", "is not"),
        ('forward = "mx.example"', "not an address"),
        ('forward = ["10.0.0.1/8"]', "bits set"),
        ("forward = [7]", "7: not an address"),
        ("uplinks = [0]", "0 is not"),
        ('uplinks = ["a b"]', "is not the name of an interface"),
        ('uplinks = ["eth0\\" accept"]', "is not the name of an interface"),
        ('uplinks = ["eth0\\n"]', "is not the name of an interface"),
        ('uplinks = [""]', "is not a text"),
        ("uplinks = []", "an empty list"),
        ('uplinks = ["-F"]', "is not the name of an interface"),
        ('uplinks = ["abcdefghijklmnop"]', "is not the name of an interface"),
        ('uplinks = ["été"]', "is not the name of an interface"),
        ('uplinks = ["eth+"]', "is not the name of an interface"),
        ('uplinks = [".."]', "is not the name of an interface"),
        ("marks = 1", "unknown key"),
    ],
)
def test_a_wrong_value_is_told_with_its_line_and_remedy(
    line: str, message: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(f"{HEAD}\n{line}\n")
    found = [one for one in caught.value.problems if isinstance(one, Problem)]
    assert len(found) == 1 == len(caught.value.problems), found
    assert found[0].line == 4, found
    assert message in found[0].message and found[0].remedy


def test_it_is_a_section() -> None:
    with pytest.raises(PolicyError, match="not a section"):
        parse('mode = "enforce"\nbackstop = 1\n')
