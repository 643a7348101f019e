# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong between rules: names given twice, rules never reached."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from guard.abi import Verdict
from guard.policy.model import Policy, Rule
from guard.policy.source import Problems


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


def _unreachable(policy: Policy, problems: Problems) -> None:
    for index, rule in enumerate(policy.rules):
        for earlier in policy.rules[:index]:
            if earlier.direction is rule.direction and _covers(earlier, rule, policy):
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


def _covers(a: Rule, b: Rule, policy: Policy) -> bool:
    """Tell whether b certainly matches nothing that a does not match."""
    return (
        _subset(a.uids, b.uids)
        and _subset(a.gids, b.gids)
        and _subset(a.exes, b.exes)
        and _subset(a.ports, b.ports if b.ports is not None else policy.ports)
        and _covers_units(a, b)
        and _covers_networks(a, b)
    )


def _subset(a: Iterable[Any] | None, b: Iterable[Any] | None) -> bool:
    """Tell whether values b lie within a; an empty b never matches anyway."""
    if a is None:
        return True
    values = set(b or ())
    return bool(values) and values.issubset(a)


def _covers_units(a: Rule, b: Rule) -> bool:
    if a.units is None:
        return True
    return bool(b.units) and all(
        any(wide.covers(narrow) for wide in a.units) for narrow in b.units or ()
    )


def _covers_networks(a: Rule, b: Rule) -> bool:
    if a.to is None:
        return True
    v4 = [n for n in a.to if isinstance(n, ipaddress.IPv4Network)]
    v6 = [n for n in a.to if isinstance(n, ipaddress.IPv6Network)]
    wide4 = list(ipaddress.collapse_addresses(v4))
    wide6 = list(ipaddress.collapse_addresses(v6))
    return bool(b.to) and all(
        any(n.subnet_of(wide) for wide in wide4)
        if isinstance(n, ipaddress.IPv4Network)
        else any(n.subnet_of(wide) for wide in wide6)
        for n in b.to or ()
    )


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
