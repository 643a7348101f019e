# SPDX-License-Identifier: GPL-2.0-or-later
"""What a name server may answer, and what of it becomes lawful: by a real BIND."""

from __future__ import annotations

import ipaddress
import itertools
import json
import sys
import time
from pathlib import Path

import pytest

from guard.names import Answer, Held, Names, held_still
from guard.policy.model import Known
from guard.policy.smarthost import MAX_ADDRESSES, MAX_HELD, question, smart_host_of
from tests.lab import Lab
from tests.lab.dns import NameServer
from tests.smarthost.conftest import ZONE

# One round of `guardd --resolve`'s questions, in the lab.
ASK = """\
import json, sys
from guard.names import Held, Lookup
from guard.policy.smarthost import smart_host_of
held = Held()
answer = Lookup(smart_host_of(sys.argv[1])).ask()
again = held.take(answer, 1000.0)
print(json.dumps({
    "until": {str(a): u - 1000 for a, u in held.until.items()},
    "failed": answer.failed, "notes": held.notes, "again": again}))
"""
HOSTS = "\n".join(f"many 5 IN A 203.0.113.{n}" for n in range(1, 255))
HOSTS += "\n" + "\n".join(f"many 5 IN A 198.51.100.{n}" for n in range(1, 200))
RECORDS = f"""\
{HOSTS}
strange 0 IN A 127.0.0.1
strange 0 IN A 0.0.0.0
strange 0 IN A 224.0.0.1
strange 0 IN A 169.254.1.1
strange 0 IN A 198.51.100.1
strange 0 IN AAAA ::1
strange 0 IN AAAA ::ffff:198.51.100.9
strange 0 IN AAAA fe80::1
loop 5 IN A 127.0.0.1
alias 3 IN CNAME next
next 200 IN CNAME last
last 100 IN A 198.51.100.2
last 100 IN AAAA 2001:db8:2::2
mx 7 IN MX 20 last
mx 7 IN MX 10 alias
nullmx 7 IN MX 0 .
plain 9 IN A 198.51.100.3
empty 9 IN TXT "no address"
circle 5 IN CNAME elcric
elcric 5 IN CNAME circle
long 2147483647 IN A 198.51.100.4
"""


@pytest.fixture(scope="module")
def ask(lab: Lab, dns: NameServer):  # type: ignore[no-untyped-def]
    dns.set(ZONE, RECORDS)

    def once(text: str) -> dict[str, dict[str, float]]:
        argv = [sys.executable, "-c", ASK, text.format(ZONE)]
        found: dict[str, dict[str, float]] = json.loads(lab.check(argv, timeout=90))
        return found

    return once


def test_ttl_is_that_of_the_shortest_link(ask) -> None:  # type: ignore[no-untyped-def]
    found = ask("[alias.{}]:587")
    assert found["again"] == 3
    assert found["until"] == {"198.51.100.2": 6, "2001:db8:2::2": 6}
    assert not found["failed"] and not found["notes"]


def test_mail_exchangers_without_brackets(ask) -> None:  # type: ignore[no-untyped-def]
    found = ask("mx.{}")
    # within the MX record's TTL, and the shorter one of a name on the way
    assert set(found["until"]) == {"198.51.100.2", "2001:db8:2::2"}
    assert max(found["until"].values()) <= 7 + found["again"]
    assert set(ask("plain.{}")["until"]) == {"198.51.100.3"}, "no MX: itself"
    assert set(ask("nullmx.{}")["failed"].values()) == {"its MX record is null"}


def test_hundreds_of_addresses_are_bounded(ask) -> None:  # type: ignore[no-untyped-def]
    found = ask("[many.{}]")
    assert len(found["until"]) == MAX_ADDRESSES
    assert "453 addresses, 64 are taken" in str(found["notes"])


def test_addresses_of_this_host_are_left_out(ask) -> None:  # type: ignore[no-untyped-def]
    found = ask("[strange.{}]")
    assert set(found["until"]) == {"198.51.100.1"}
    assert "which is no other host's" in str(found["notes"])
    # TTL 0: asked again in a second, lawful for that long
    assert found["again"] == 1 and found["until"]["198.51.100.1"] == 1
    assert ask("[loop.{}]")["until"] == {}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone", "no such name"),
        ("empty", "no address"),
        ("circle", "no name server gives an answer"),
    ],
)
def test_what_fails_says_why(ask, name: str, why: str) -> None:  # type: ignore[no-untyped-def]
    found = ask(f"[{name}.{{}}]")
    assert why in str(found["failed"]) and found["until"] == {}
    assert found["again"] <= 5


def test_a_long_ttl_is_a_day(ask) -> None:  # type: ignore[no-untyped-def]
    assert ask("[long.{}]")["until"]["198.51.100.4"] <= 86_400 + 10


ONE, TWO, SIX = map(ipaddress.ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8:1::1"))


def test_old_ones_stay_for_their_ttl() -> None:
    held = Held()
    held.take(Answer({ONE: 60.0}), 0.0)
    held.take(Answer({TWO: 60.0}), 10.0)
    assert set(held.until) == {ONE, TWO}
    # asked for at 0 every 10 s: who got an answer just before 10 s may use it to 70 s
    held.take(Answer({TWO: 60.0}), 69.9)
    assert set(held.until) == {ONE, TWO}
    held.take(Answer({TWO: 60.0}), 70.1)
    assert set(held.until) == {TWO}


def test_what_cannot_be_asked_for_stays() -> None:
    held = Held()
    held.take(Answer({ONE: 1.0, SIX: 1.0}), 0.0)
    for second in range(10, 1000, 10):
        held.take(Answer({TWO: 1.0}, {6: "no answer"}), float(second))
    assert set(held.until) == {TWO, SIX}
    held.take(Answer({}, {4: "no answer", 6: "no answer"}), 5000.0)
    assert set(held.until) == {TWO, SIX}
    held.take(Answer({TWO: 1.0}), 6000.0)
    assert set(held.until) == {TWO}


@pytest.mark.parametrize("wrong", [b"no next hop\n", b"", b"\xff\n"])
def test_what_is_asked_for_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: bytes
) -> None:
    """It waits for another: the path unit would start it again, and again."""
    asked, answers = tmp_path / "smart-host", tmp_path / "smart-host.json"
    names = Names(asked, answers)
    assert names.round() is None, "nothing is asked for, which is its end"
    asked.write_bytes(wrong)
    assert names.round() == 10
    assert str(asked) in capsys.readouterr().err
    assert not answers.exists()


def test_started_anew_it_holds_what_was_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each one's longest TTL; nonsense in its files is nothing."""
    host = smart_host_of("[relay.example.com]:587")
    asked = tmp_path / "smart-host"
    monkeypatch.setattr("guard.policy.smarthost.ASKED", asked)
    monkeypatch.setattr("guard.policy.smarthost.ANSWERS", tmp_path / "none")
    before = Held()
    before.take(Answer({ONE: 300.0}), 0.0)
    before.take(Answer({ONE: 20.0, TWO: 60.0}), 280.0)
    known = Known(tuple(before.until), "", tuple(before.ttls.values()))
    asked.write_text(question(host, known))
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    after = held_still(host)
    assert after.until[ONE] == pytest.approx(now + 310, abs=5)
    assert after.until[TWO] == pytest.approx(now + 70, abs=5)
    after.take(Answer({TWO: 60.0}), now + 300)
    assert set(after.until) == {ONE, TWO}
    after.take(Answer({TWO: 60.0}), now + 316)
    assert set(after.until) == {TWO}
    for ttls in ('{"192.0.2.1": 1e999}', '{"192.0.2.1": "x"}', "[]", "true"):
        text = f'{{"name": "{host}", "addresses": ["192.0.2.1"], "ttls": {ttls}}}'
        asked.write_text(f"{host}\n{text}")
        assert held_still(host).until[ONE] == pytest.approx(now + 10, abs=5)
    asked.write_text(f"{host}\n{{")
    assert held_still(host).until == {}


def test_a_name_that_changes_all_the_time_is_bounded() -> None:
    held = Held()
    numbers = itertools.count(int(ipaddress.ip_address("10.0.0.0")))
    for second in range(50):
        fresh = {ipaddress.ip_address(next(numbers)): 86_400.0 for _ in range(40)}
        held.take(Answer({**fresh}), float(second))
        assert set(fresh) <= set(held.until)
        assert len(held.until) <= MAX_HELD
    assert "forgotten before their TTL" in str(held.notes)


@pytest.mark.parametrize(
    ("text", "host", "port", "mx"),
    [
        ("[relay.example.com]:587", "relay.example.com", 587, False),
        ("[Relay.Example.COM.]", "relay.example.com", 25, False),
        ("relay.example.com", "relay.example.com", 25, True),
        ("relay.example.com:submission", "relay.example.com", 587, True),
        ("[192.0.2.1]:2525", "192.0.2.1", 2525, False),
        ("[2001:DB8::1]:25", "2001:db8::1", 25, False),
        ("[ipv6:2001:db8::1]", "2001:db8::1", 25, False),
    ],
)
def test_next_hops_as_postfix_writes_them(
    text: str, host: str, port: int, mx: bool
) -> None:
    found = smart_host_of(text)
    assert (found.host, found.port, found.mx) == (host, port, mx)
    assert smart_host_of(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "[a]:0", "[a]:65536", "[a]:x y", "a b", "[a],[b]", "192.0.2.1"),
        *(
            "[::]",
            "[224.0.0.1]",
            "-a",
            "a..b",
            "[a]b",
            "[a\n]",
            "a" * 300,
            "[fe80::1%1]",
        ),
        *("[a]:no-such-service", "ä.example", "[a]:25:25", "\0"),
    ],
)
def test_what_is_no_next_hop_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        smart_host_of(text)
