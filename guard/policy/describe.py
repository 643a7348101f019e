# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy in words and as JSON, for the verbs that show it."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable

from guard.abi import Direction
from guard.policy.model import Limit, Mta, Policy, Rule

# In the order in which a reader looks for the reason.
CONDITIONS = ("unit", "exe", "user", "group", "to", "ports")


def user_name(uid: int) -> str:
    """Name a uid, or give it as digits."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def group_name(gid: int) -> str:
    """Name a gid, or give it as digits."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)


def conditions(rule: Rule) -> dict[str, list[str]]:
    """Give what the rule names, by the keys of the policy file.

    An empty list stands for names of which none exists here.
    """
    found: dict[str, list[str]] = {}
    if rule.units is not None:
        found["unit"] = [pattern.path for pattern in rule.units]
    if rule.exes is not None:
        found["exe"] = list(map(str, rule.exes))
    _names(found, "user", rule.uids, user_name)
    _names(found, "group", rule.gids, group_name)
    if rule.to is not None:
        found["to"] = ["smart-host"] if rule.smart else []
        found["to"] += map(str, rule.to)
    if rule.ports is not None:
        found["ports"] = list(map(str, rule.ports))
    return found


def _names(
    found: dict[str, list[str]],
    key: str,
    numbers: tuple[int, ...] | None,
    name: Callable[[int], str],
) -> None:
    if numbers is not None:
        found[key] = list(map(name, numbers))


def rule_json(policy: Policy, rule: Rule) -> dict[str, object]:
    """Give one rule as a JSON object, numbers with their names resolved."""
    return {
        "number": rule.number,
        "name": rule.name,
        "direction": rule.direction.name.lower(),
        "verdict": rule.verdict.name.lower(),
        "journal": not policy.quiet(rule),
        "optional": rule.optional,
        "login": not rule.vouches if rule.reaches_us else None,
        "folder": None if rule.folders is None else list(map(str, rule.folders)),
        "file": rule.file,
        "line": rule.line,
        **conditions(rule),
    }


def policy_json(policy: Policy) -> dict[str, object]:
    """Give a policy as a JSON object, with the rules in match order."""
    return {
        "mode": policy.mode.name.lower(),
        "ports": sorted(policy.ports),
        "sha256": policy.sha256.hex(),
        "files": list(map(str, policy.files)),
        "local": {
            "audit": policy.local_audit,
            "default": policy.local_default.name.lower(),
        },
        "redirect": {
            "to": _target(policy.redirect4),
            "to6": _target(policy.redirect6),
        },
        "fold": {
            "window_ns": policy.fold.window_ns,
            "denied": policy.fold.denied,
            "local": policy.fold.local,
        },
        "backstop": {
            "kind": policy.backstop.kind,
            "mark": policy.backstop.mark,
            "forward": [str(network) for network in policy.backstop.forward],
            "uplinks": policy.backstop.uplinks,
            "group": policy.backstop.group,
        },
        "before": {"end": policy.before.end, "grace_ns": policy.before.grace_ns},
        "mta": _mta_json(policy.mta),
        "tamper": "repair" if policy.repair else "report",
        "self_protection": policy.protection.name.lower(),
        "require": "bpf" if policy.needs_bpf else "any",
        "smart_host": smart_host_json(policy),
        "rules": [rule_json(policy, rule) for rule in policy.rules],
        "warnings": [problem.as_json() for problem in policy.warnings],
    }


def smart_host_json(policy: Policy) -> dict[str, object] | None:
    """Give the smart host and its addresses as a JSON object; None: no rule asks."""
    if policy.known is None:
        return None
    host = policy.smart_host
    return {
        "name": str(host) if host else None,
        "source": host.source if host else None,
        "addresses": list(map(str, policy.known.addresses)),
        "error": policy.known.error,
    }


def _mta_json(mta: Mta) -> dict[str, object]:
    return {
        "socket": str(mta.socket) if mta.socket else None,
        "mode": mta.mode.name.lower(),
        "relay_mynetworks": mta.relay_mynetworks,
        "unknown": mta.unknown,
        "token_keys": str(mta.token_keys) if mta.token_keys else None,
        "limits": [limit_json(limit) for limit in mta.limits],
    }


def limit_json(limit: Limit) -> dict[str, object]:
    """Give one limit as a JSON object, by the keys of the policy file."""
    return {
        "name": limit.name,
        "by": limit.by,
        "action": limit.action,
        "messages_per_minute": limit.messages[0],
        "messages_per_hour": limit.messages[1],
        "recipients_per_minute": limit.recipients[0],
        "recipients_per_hour": limit.recipients[1],
        "below": str(limit.below) if limit.below else None,
        "rule": None if limit.rules is None else list(limit.rules),
    }


def _target(to: tuple[str, int] | None) -> dict[str, object] | None:
    return None if to is None else {"addr": to[0], "port": to[1]}


def heading(rule: Rule) -> str:
    """Name a rule with its verdict, for a line of its own."""
    local = "local " if rule.direction is Direction.LOCAL else ""
    return f"{local}{rule.verdict.name.lower()} {rule.name}"
