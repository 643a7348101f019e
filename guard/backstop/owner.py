# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of a policy in terms that netfilter can compare without our programs.

It knows the user and group that made a socket and the socket's cgroup, not the
executable. An allow rule that names one as well is made without it, and so lets
more pass: better than no mail, and `untold` says so. What would then allow anybody,
or deny more than it says, is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guard.abi import Direction, Verdict
from guard.kernel import find_cgroup2
from guard.policy import Network, Policy, Rule
from guard.policy.units import Component, UnitPattern, tail_of

# What systemd-escape(1) leaves in the name of a unit. Other names are made by
# those who were given a part of the tree, and may hold what a rule's text must not.
_PLAIN = re.compile(r"[A-Za-z0-9:_.@\\-]+")


@dataclass(frozen=True, slots=True)
class Term:
    """One rule; all that it names must hold. None: not named."""

    number: int  # of the rule
    verdict: Verdict
    uids: tuple[int, ...] | None  # that made the socket
    gids: tuple[int, ...] | None
    # those there are now: path below the root of cgroup2, and number (inode), which
    # is another when the unit was started anew
    cgroups: tuple[tuple[str, int], ...] | None
    to: tuple[Network, ...] | None
    ports: tuple[int, ...] | None
    quiet: bool


def terms(policy: Policy) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Give the outbound and the local rules that can be expressed, in order."""
    made: dict[Direction, list[Term]] = {direction: [] for direction in Direction}
    for rule in policy.rules:
        if _expressible(rule):
            made[rule.direction].append(_term(rule, policy.quiet(rule)))
    return tuple(made[Direction.OUTBOUND]), tuple(made[Direction.LOCAL])


def untold(policy: Policy) -> Iterator[tuple[Rule, str]]:
    """Give what cannot be expressed: each rule, and what becomes of it."""
    for rule in policy.rules:
        if not _expressible(rule):
            yield rule, "left out: netfilter cannot tell an executable"
        elif rule.exes is not None:
            yield rule, "made without its exe, which netfilter cannot tell"
        elif rule.units is not None:
            yield rule, "knows a unit up to a second after it was started"
        elif rule.verdict is Verdict.REDIRECT:
            yield rule, "denies: without the kernel programs nothing is redirected"


def lost(policy: Policy) -> list[tuple[str, str]]:
    """Give all that this design lacks: what of the policy, and what becomes of it."""
    found = [(rule.label, what) for rule, what in untold(policy)]
    if policy.mta.socket:
        what = (
            "is not answered: Postfix does its default_action, and nobody must log in"
        )
        found.append(("[mta]", f"{what} or is limited"))
    return found


def _expressible(rule: Rule) -> bool:
    if rule.exes is None:
        return True
    names_more = (rule.units, rule.uids, rule.gids) != (None,) * 3
    return rule.verdict is Verdict.ALLOW and names_more


def _term(rule: Rule, quiet: bool) -> Term:
    return Term(
        rule.number,
        # no redirect here, and zero denies
        rule.verdict if rule.verdict is Verdict.ALLOW else Verdict.DENY,
        rule.uids,
        rule.gids,
        None if rule.units is None else cgroups_of(rule.units),
        rule.to,
        rule.ports,
        quiet,
    )


def cgroups_of(patterns: tuple[UnitPattern, ...]) -> tuple[tuple[str, int], ...]:
    """Name the cgroups there are now that match, below the root of cgroup2.

    A rule of netfilter holds a cgroup, not its name: one that is made anew is
    another, and the rules are then to be made anew.
    """
    root = find_cgroup2()
    found: dict[str, int] = {}
    for pattern in patterns:
        for path in _match(root, pattern.components):
            with contextlib.suppress(OSError):  # it ended meanwhile
                found[str(path.relative_to(root))] = path.stat().st_ino
    return tuple(found.items())


def _match(folder: Path, components: tuple[Component, ...]) -> Iterator[Path]:
    if not components:
        yield folder
        return
    first, *rest = components
    names = [os.fsdecode(first.head)]
    if first.star:
        try:
            names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        except OSError:  # it ended meanwhile
            return
    for name in sorted(names):
        fits = not first.star or _fits(os.fsencode(name), first)
        if fits and _PLAIN.fullmatch(name) and (folder / name).is_dir():
            yield from _match(folder / name, tuple(rest))


def _fits(name: bytes, component: Component) -> bool:
    return name.startswith(component.head) and (
        component.tail is None or tail_of(name) is component.tail
    )
