# SPDX-License-Identifier: GPL-2.0-or-later
"""Are the links, programs and maps in the kernel the ones we put there?

Nothing recorded by the guard itself is believed: programs are compared with the
installed object loaded afresh, rows with the policy file compiled afresh.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from guard import abi, kernel, libbpf
from guard.checks import Check, State, good
from guard.errors import GuardError, KernelError, PolicyError
from guard.force import exe_keys
from guard.hosts import own_addresses
from guard.kernel import Guard
from guard.policy import Policy, compile_rows, load
from guard.tables import MAPS, ROW_MAPS, guarded_ports, netns_cookie, row_slot

_RELOAD = "load it again: systemctl restart smtp-guard, or guardctl load"
_TAMPERED = f"somebody changed it; find out who, then {_RELOAD}"


def verify(guard: Guard) -> Iterator[Check]:
    """Answer every question about what is loaded, one after the other."""
    yield _links(guard)
    yield _programs(guard)
    yield _maps(guard)
    yield _hosts(guard)
    yield from _policy(guard)


def _links(guard: Guard) -> Check:
    attached = {link.name: link for link in guard.attachments()}
    missing = [hook for hook in kernel.HOOKS if hook not in attached]
    if missing:
        return Check("links", State.BAD, f"not attached: {', '.join(missing)}", _RELOAD)
    folder = Path(guard.about().get("cgroup", ""))
    try:
        # the inode number of a cgroup2 folder is its cgroup id (kernfs, 64 bit)
        wanted = os.stat(folder).st_ino
    except OSError:
        return Check("links", State.BAD, f"the cgroup {folder} is gone", _RELOAD)
    astray = [link.name for link in attached.values() if link.cgroup_id != wanted]
    if astray:
        return Check(
            "links", State.BAD, f"not at {folder}: {', '.join(astray)}", _TAMPERED
        )
    return good("links", f"{len(attached)} attached at {folder}")


def _programs(guard: Guard) -> Check:
    """A tag is the SHA-1 of a program's instructions, bpf_prog_calc_tag()."""
    try:
        with libbpf.Object(kernel.OBJECT) as fresh:
            fresh.load()
            tags = {hook: libbpf.tag(fresh.program(hook)) for hook in kernel.HOOKS}
    except KernelError as error:
        return Check("programs", State.BAD, str(error), error.hint)
    others = [a.name for a in guard.attachments() if a.tag != tags[a.name]]
    if others:
        return Check(
            "programs",
            State.BAD,
            f"not those of {kernel.OBJECT}: {', '.join(others)}",
            f"after an upgrade: systemctl restart smtp-guard; else {_TAMPERED}",
        )
    return good("programs", "those of the installed object")


def _maps(guard: Guard) -> Check:
    ours = {guard.map(pin).id for pin in MAPS.values()}
    strange = [
        link.name
        for link in guard.attachments()
        if not libbpf.program_maps(link.program_id) <= ours
    ]
    if strange:
        return Check(
            "maps", State.BAD, f"{', '.join(strange)}: uses other maps", _TAMPERED
        )
    return good("maps", f"{len(ours)} pinned, used by every program")


def _hosts(guard: Guard) -> Check:
    if guard.home_netns != netns_cookie():
        return Check(
            "addresses",
            State.NOTE,
            "the guard belongs to another network namespace; not compared",
        )
    have = set(guard.map("hosts").keys())
    want = {abi.pack_address(text) for text in own_addresses()}
    for wrong, state, what in (
        (have - want, State.BAD, "not this host's, but let pass as such"),
        (want - have, State.WARN, "not yet known as this host's"),
    ):
        if wrong:
            names = ", ".join(sorted(map(abi.unpack_address, wrong)))
            return Check(
                "addresses",
                state,
                f"{what}: {names}",
                "guardd keeps them current: systemctl restart smtp-guard",
            )
    return good("addresses", f"{len(have)} addresses of this host known as local")


def _policy(guard: Guard) -> Iterator[Check]:
    file = Path(guard.about().get("policy", ""))
    try:
        policy = load(file)
    except PolicyError as error:
        yield Check(
            "policy",
            State.WARN,
            f"{file} cannot be read, what is in force stays and is not compared: "
            f"{error}",
            "guardctl policy check",
        )
        return
    if policy.sha256 != bytes(guard.policy().sha256):
        yield Check(
            "policy",
            State.WARN,
            f"{file} was changed since it was put in force; rows are not compared",
            "guardctl policy apply",
        )
        return
    yield good("policy", f"{file}, sha256 {policy.sha256.hex()[:12]}")
    yield _rows(guard, policy)


def _rows(guard: Guard, policy: Policy) -> Check:
    slot = guard.slot
    try:
        rows = compile_rows(policy, slot, exe_keys(guard))
    except (GuardError, OSError) as error:
        return Check("rows", State.BAD, str(error), _RELOAD)
    wrong = []
    for name, kind in ROW_MAPS.items():
        have = {
            key: value
            for key, value in guard.map(name).items()
            if row_slot(kind.from_buffer_copy(key)) == slot
        }
        want = {_normal(name, key): value for key, value in getattr(rows, name).items()}
        if {_normal(name, key): value for key, value in have.items()} != want:
            wrong.append(name)
    rules = [bytes(rule) for rule in rows.rules]
    while rules and not any(rules[-1]):  # deny by rule 0 is all zero
        rules.pop()
    if guard.rules(slot) != rules:
        wrong.append("rules")
    if bytes(guard.policy()) != bytes(rows.policy):
        wrong.append("policies")
    if guarded_ports(guard.control()) != rows.ports:
        wrong.append("ports")
    if wrong:
        return Check(
            "rows",
            State.BAD,
            f"not what the policy says: {', '.join(wrong)}",
            _TAMPERED,
        )
    return good("rows", f"{len(policy.rules)} rules, as compiled from the policy")


def _normal(name: str, key: bytes) -> bytes:
    """A trie gives its keys back with all bits beyond the prefix cleared."""
    if name not in ("units", "prefixes"):
        return key
    bits = int.from_bytes(key[:4], "little")
    data = int.from_bytes(key[4:], "big")
    spare = 8 * len(key[4:]) - bits
    data = data >> spare << spare
    return key[:4] + data.to_bytes(len(key) - 4, "big")
