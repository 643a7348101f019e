# SPDX-License-Identifier: GPL-2.0-or-later
"""Are the links, programs and maps in the kernel the ones we put there?

Nothing recorded by the guard itself is believed: programs are compared with the
installed object loaded afresh, rows with the policy file compiled afresh.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from guard import abi, kernel, libbpf, lsm
from guard.backstop.keeper import standing
from guard.checks import Check, State, good
from guard.errors import GuardError, KernelError, PolicyError
from guard.force import exe_keys
from guard.hosts import own_addresses
from guard.kernel import Guard
from guard.neighbours import runs_after
from guard.pins import open_to_others
from guard.policy import Policy, Rows, compile_rows, load
from guard.serving import daemon_pid
from guard.tables import MAPS, ROW_MAPS, guarded_ports, netns_cookie, row_slot

_RELOAD = "load it again: systemctl restart smtp-guard, or guardctl load"
_TAMPERED = f"somebody changed it; find out who, then {_RELOAD}"


def verify(guard: Guard) -> Iterator[Check]:
    """Answer every question about what is loaded, one after the other."""
    yield _links(guard)
    yield lsm.check(guard)
    yield _order(guard)
    yield _programs(guard)
    yield _pins(guard)
    yield _maps(guard)
    yield _hosts(guard)
    yield standing(guard)
    yield from _policy(guard)
    yield from _watch(guard)


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


def _order(guard: Guard) -> Check:
    others = set()
    for link in guard.attachments():
        if link.name not in kernel.DENYING:
            continue
        try:
            folder = kernel.open_cgroup(Path(guard.about().get("cgroup", "")))
        except KernelError as error:
            return Check("order", State.BAD, str(error), _RELOAD)
        try:
            others |= set(runs_after(folder, kernel.HOOKS[link.name], link.program_id))
        finally:
            os.close(folder)
    if others:
        return Check(
            "order",
            State.BAD,
            "programs of others run after ours and can take back a denial: "
            f"{', '.join(sorted(others))}",
            "guardd moves ours behind those at its cgroup: is it running? Of those "
            "at a cgroup above it, ask who attached them: bpftool cgroup tree",
        )
    return good("order", "a denial is the last word: no other program comes after")


def _pins(guard: Guard) -> Check:
    """The programs pinned beside the maps go onto the links in a repair."""
    wrong = unlike_pins(guard)
    if wrong:
        return Check(
            "pins",
            State.BAD,
            f"not the programs that are attached: {', '.join(wrong)}",
            _TAMPERED,
        )
    if open_to_others(guard.pin_dir) or open_to_others(guard.home):
        return Check(
            "pins",
            State.BAD,
            f"others than root and guardd may enter {guard.pin_dir}",
            f"chmod -R go= {guard.pin_dir}; find out who let them in",
        )
    return good("pins", f"those of what is attached, under {guard.pin_dir}")


def unlike_pins(guard: Guard) -> list[str]:
    """Name the hooks whose link runs another program than is pinned beside it."""
    wrong = []
    for link in guard.attachments():
        number = None
        with contextlib.suppress(KernelError):  # the pin is gone
            program = libbpf.get_pinned(guard.home / link.name)
            number = libbpf.info(program, libbpf.ProgramInfo).id
            os.close(program)
        if number != link.program_id:
            wrong.append(link.name)
    return wrong


def _programs(guard: Guard) -> Check:
    """A tag is the SHA-1 of a program's instructions, bpf_prog_calc_tag()."""
    try:
        with libbpf.Object(kernel.OBJECT) as fresh:
            fresh.load()
            tags = {hook: libbpf.tag(fresh.program(hook)) for hook in kernel.HOOKS}
    except KernelError as error:
        return Check("programs", State.BAD, str(error), error.hint)
    others = [a.name for a in guard.attachments() if _tag(a) != tags[a.name]]
    if others:
        return Check(
            "programs",
            State.BAD,
            f"not those of {kernel.OBJECT}: {', '.join(others)}",
            f"after an upgrade: systemctl restart smtp-guard; else {_TAMPERED}",
        )
    return good("programs", "those of the installed object")


def _tag(link: kernel.Attachment) -> str:
    program = libbpf.program_by_id(link.program_id)
    try:
        return libbpf.tag(program)
    finally:
        os.close(program)


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
    wrong = wrong_rows(guard, rows, slot)
    if wrong:
        return Check(
            "rows",
            State.BAD,
            f"not what the policy says: {', '.join(wrong)}",
            _TAMPERED,
        )
    return good("rows", f"{len(policy.rules)} rules, as compiled from the policy")


def _watch(guard: Guard) -> Iterator[Check]:
    """What guardd knows and nobody else: what it put there, whatever files say."""
    if daemon_pid(guard) is None:
        return
    changed = guard.about().get("changed", [])
    if changed:
        yield Check(
            "watch",
            State.WARN if changed == ["policy-file"] else State.BAD,
            f"guardd found changed, and not put back: {', '.join(changed)}",
            "journalctl -t guardd SMTPGUARD_KIND=tampered",
        )
    else:
        yield good("watch", "guardd found nothing that is not as it was put")


def wrong_rows(guard: Guard, rows: Rows, slot: int) -> list[str]:
    """Name what does not say in slot what these rows say, compiled for it.

    Maps by their names, and "ports".
    """
    wrong = []
    for name, kind in ROW_MAPS.items():
        have = {
            key: value
            for key, value in guard.map(name).items()
            if row_slot(kind.from_buffer_copy(key)) == slot
        }
        want = {
            normal_key(name, key): value for key, value in getattr(rows, name).items()
        }
        if {normal_key(name, key): value for key, value in have.items()} != want:
            wrong.append(name)
    rules = [bytes(rule) for rule in rows.rules]
    while rules and not any(rules[-1]):  # deny by rule 0 is all zero
        rules.pop()
    if guard.rules(slot) != rules:
        wrong.append("rules")
    if guard.map("policies").get(struct.pack("=I", slot)) != bytes(rows.policy):
        wrong.append("policies")
    if guarded_ports(guard.control(), slot) != rows.ports:
        wrong.append("ports")
    return wrong


def normal_key(name: str, key: bytes) -> bytes:
    """Give a key of a row map as the map itself gives it back.

    A trie clears all bits beyond the prefix.
    """
    if name not in ("units", "prefixes"):
        return key
    bits = int.from_bytes(key[:4], "little")
    data = int.from_bytes(key[4:], "big")
    spare = 8 * len(key[4:]) - bits
    data = data >> spare << spare
    return key[:4] + data.to_bytes(len(key) - 4, "big")
