# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong between rules: names given twice, rules never reached."""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias, TypeVar

from guard.abi import MAX_ROWS, Verdict
from guard.policy.model import Network, Policy, Rule
from guard.policy.source import Problems
from guard.policy.units import UnitPattern

T = TypeVar("T")
Span: TypeAlias = tuple[int, int, int]  # IP version, first and last address
_LAST = 1 << 128


# Half of each map's max_entries in bpf/maps.bpf.h: when a policy takes over, the one
# before it is still in there. What counts is rows: an executable takes two, an IPv4
# prefix a second one for NAT64.
CAPACITY = {"exes": 2048, "numbers": 8192, "units": 8192, "prefixes": 8192}


def check_size(policy: Policy, name: str, problems: Problems) -> bool:
    """Note a policy that the kernel's tables cannot hold; False then."""
    rows = sum(rule.rows for rule in policy.rules)
    if rows > MAX_ROWS:
        problems.add(
            "error",
            name,
            f"{rows} rows, the kernel compares {MAX_ROWS}; a rule takes one, or one"
            " for each of its units",
            "join rules that differ in one value into one with a list, or use a *",
        )
        return False
    good = True
    for (table, what), number in _sizes(policy).items():
        if number > CAPACITY[table]:
            good = False
            problems.add(
                "error",
                name,
                f"{what} take {number} rows, the kernel has room for {CAPACITY[table]}",
                "name fewer: a wider prefix, a group for users, a unit for programs",
            )
    return good


def _sizes(policy: Policy) -> dict[tuple[str, str], int]:
    """Give how many rows the policy has at most in each table of the kernel."""
    rules = policy.rules
    networks = {network for rule in rules for network in rule.to or ()}
    v4 = sum(network.version == 4 for network in networks)
    names = {
        (depth, component.head, component.star)
        for rule in rules
        for pattern in rule.units or ()
        for depth, component in enumerate(pattern.components)
    }
    numbers = [
        {value for rule in rules for value in values(rule) or ()}
        for values in (attrgetter("uids"), attrgetter("gids"), attrgetter("ports"))
    ]
    exes = {path for rule in rules for path in rule.exes or ()}
    return {
        ("exes", "executables"): 2 * len(exes),
        ("numbers", "users, groups and ports"): sum(map(len, numbers)),
        ("units", "units"): len(names),
        ("prefixes", "prefixes"): len(networks) + v4 + 1,
    }


def check_rules(policy: Policy, problems: Problems) -> None:
    """Note duplicate names, unreachable rules, and rules that let all pass."""
    _names(policy, problems)
    _unreachable(policy, problems)
    for rule in policy.rules:
        _wide(rule, problems)
        _unguarded(rule, policy, problems)


def _add(problems: Problems, severity: str, rule: Rule, *texts: str) -> None:
    problems.add(severity, rule.file, *texts, line=rule.line, rule=rule.label)


def _place(rule: Rule) -> str:
    return f"{rule.file}:{rule.line}" if rule.line else rule.file


def _names(policy: Policy, problems: Problems) -> None:
    first: dict[str, Rule] = {}
    for rule in policy.rules:
        if not rule.name:
            continue  # reported where it was read
        other = first.setdefault(rule.name, rule)
        if other is not rule:
            _add(
                problems,
                "error",
                rule,
                f"the name is taken by the rule at {_place(other)}",
                "give each rule a name of its own; findings are told apart by it",
            )


@dataclass(frozen=True, slots=True)
class _Reach:
    """What a rule matches, so that two of thousands of values compare quickly."""

    uids: frozenset[int] | None
    gids: frozenset[int] | None
    exes: frozenset[Path] | None
    ports: frozenset[int]
    units: tuple[UnitPattern, ...] | None
    to: list[Span] | None  # in order, none touches another of its kind


def _reach(rule: Rule, policy: Policy) -> _Reach:
    return _Reach(
        _set(rule.uids),
        _set(rule.gids),
        _set(rule.exes),
        policy.ports if rule.ports is None else frozenset(rule.ports),
        rule.units,
        None if rule.to is None else _spans(rule.to),
    )


def _set(values: Iterable[T] | None) -> frozenset[T] | None:
    return None if values is None else frozenset(values)


def _spans(networks: Iterable[Network]) -> list[Span]:
    """Give IP version, first and last address of what networks come to."""
    v4 = [n for n in networks if isinstance(n, ipaddress.IPv4Network)]
    v6 = [n for n in networks if isinstance(n, ipaddress.IPv6Network)]
    whole: list[Network] = [*ipaddress.collapse_addresses(v4)]
    whole += ipaddress.collapse_addresses(v6)
    return sorted((n.version, int(n[0]), int(n[-1])) for n in whole)


def _unreachable(policy: Policy, problems: Problems) -> None:
    reaches = [_reach(rule, policy) for rule in policy.rules]
    for index, rule in enumerate(policy.rules):
        for earlier, reach in zip(policy.rules[:index], reaches, strict=False):
            if earlier.direction is rule.direction and _covers(reach, reaches[index]):
                # An own rule that hides an included one is the way to override.
                clash = earlier.verdict is not rule.verdict
                same_file = earlier.file == rule.file
                _add(
                    problems,
                    "error" if clash and same_file else "warning",
                    rule,
                    f"is never reached: {earlier.label} at {_place(earlier)} comes"
                    " first and matches all that it matches",
                    "move it before that rule, narrow that rule, or remove this one",
                )
                break


def _covers(a: _Reach, b: _Reach) -> bool:
    """Tell whether b certainly matches nothing that a does not match."""
    return (
        _subset(a.uids, b.uids)
        and _subset(a.gids, b.gids)
        and _subset(a.exes, b.exes)
        and _subset(a.ports, b.ports)
        and _covers_units(a.units, b.units)
        and _covers_networks(a.to, b.to)
    )


def _subset(a: frozenset[T] | None, b: frozenset[T] | None) -> bool:
    """Tell whether values b lie within a; an empty b never matches anyway."""
    return a is None or (bool(b) and (b or a) <= a)


def _covers_units(
    a: tuple[UnitPattern, ...] | None, b: tuple[UnitPattern, ...] | None
) -> bool:
    if a is None:
        return True
    return bool(b) and all(any(wide.covers(narrow) for wide in a) for narrow in b or ())


def _covers_networks(a: list[Span] | None, b: list[Span] | None) -> bool:
    return a is None or (bool(b) and all(_within(span, a) for span in b or ()))


def _within(span: Span, spans: list[Span]) -> bool:
    """Tell whether one of the spans holds all of another."""
    version, first, last = span
    at = bisect.bisect_right(spans, (version, first, _LAST)) - 1
    return at >= 0 and spans[at][0] == version and last <= spans[at][2]


def _wide(rule: Rule, problems: Problems) -> None:
    """Warn of what lets anybody pass: the guard then guards nothing."""
    if rule.direction or rule.verdict is not Verdict.ALLOW:
        return
    who = (rule.units, rule.exes, rule.uids, rule.gids)
    if who == (None,) * 4 and rule.to is None:
        _add(
            problems,
            "warning",
            rule,
            "lets every process connect anywhere",
            "name a unit, exe, user or group; to look only, use observe mode",
        )
    elif rule.exes is not None and (rule.units, rule.uids, rule.gids) == (None,) * 3:
        _add(
            problems,
            "warning",
            rule,
            "names an executable only; anybody can run it, and load code into it",
            "name the user or the unit it runs as, too",
        )


def _unguarded(rule: Rule, policy: Policy, problems: Problems) -> None:
    for port in rule.ports or ():
        if port not in policy.ports:
            _add(
                problems,
                "warning",
                rule,
                f"port {port} is not guarded, the rule never sees it",
                f"add {port} to ports of the policy, or remove it here",
            )
