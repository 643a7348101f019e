# SPDX-License-Identifier: GPL-2.0-or-later
"""A relayhost without brackets: what is lawful are its mail exchangers, as they change.

Postfix asks for the MX records itself, guardd by a process of its own; both ask BIND.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab import UNGUARDED, Lab, Postfix, wait_until
from tests.lab.dns import NameServer
from tests.lab.guarded import Guard
from tests.smarthost.conftest import (
    RELAYS,
    ZONE,
    addresses,
    connect,
    guarding,
    in_force,
    start_postfix,
    status,
)

A, B, C, _ = RELAYS
HOSTS = f"a 4 IN A {A}\nb 4 IN A {B}\nc 4 IN A {C}\nout 4 IN A 198.51.100.99\n"
FIRST = HOSTS + "out 4 IN MX 10 a\nout 4 IN MX 20 b\n"


@pytest.fixture(scope="module")
def postfix(lab: Lab, dns: NameServer) -> Postfix:
    dns.set(ZONE, FIRST)
    return start_postfix(lab, f"out.{ZONE}")


@pytest.fixture(scope="module")
def guard(lab: Lab, postfix: Postfix) -> Iterator[Guard]:
    with guarding(lab, A, B) as guard:
        yield guard


def relay_of(postfix: Postfix) -> str:
    """Send a message, and give the relay that Postfix says it went to."""
    since = len(postfix.log())
    postfix.delivered(postfix.submit("somebody@elsewhere.example"), timeout=60)
    told = postfix.log()[since:]
    assert "status=deferred" not in told
    (relay,) = re.findall(r"relay=(\S+), .*status=sent", told)
    return str(relay)


def test_mail_leaves_by_its_exchangers_and_nothing_else_is_lawful(
    lab: Lab, guard: Guard, postfix: Postfix
) -> None:
    assert status(guard)["name"] == f"out.{ZONE}:25"
    in_force(lab, A, allowed=True)
    in_force(lab, B, allowed=True)
    assert relay_of(postfix) == f"a.{ZONE}[{A}]:25"
    assert "not permitted" in connect(lab, C)
    assert connect(lab, C, where=UNGUARDED) == "", "the control"


def test_the_exchangers_change_and_no_mail_waits(
    lab: Lab, guard: Guard, dns: NameServer, postfix: Postfix
) -> None:
    """First a new one beside those of before, then that one alone."""
    dns.set(ZONE, f"{FIRST}out 4 IN MX 5 c\n")
    wait_until(lambda: addresses(guard) == [A, B, C], "the third one")
    in_force(lab, C, allowed=True)
    wait_until(lambda: relay_of(postfix) == f"c.{ZONE}[{C}]:25", "mail goes there")
    assert connect(lab, A) == "", "the old ones are still lawful"
    dns.set(ZONE, f"{HOSTS}out 4 IN MX 5 c\n")
    wait_until(lambda: addresses(guard) == [C], "the end of the old ones' TTL")
    in_force(lab, A, allowed=False)
    assert connect(lab, A, where=UNGUARDED) == "", "the control"
    assert relay_of(postfix) == f"c.{ZONE}[{C}]:25"
