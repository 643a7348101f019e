# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody with root changes the rules of the second lock."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable

import pytest

from guard.backstop.keeper import table_name
from tests.backstop.container import connect
from tests.backstop.ground import Ground, iptables, nft, policy
from tests.journald import until
from tests.kernel.world import MX4, MX6


def _table(ground: Ground) -> str:
    return table_name(ground.site.pin_dir)


def flush_ruleset(_: Ground) -> None:
    nft("flush", "ruleset")


def delete_table(ground: Ground) -> None:
    nft("delete", "table", "inet", _table(ground))


def delete_egress(ground: Ground) -> None:
    nft("delete", "table", "netdev", _table(ground))


def delete_a_rule(ground: Ground) -> None:
    listing = nft("-a", "list", "chain", "inet", _table(ground), "output_judged")
    handle = next(
        line.rpartition("handle ")[2]
        for line in listing.splitlines()
        if "reject" in line
    )
    nft("delete", "rule", "inet", _table(ground), "output_judged", "handle", handle)


def insert_a_rule(ground: Ground) -> None:
    nft("insert", "rule", "inet", _table(ground), "output", "accept")


def _jump(ground: Ground) -> str:
    chain = f"{_table(ground).upper()[:20]}_OUTPUT"
    line = next(
        line for line in iptables("-S OUTPUT").splitlines() if line.endswith(chain)
    )
    return line.removeprefix("-A ")


def flush_iptables(_: Ground) -> None:
    for to in (MX4, MX6):
        iptables("-F", to)


def delete_the_jump(ground: Ground) -> None:
    rule = _jump(ground)
    for to in (MX4, MX6):
        iptables(f"-D {rule}", to)


def accept_first(ground: Ground) -> None:
    chain = f"{_table(ground).upper()[:20]}_OUTPUT"
    for to in (MX4, MX6):
        iptables(f"-I {chain} -j ACCEPT", to)


CHANGES: dict[str, list[Callable[[Ground], None]]] = {
    "nftables": [
        flush_ruleset,
        delete_table,
        delete_egress,
        delete_a_rule,
        insert_a_rule,
    ],
    "iptables": [flush_iptables, delete_the_jump, accept_first],
}
CASES = [
    pytest.param(kind, change, id=f"{kind}-{change.__name__}")
    for kind, changes in CHANGES.items()
    for change in changes
]


def tampered(ground: Ground) -> list[dict[str, str]]:
    return ground.site.entries("tampered")


def shut(ground: Ground) -> bool:
    """Tell whether what no hook saw is refused, of both families."""
    return all(
        ground.free(lambda to=to: connect(to)).errno == errno.ECONNREFUSED
        for to in (MX4, MX6)
    )


@pytest.mark.parametrize(("ground", "change"), CASES, indirect=["ground"])
def test_it_is_put_back_and_told_once(
    ground: Ground, change: Callable[[Ground], None]
) -> None:
    guardd = ground.start()
    before = rules(ground)
    # else it may be the quicker one
    with guardd.paused():
        change(ground)
        assert rules(ground) != before
    # legacy iptables sends no news of changes: there it is looked at each ten seconds
    until(lambda: bool(tampered(ground)), "the finding", 40)
    guardd.until(lambda: "changed by" not in guardd.status, "STATUS")
    assert rules(ground) == before and shut(ground)
    assert ground.ctl("verify", "--json").stdout.count('"in force, by') == 1
    change(ground)
    if ground.kind == "nftables":
        until(lambda: rules(ground) == before, "that it is put back again", 10)
    (one,) = tampered(ground)
    assert one["WHAT"] == "backstop" and one["REPAIRED"] == "1"


@pytest.mark.parametrize("ground", ["iptables"], indirect=True)
def test_a_rule_put_before_ours_is_told_and_ours_comes_first_again(
    ground: Ground,
) -> None:
    guardd = ground.start()
    # else it may be the quicker one
    with guardd.paused():
        for to in (MX4, MX6):
            iptables("-I OUTPUT -p tcp -j ACCEPT", to)
        assert not shut(ground)  # so it matters
        done = ground.ctl("verify")
    assert done.returncode and "rules of others before" in done.stdout, done
    until(lambda: bool(tampered(ground)), "the finding", 70)
    guardd.until(lambda: "changed by" not in guardd.status, "STATUS")
    assert shut(ground)
    for to in (MX4, MX6):
        first, second = iptables("-S OUTPUT", to).splitlines()[1:3]
        assert first.endswith("_OUTPUT") and second.endswith("-j ACCEPT")
    assert not ground.ctl("verify").stdout.count("rules of others before")
    (one,) = tampered(ground)
    assert one["WHAT"] == "backstop" and one["REPAIRED"] == "1"


@pytest.mark.parametrize("ground", ["nftables"], indirect=True)
def test_with_report_it_is_told_and_left(ground: Ground) -> None:
    guardd = ground.start(policy(ground.kind, more='tamper = "report"'))
    flush_ruleset(ground)
    until(lambda: bool(tampered(ground)), "the finding")
    guardd.until(lambda: "backstop" in guardd.status, "STATUS")
    assert not rules(ground)
    assert ground.free(lambda: connect(MX4)).errno == 0
    assert "backstop" in ground.ctl("status").stdout
    for verb in ("verify", "doctor"):
        done = ground.ctl(verb)
        assert done.returncode and "rules of nftables are gone" in done.stdout, done
    ground.apply(policy(ground.kind, more='tamper = "report"'))  # puts it back
    assert shut(ground)
    changed, good = (one for one in until_two(ground))
    assert (changed["STATE"], good["STATE"]) == ("changed", "good")


def until_two(ground: Ground) -> list[dict[str, str]]:
    until(lambda: len(tampered(ground)) > 1, "that it is good again")
    return tampered(ground)


def rules(ground: Ground) -> str:
    if ground.kind == "nftables":
        return nft("-s", "list", "ruleset")
    return "".join(iptables("-S", to) for to in (MX4, MX6))


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


@pytest.mark.parametrize("ground", ["nftables"], indirect=True)
def test_an_uplink_that_comes_goes_or_is_renamed_is_no_finding(ground: Ground) -> None:
    """Named by nobody: those of a default route."""
    ground.start(policy(ground.kind).replace('uplinks = ["host0"]\n', ""))
    assert '"host0"' not in nft("list", "ruleset")
    _ip(f"route add default via {MX4}")
    until(lambda: '"host0"' in nft("list", "ruleset"), "the new uplink", 10)
    _ip(
        "link add name up1 type veth peer name up2",
        "link set up1 up",
        "link set up2 up",
    )
    _ip("addr add 203.0.113.9/24 dev up1", "route add default dev up1 metric 9")
    until(lambda: '"up1"' in nft("list", "ruleset"), "one more", 10)
    _ip("link set up1 down", "link set up1 name up9", "link set up9 up")
    _ip("route replace default dev up9 metric 9")
    until(lambda: '"up9"' in nft("list", "ruleset"), "its new name", 10)
    assert '"up1"' not in nft("list", "ruleset")
    _ip("link del up9")
    until(lambda: '"up9"' not in nft("list", "ruleset"), "its end", 10)
    _ip(
        "link add name up9 type veth peer name up2",
        "link set up9 up",
        "link set up2 up",
    )
    _ip("route add default dev up9 metric 9")
    until(lambda: '"up9"' in nft("list", "ruleset"), "its return", 10)
    assert "device" in nft("list", "chain", "netdev", _table(ground), "egress")
    assert not tampered(ground)
    until(
        lambda: "uplinks host0 up9" in ground.ctl("verify", "--json").stdout, "verify"
    )
    flush_ruleset(ground)
    until(lambda: bool(tampered(ground)), "the finding about a real change")


@pytest.mark.parametrize("ground", ["nftables"], indirect=True)
def test_a_named_uplink_that_is_deleted_and_made_again_is_met(ground: Ground) -> None:
    names = 'uplinks = ["host0", "up1"]\n'
    ground.start(policy(ground.kind, backstop=names))
    for _ in range(3):
        _ip("link add name up1 type veth peer name up2", "link set up1 up")
        until(
            lambda: "up1" in nft("list", "table", "netdev", _table(ground)),
            "egress of up1",
            75,
        )
        _ip("link del up1")
        until(lambda: "up1" not in nft("list", "ruleset"), "its end", 75)
    assert not tampered(ground)
