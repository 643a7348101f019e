# SPDX-License-Identifier: GPL-2.0-or-later
"""The smart host moves: what is lawful goes with it, and is never denied meanwhile."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import MX4, UNGUARDED, Lab, Postfix, wait_until
from tests.lab.dns import NameServer
from tests.lab.guarded import Guard, start_resolver
from tests.smarthost.conftest import (
    POLICY,
    RELAYS,
    ZONE,
    addresses,
    connect,
    guarding,
    in_force,
    start_postfix,
    status,
)

A, B, C, A6 = RELAYS
NAME = f"[relay.{ZONE}]:25"
NFTABLES = '[backstop]\nkind = "nftables"\n'
# Goes by DNS as a mail server with a cache does: an answer holds for its TTL. Until
# told to end it connects to every address of its answer, and says how that went.
CLIENT = """\
import collections, dns.resolver, json, os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
counts, denied, until, answer = collections.Counter(), [], 0.0, []
ask = dns.resolver.Resolver()
try:
    while True:
        if time.monotonic() >= until:
            found = ask.resolve(sys.argv[1], "A", lifetime=20)
            answer, until = [r.address for r in found], time.monotonic() + found.ttl
        for address in answer:
            with socket.socket() as s:
                s.settimeout(20)
                error = s.connect_ex((address, 25))
                counts[address, error] += 1
                if error:
                    denied.append([address, error, time.time()])
        time.sleep(0.02)
finally:
    ok = {a: n for (a, e), n in counts.items() if not e}
    print(json.dumps({"ok": ok, "denied": denied}), flush=True)
"""


@pytest.fixture(scope="module")
def postfix(lab: Lab, dns: NameServer) -> Postfix:
    return start_postfix(lab, NAME)


@pytest.fixture(scope="module")
def guard(lab: Lab, postfix: Postfix) -> Iterator[Guard]:
    with guarding(lab, A) as guard:
        yield guard


def notices(guard: Guard) -> list[str]:
    argv = ["journalctl", "-q", "-o", "cat", "SMTPGUARD_KIND=smart-host"]
    done = guard.lab.run([*argv, "-D", "/run/log/journal", "--output-fields=MESSAGE"])
    return done.stdout.splitlines()


def test_the_smart_host_and_nothing_else(
    lab: Lab, guard: Guard, postfix: Postfix
) -> None:
    assert status(guard)["name"] == NAME and status(guard)["source"] == "postfix"
    in_force(lab, A, allowed=True)
    relayed = postfix.delivered(postfix.submit(), timeout=60)
    assert relayed["recipients"] == ["somebody@example.org"]
    for address, port in ((B, 25), (MX4, 25), (A, 587), (A6, 25)):
        assert "not permitted" in connect(lab, address, port)
        assert connect(lab, address, port, where=UNGUARDED) == "", "the control"
    assert "not permitted" in connect(lab, A, user="www-data"), "others are denied"
    wait_until(
        lambda: [line for line in notices(guard) if NAME in line and A in line],
        "the finding",
    )


def test_postfix_itself_is_denied_past_it(
    lab: Lab, guard: Guard, postfix: Postfix
) -> None:
    lab.write("/etc/postfix/transport", f"direct.example smtp:[{MX4}]\n")
    lab.check(["postconf", "-e", "transport_maps = texthash:/etc/postfix/transport"])
    lab.check(["postfix", "reload"])
    postfix.submit("somebody@direct.example")
    rows = guard.findings("--to", MX4, "--user", "postfix")
    assert {(row["verdict"], row["outcome"]) for row in rows} == {("deny", "denied")}
    assert {row["exe"].rpartition("/")[2] for row in rows} == {"smtp"}
    wait_until(lambda: "Operation not permitted" in postfix.log(), "the deferral")
    lab.check(["postsuper", "-d", "ALL"])


def test_it_moves_and_nothing_lawful_is_denied(
    lab: Lab, guard: Guard, dns: NameServer, postfix: Postfix
) -> None:
    """A, then A and B, then B: as a relay's operator does it.

    The client may be told of B before the guard is, so what it is denied then is
    looked at apart; Postfix tries the other address in the same moment.
    """
    in_force(lab, A, allowed=True)
    name = f"relay.{ZONE}"
    client = lab.start(["python3", "-c", CLIENT, name], user="mail", unit="user.slice")
    marks = []

    def mail_until(condition: Any, what: str) -> None:
        def step() -> bool:
            marks.append(postfix.submit())
            return bool(condition())

        wait_until(step, what)

    mail_until(lambda: True, "a first message")
    dns.set(ZONE, f"relay 4 IN A {A}\nrelay 4 IN A {B}\nrelay 4 IN AAAA {A6}\n")
    mail_until(lambda: addresses(guard) == [A, B, A6], "both addresses")
    in_force(lab, B, allowed=True)
    in_force(lab, A6, allowed=True)
    know_b = float(lab.check(["date", "+%s.%N"]))
    assert connect(lab, A) == "", "the old one is still lawful"

    dns.set(ZONE, f"relay 4 IN A {B}\n")
    mail_until(lambda: addresses(guard) == [B], "the end of the old one's TTL")
    in_force(lab, A, allowed=False)
    assert connect(lab, A, where=UNGUARDED) == "", "the control"
    client.send_signal(signal.SIGTERM)
    out, err = client.communicate(timeout=60)
    told = json.loads(out)
    assert told["ok"][A] > 20 and told["ok"][B] > 20, (told, err)
    late = [d for d in told["denied"] if d[0] != B or d[2] > know_b]
    assert not late, f"of {told['ok']} lawful connects: {late}"
    for mark in marks:
        postfix.delivered(mark, timeout=120)
    assert "status=deferred" not in postfix.log().partition(marks[0])[2]
    [moved] = wait_until(
        lambda: [line for line in notices(guard) if "no longer" in line], "the finding"
    )
    assert A in moved


def test_the_name_server_is_away(lab: Lab, guard: Guard, dns: NameServer) -> None:
    dns.set(ZONE, f"relay 1 IN A {C}\n")
    wait_until(lambda: addresses(guard) == [C], "the next address")
    dns.stop()
    trouble = wait_until(lambda: status(guard)["trouble"], "it is told")
    assert "no name server" in trouble
    assert addresses(guard) == [C], "the last known stays, whatever its TTL"
    in_force(lab, C, allowed=True)
    wait_until(
        lambda: [line for line in notices(guard) if "no name server" in line],
        "the finding",
    )
    shown = guard.ctl("status").stdout
    assert f"{NAME}: {C}; A: no name server" in shown

    dns.set(ZONE, f"relay 4 IN CNAME far.{ZONE}.\nfar 2 IN A {A}\n")
    wait_until(lambda: addresses(guard) == [A], "and it is asked again")
    in_force(lab, A, allowed=True)
    in_force(lab, C, allowed=False)
    assert status(guard)["trouble"] == ""


def test_another_relayhost_is_followed_at_once(
    lab: Lab, guard: Guard, dns: NameServer, postfix: Postfix
) -> None:
    lab.check(["postconf", "-e", f"relayhost = [{B}]:587"])
    wait_until(lambda: status(guard)["name"] == f"[{B}]:587", "the new one")
    wait_until(lambda: connect(lab, B, 587) == "", "it is lawful")
    assert "not permitted" in connect(lab, B, 25)
    assert "not permitted" in connect(lab, A, 25)
    lab.check(["postconf", "-e", f"relayhost = {NAME}"])
    wait_until(lambda: status(guard)["name"] == NAME, "the old one")


def test_guardd_and_the_resolver_away(lab: Lab, guard: Guard, dns: NameServer) -> None:
    """What was looked up holds for guardctl load as well, and after a restart."""
    dns.set(ZONE, f"relay 4 IN A {A}\n")
    start_resolver(lab)
    in_force(lab, A, allowed=True)
    guard.stop()
    in_force(lab, A, allowed=True)
    in_force(lab, B, allowed=False)
    guard.start()
    in_force(lab, A, allowed=True)
    in_force(lab, B, allowed=False)


def test_the_resolver_started_anew_while_a_ttl_runs(
    lab: Lab, guard: Guard, dns: NameServer
) -> None:
    """As systemd does it: its folder is gone. The old address stays for its TTL."""
    dns.set(ZONE, f"relay 40 IN A {A}\n")
    wait_until(lambda: addresses(guard) == [A], "the address of a longer TTL")
    dns.set(ZONE, f"relay 4 IN A {B}\n")
    wait_until(lambda: addresses(guard) == [A, B], "both, as A's TTL runs")
    unit = lab.cgroup / "system.slice/smtp-guard-names.service"
    (unit / "cgroup.kill").write_text("1")
    wait_until(lambda: "populated 0" in (unit / "cgroup.events").read_text(), "its end")
    lab.check(["rm", "-r", "/run/smtp-guard-names"])
    start_resolver(lab)
    looked = lab.path("/run/smtp-guard-names/smart-host.json")
    wait_until(lambda: looked.exists() and B in looked.read_text(), "its first answer")
    assert addresses(guard) == [A, B]
    in_force(lab, A, allowed=True)
    in_force(lab, B, allowed=True)
    in_force(lab, A, allowed=False)  # the control: not for ever
    assert addresses(guard) == [B]


def test_the_second_lock_follows_too(lab: Lab, guard: Guard, dns: NameServer) -> None:
    """It goes by the mark that the first one gives: what is unmarked is refused."""
    dns.set(ZONE, f"relay 4 IN A {A}\n")
    guard.apply(POLICY + NFTABLES)
    in_force(lab, A, allowed=True)
    assert "refused" in connect(lab, A, where=UNGUARDED), "the lock is there"
    dns.set(ZONE, f"relay 4 IN A {A}\nrelay 4 IN A {B}\n")
    in_force(lab, B, allowed=True)
    assert connect(lab, A) == ""
    dns.set(ZONE, f"relay 4 IN A {B}\n")
    in_force(lab, A, allowed=False)
    assert connect(lab, B) == ""
    guard.apply(POLICY)
    assert connect(lab, A, where=UNGUARDED) == "", "the control"
