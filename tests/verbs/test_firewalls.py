# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl doctor names other firewalls, and what of theirs takes our mark away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from guard.checks import Check, State
from guard.firewalls import firewalls
from tests.kernel.world import World

MARK = 0x0800_0000
PORTS = frozenset({25, 465, 587})
GROUP = 2525


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture(autouse=True)
def a_host_without_rules(world: World) -> Iterator[None]:
    """Every test begins with no rules of anybody, in a namespace of its own."""
    with world.inside(world.host):
        yield
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        for program in ("iptables-legacy", "ip6tables-legacy"):
            for table in ("filter", "mangle"):
                subprocess.run([program, "-t", table, "-F"], check=True)


def ask(mark: int = MARK) -> dict[str, Check]:
    """Ask, and give the answers by name."""
    return {check.name: check for check in firewalls(mark, PORTS, GROUP)}


def nft(rules: str) -> None:
    """Add rules as an administrator does."""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def ip(*argv: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *argv], check=True)


OUTPUT = """\
table inet theirs {{
    chain out {{
        type filter hook output priority 0;
        {}
    }}
}}
"""


def test_where_nobody_is_at_odds_nothing_is_said() -> None:
    nft(OUTPUT.format("tcp dport 80 accept; meta mark set meta mark | 0x1"))
    ip("rule", "add", "fwmark", "0x1/0xff", "lookup", "main")
    ip("rule", "del", "fwmark", "0x1/0xff", "lookup", "main")
    answers = ask()
    assert "table inet theirs" in answers["firewalls"].detail
    assert not answers.keys() & {"marks", "routing", "refused"}


def test_our_own_tables_are_not_others() -> None:
    nft(OUTPUT.format("meta mark set 1").replace("theirs", "smtp_guard"))
    answers = ask()
    assert "smtp_guard" not in answers["firewalls"].detail
    assert "marks" not in answers


@pytest.mark.parametrize("port", ["25", "{ 80, 587 }", "smtp"])
def test_who_refuses_the_same_ports_is_named(port: str) -> None:
    nft(OUTPUT.format(f"tcp dport {port} meta skuid != 0 drop"))
    found = ask()["refused"]
    assert found.state is State.NOTE
    assert "inet theirs" in found.detail


@pytest.mark.parametrize(
    "rule", ["meta mark set 0x1", "meta mark set ct mark", "meta mark set 0"]
)
def test_a_rule_that_takes_the_mark_away_is_named(rule: str) -> None:
    nft(OUTPUT.format(rule))
    assert ask()["marks"].state is State.WARN
    assert "marks" not in ask(mark=0)  # there is no second lock


@pytest.mark.parametrize(
    ("rule", "odd"),
    [
        ("OUTPUT -j MARK --set-mark 1", True),
        ("OUTPUT -j MARK --set-xmark 0x1/0xff", False),
        ("OUTPUT -j CONNMARK --restore-mark", True),
        ("OUTPUT -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff", False),
        ("POSTROUTING -j CONNMARK --save-mark", False),
        ("PREROUTING -j MARK --set-mark 1", False),
    ],
)
@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
def test_iptables_marks(program: str, rule: str, odd: bool) -> None:
    subprocess.run([program, "-t", "mangle", "-A", *rule.split()], check=True)
    assert ("marks" in ask()) is odd


@pytest.mark.parametrize(("value", "odd"), [("0x1", True), ("0x1/0xff", False)])
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_routes_that_depend_on_all_of_a_mark(
    family: str, value: str, odd: bool
) -> None:
    ip(family, "rule", "add", "fwmark", value, "lookup", "main")
    try:
        assert ("routing" in ask()) is odd
    finally:
        ip(family, "rule", "del", "fwmark", value, "lookup", "main")


def test_a_group_that_nobody_listens_to() -> None:
    assert ask()["nflog"].state is State.WARN
