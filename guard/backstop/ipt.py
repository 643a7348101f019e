# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts chains into iptables' filter tables: a process of its own, run by iptables.py.

python-iptables takes 21 MB and 0.2 s to import, and the C libraries below it may end
the process they are in. One JSON question on standard input, one answer on standard
output: {"error": text}, or {}.

Each family's table goes in by one commit, so its rules are all there or none. Other
programs that do the same at that moment are kept out by their own lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import iptc

_LOCK = "/run/xtables.lock"  # XT_LOCK_NAME, iptables(8)


def answer(question: dict[str, Any]) -> dict[str, str]:
    """Do what was asked, of both families: put, remove, or try what can be had."""
    chains: list[str] = question["chains"]
    with _locked():
        for family, kind in (("4", iptc.Table), ("6", iptc.Table6)):
            table = kind(kind.FILTER)
            if question["verb"] == "try":
                continue
            table.autocommit = False
            _take_out(table, chains)
            _put(table, question["rules"], family)
            table.commit()
    return {}


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    lock = os.open(_LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _take_out(table: Any, chains: list[str]) -> None:
    """Remove our chains, and what leads to them in those of the kernel."""
    there = [chain for chain in table.chains if chain.name in chains]
    for chain in table.chains:
        if chain.is_builtin():
            for rule in chain.rules:
                if rule.target and rule.target.name in chains:
                    chain.delete_rule(rule)
    for chain in there:
        chain.flush()
        chain.delete()


def _put(table: Any, rules: list[dict[str, Any]], family: str) -> None:
    ours = [rule for rule in rules if family in rule["families"]]
    for name in dict.fromkeys(rule["chain"] for rule in ours):
        if not iptc.Chain(table, name).is_builtin() and not table.is_chain(name):
            table.create_chain(name)
    # those that lead to our chains go first of all, in the order given
    for rule in reversed(ours):
        chain = iptc.Chain(table, rule["chain"])
        if chain.is_builtin():
            chain.insert_rule(_rule(rule, family))
    for rule in ours:
        chain = iptc.Chain(table, rule["chain"])
        if not chain.is_builtin():
            chain.append_rule(_rule(rule, family))


def _rule(wanted: dict[str, Any], family: str) -> Any:
    rule = iptc.Rule() if family == "4" else iptc.Rule6()
    if wanted["protocol"]:
        rule.protocol = wanted["protocol"]
    for attribute, key in (("src", "src"), ("dst", "dst"), ("out_interface", "out")):
        if wanted[key]:
            setattr(rule, attribute, wanted[key])
    if family == "6" and wanted["out"]:
        # python-iptables 1.0.1 compares one bit of each letter: to it tun0 is lo
        rule.entry.ipv6.outiface_mask = b"\xff" * (len(wanted["out"].lstrip("!")) + 1)
    for name, parameters in wanted["matches"]:
        match = rule.create_match(name)
        for parameter, value in parameters.items():
            match.set_parameter(parameter, value)
    target = rule.create_target(wanted["target"])
    for parameter, value in wanted["parameters"].items():
        target.set_parameter(parameter, value)
    return rule


_rooms: list[Any] = []  # for as long as this process lives


def _reset_with_room(
    target: Any, reset: Callable[[Any], None] = iptc.Target.reset
) -> None:
    """Have what an extension notes down in memory that stays.

    python-iptables 1.0.1 gives it a buffer that it frees at once, and NFLOG writes
    its prefix there: a crash some rules later.
    """
    reset(target)
    module = target._module
    if size := getattr(module, "udata_size", 0):
        _rooms.append((ctypes.c_ubyte * size)())
        module.udata = ctypes.cast(_rooms[-1], ctypes.c_void_p)


iptc.Target.reset = _reset_with_room


def main() -> None:
    """Answer the one question on standard input."""
    try:
        given = answer(json.load(sys.stdin))
    except (iptc.IPTCError, iptc.xtables.XTablesError, OSError) as error:
        given = {"error": str(error) or type(error).__name__}
    json.dump(given, sys.stdout)


if __name__ == "__main__":
    main()
