# SPDX-License-Identifier: GPL-2.0-or-later
"""Unit patterns: where systemd puts a unit, and what a pattern matches."""

from __future__ import annotations

import pytest

from guard.abi import UNIT_DEPTH
from guard.policy.evaluate import unit_matches
from guard.policy.units import BadUnit, unit_pattern


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("postfix.service", "/system.slice/postfix.service"),
        ("postfix@-.service", "/system.slice/system-postfix.slice/postfix@-.service"),
        ("postfix@*.service", "/system.slice/system-postfix.slice/postfix@*.service"),
        ("postfix@*", "/system.slice/system-postfix.slice/postfix@*"),
        ("my-mta@a.service", r"/system.slice/system-my\x2dmta.slice/my-mta@a.service"),
        (".a.b@c.service", r"/system.slice/system-\x2ea.b.slice/.a.b@c.service"),
        ("postfix*.service", "/system.slice/postfix*.service"),
        ("system.slice", "/system.slice"),
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ("user-1000.slice", "/user.slice/user-1000.slice"),
        ("user-*.slice", "/user.slice/user-*.slice"),
        ("user@1000.service", "/user.slice/user-1000.slice/user@1000.service"),
        ("init.scope", "/init.scope"),
        ("smtp.socket", "/system.slice/smtp.socket"),
        ("/docker/*", "/docker/*"),
        ("/a/b/", "/a/b"),
    ],
)
def test_where_a_unit_is(text: str, path: str) -> None:
    assert unit_pattern(text).path == path


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("", "not the name", "postfix.service"),
        ("a b.service", "not the name", "postfix.service"),
        ("a\x1b.service", "not the name", "postfix.service"),
        ("postfix", "without its type", '"postfix.service"'),
        ("postfix@.service", "a template", '"postfix@*.service"'),
        ("system.slice/a.service", "does not begin with /", '"/system.slice/'),
        ("/", "every process", "leave unit out"),
        ("-.slice", "every process", "leave unit out"),
        ("a--b.slice", "not the name of a slice", "systemd.slice(5)"),
        ("u*r-1.slice", "before a dash", "write its path"),
        ("p*@a.service", "before the @", "write the path"),
        ("a.scope", "any slice", "write its path"),
        ("/a/../b", '".."', "/proc/PID/cgroup"),
        ("/a//b", '""', "/proc/PID/cgroup"),
        ("a*b*.service", "two *", "keep the first"),
        ("/a/b*c", "after the *", '"b*"'),
        ("/a/*.mount", "after the *", '"*"'),
        ("/" + "n" * 64, "64 bytes", "the cgroup above"),
        ("/x" * (UNIT_DEPTH + 1), "13 components", "further up"),
    ],
)
def test_a_bad_pattern_says_what_to_write(text: str, message: str, remedy: str) -> None:
    with pytest.raises(BadUnit) as caught:
        unit_pattern(text)
    assert message in str(caught.value)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("postfix.service", "/system.slice/postfix.service", True),
        ("postfix.service", "/system.slice/postfix.service/sub/sub", True),
        ("postfix.service", "/system.slice/postfix.service2", False),
        ("postfix.service", "/system.slice", False),
        ("postfix.service", "/", False),
        ("postfix.service", "/user.slice/postfix.service", False),
        ("postfix.service", "/x/system.slice/postfix.service", False),
        ("/a/p*.service", "/a/p.service", True),
        ("/a/p*.service", "/a/p-x.service/below", True),
        ("/a/p*.service", "/a/p-x.slice", False),
        ("/a/p*.service", "/a/p", False),
        ("/a/p*.service", "/a/b/p.service", False),
        ("/a/.service*.service", "/a/.service", True),  # head and tail overlap
        ("/*/b", "/a/b", True),
        ("/*/b", "/a/c/b", False),
        ("/a/*", "/a", False),
        ("/a/*", "/a/" + "n" * 63, True),
        ("/a/*", "/a/" + "n" * 64, False),  # too long for the kernel to compare
        ("/a", "/a/" + "n" * 64, True),
        ("/a" * UNIT_DEPTH, "/a" * (UNIT_DEPTH + 3), True),
    ],
)
def test_what_a_pattern_matches(pattern: str, path: str, matches: bool) -> None:
    assert unit_matches(unit_pattern(pattern), path) is matches


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("system.slice", "postfix.service", True),
        ("postfix.service", "system.slice", False),
        ("/a/p*", "/a/postfix.service", True),
        ("/a/p*", "/a/post*.service", True),
        ("/a/p*.service", "/a/post*.service", True),
        ("/a/p*.service", "/a/post*", False),
        ("/a/p*.service", "/a/postfix.slice", False),
        ("/a/postfix.service", "/a/p*.service", False),
        ("/a/*", "/a/b/c", True),
    ],
)
def test_what_a_pattern_covers(wide: str, narrow: str, covers: bool) -> None:
    assert unit_pattern(wide).covers(unit_pattern(narrow)) is covers
