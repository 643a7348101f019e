# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy in netfilter's own terms, and what must never get into a rule's text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard import abi
from guard.backstop.iptables import Iptables
from guard.backstop.lock import Design, Lock, lock_of, while_changing
from guard.backstop.nftables import Nftables
from guard.backstop.owner import cgroups_of, terms, untold
from guard.errors import BackstopError
from guard.policy import Policy, parse
from guard.policy.units import unit_pattern
from tests.backstop.ground import iptables, nft
from tests.kernel.world import World

HOSTILE = [
    'a" accept; #@x.service',
    "a\naccept@x.service",
    "a b@x.service",
    "a;@x.service",
    "é@x.service",
    "a{@x.service",
    "$(id)@x.service",
]
PLAIN = ["a@x.service", "a@dev-disk-by\\x2duuid.service", "a:b_c.d-e@1.service"]

_numbers = itertools.count()


def policy(rules: str, mode: str = "enforce") -> Policy:
    return parse(f'mode = "{mode}"\n{rules}')


def rule(text: str, table: str = "rule", verdict: str = "allow") -> str:
    name = f"r{next(_numbers)}"
    return f'[[{table}]]\nname = "{name}"\nverdict = "{verdict}"\n{text}\n'


def test_what_netfilter_can_compare_is_made_and_the_rest_is_said() -> None:
    made = policy(
        rule("user = 8")
        + rule('exe = "/bin/false"')
        + rule('exe = "/bin/true"\nuser = 9')
        + rule('exe = "/bin/true"\nuser = 11', verdict="deny")
        + rule("user = 7", verdict="redirect")
        + rule("group = 5", table="local.rule")
    )
    outbound, local = terms(made)
    assert [(term.uids, term.verdict) for term in outbound] == [
        ((8,), abi.Verdict.ALLOW),
        ((9,), abi.Verdict.ALLOW),
        ((7,), abi.Verdict.DENY),  # zero denies, and nothing is redirected
    ]
    assert [term.gids for term in local] == [(5,)]
    said = [
        (one.number, why.partition(":")[0].split(",")[0]) for one, why in untold(made)
    ]
    assert said == [
        (1, "left out"),  # it would allow anybody
        (2, "made without its exe"),
        (3, "left out"),  # it would deny more than it says
        (4, "denies"),
    ]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cgroup tree as somebody made it who was given a part of it."""
    monkeypatch.setattr("guard.backstop.owner.find_cgroup2", lambda: tmp_path)
    for name in (*HOSTILE, *PLAIN):
        (tmp_path / "system.slice" / "system-a.slice" / name).mkdir(parents=True)
        (tmp_path / "system.slice" / name).mkdir(parents=True)
    return tmp_path


def test_names_that_users_chose_do_not_become_rules(tree: Path) -> None:
    patterns = tuple(
        unit_pattern(text)
        for text in ("a@*.service", "system.slice/a*.service", "system.slice/*")
        if _is_pattern(text)
    )
    assert patterns
    found = cgroups_of(patterns)
    assert found and all(
        Path(path).name in (*PLAIN, "system-a.slice") for path, _ in found
    )
    assert tree.is_dir()


def _is_pattern(text: str) -> bool:
    try:
        unit_pattern(text)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def space() -> Iterator[World]:
    with World() as world, world.inside(world.host):
        yield world


RULES = (
    rule("user = [0, 8]\ngroup = [5, 6]\nports = [25, 587]")
    + rule('user = 9\nto = ["203.0.113.0/24", "203.0.113.7", "2001:db8::/32"]')
    + rule('to = "192.0.2.0/24"', verdict="deny")
    + rule("journal = true\nuser = 12")
    + rule("user = 10", table="local.rule", verdict="deny")
)


@pytest.mark.parametrize("kind", ["nftables", "iptables"])
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_every_term_becomes_rules_that_the_kernel_takes(
    space: World, kind: str, mode: str
) -> None:
    backend = {"nftables": Nftables, "iptables": Iptables}[kind]("owner_test")
    lock = lock_of(policy(RULES, mode), Design.OWNER, ("host0",))
    backend.check(lock)
    assert backend.state() == ""
    backend.put(lock)
    state = backend.state()
    assert state
    backend.put(lock)
    assert backend.state() == state  # the same again is the same
    listing = nft("list", "ruleset") if kind == "nftables" else iptables("-S")
    assert "203.0.113.0/24" in listing and "smtp-guard output" in listing
    assert backend.remove() and not backend.remove()
    assert backend.state() == ""
    assert space.pin_dir.name


@pytest.mark.parametrize("kind", ["nftables", "iptables"])
def test_a_lock_of_many_ports_and_many_addresses(space: World, kind: str) -> None:
    ports = list(range(1000, 1100))
    forward = tuple(f"10.{i}.0.0/16" for i in range(50))
    made = parse(
        f'mode = "enforce"\nports = {ports}\n[backstop]\n'
        f"forward = {list(forward)}\n".replace("'", '"')
    )
    backend = {"nftables": Nftables, "iptables": Iptables}[kind]("many_test")
    backend.put(lock_of(made, Design.MARK, ("host0", "lo0", "host0x")[:1]))
    assert backend.state()
    backend.remove()
    assert space.free


def test_a_name_with_a_quote_is_refused_not_put(space: World) -> None:
    lock = lock_of(policy(""), Design.MARK, ('a" accept',))
    with pytest.raises(BackstopError, match="cannot stand in a rule"):
        Nftables("quote_test").check(lock)
    assert "quote_test" not in nft("list", "ruleset")
    assert space.free


def test_while_changing_only_what_both_refuse() -> None:
    def lock(text: str, mode: str = "enforce") -> Lock:
        return lock_of(parse(f'mode = "{mode}"\n{text}'), Design.MARK, ("eth0",))

    one = lock('ports = [25, 587]\n[backstop]\nforward = ["10.0.0.0/8"]\nmark = 1')
    two = lock('ports = [25, 465]\n[backstop]\nforward = ["10.0.0.1"]\nmark = 2')
    both = while_changing(one, two)
    assert both.ports == {25} and both.marks == (1, 2) and both.enforce
    assert set(both.forward) == {*one.forward, *two.forward}
    assert not while_changing(one, lock("", "observe")).enforce
    assert not while_changing(lock("", "observe"), one).enforce
