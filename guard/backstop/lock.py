# SPDX-License-Identifier: GPL-2.0-or-later
"""What the second lock is to be: all that its rules in netfilter say."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from guard.abi import Mode, Verdict
from guard.backstop.owner import Term, terms
from guard.policy import Network, Policy


class Design(enum.Enum):
    """By what a lawful SYN is known."""

    MARK = "mark"  # the socket's mark, which our kernel programs put there
    OWNER = "owner"  # the socket's owner and cgroup


@dataclass(frozen=True, slots=True)
class Lock:
    """The second lock, whichever way it is put in force."""

    design: Design
    enforce: bool  # else only recorded
    ports: frozenset[int]
    marks: tuple[int, ...]  # a socket that carries all bits of one was judged
    forward: tuple[Network, ...]  # sources that may send through this host
    uplinks: tuple[str, ...]  # interfaces that lead to other hosts
    group: int  # of NFLOG
    outbound: tuple[Term, ...] = ()  # Design.OWNER: the rules, in order
    local: tuple[Term, ...] = ()
    local_default: Verdict = Verdict.ALLOW
    local_audit: bool = False


def lock_of(policy: Policy, design: Design, uplinks: tuple[str, ...]) -> Lock:
    """Give the lock that a policy asks for on a host with these uplinks."""
    lock = Lock(
        design,
        policy.mode is Mode.ENFORCE,
        policy.ports,
        (policy.backstop.mark,),
        policy.backstop.forward,
        uplinks,
        policy.backstop.group,
    )
    if design is Design.MARK:
        return lock
    outbound, local = terms(policy)
    return replace(
        lock,
        marks=(),
        outbound=outbound,
        local=local,
        local_default=policy.local_default,
        local_audit=policy.local_audit,
    )


def while_changing(old: Lock, new: Lock) -> Lock:
    """Give a lock that refuses only what both refuse.

    In force while the kernel programs go over from one policy to the other: in
    whichever order they change, nothing that either lets pass is refused.
    """
    return replace(
        old,
        enforce=old.enforce and new.enforce,
        ports=old.ports & new.ports,
        marks=tuple(dict.fromkeys(old.marks + new.marks)),
        forward=tuple(dict.fromkeys(old.forward + new.forward)),
    )
