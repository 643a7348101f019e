# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict in plain words: rule by rule, first match wins.

Says nothing of bitmasks on purpose. The kernel answers from rows.py's masks;
tests compare its answers with these, and `guardctl explain` shows these.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guard.abi import NAME_LEN, Direction, ExeKey, Verdict
from guard.policy.files import is_missing, stat_identify
from guard.policy.model import NAT64, Address, Network, Policy, Rule
from guard.policy.units import UnitPattern, tail_of

# Device, inode, generation and name of a struct exe_key.
ExeId = tuple[int, int, int, bytes]


@dataclass(frozen=True, slots=True)
class Executable:
    """What the kernel knows of the file that a process runs."""

    inode: ExeId
    name: ExeId  # in its directory
    trusted: bool = True  # root's, and nobody else can write it


@dataclass(frozen=True, slots=True)
class Caller:
    """Who connects. None: not known, which no rule that names it matches."""

    uid: int | None = None  # effective
    gid: int | None = None  # effective
    executable: Executable | None = None
    unit: str | None = None  # cgroup path from the root of cgroup2


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to; direction LOCAL when the address is one of the host's own."""

    address: Address
    port: int
    direction: Direction = Direction.OUTBOUND


@dataclass(frozen=True, slots=True)
class Trial:
    """How one rule compared: the keys that did not hold, none if it matched."""

    rule: int
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, whatever the mode, and how it came about."""

    verdict: Verdict
    rule: int | None  # None: no rule matched
    quiet: bool  # counted, but no finding
    why: tuple[Trial, ...]  # rules of this direction, up to the deciding one


def exe_id(key: ExeKey) -> ExeId:
    """Give what identifies a file in a key, without its slot."""
    return key.device, key.inode, key.generation, bytes(key.name)


def evaluate(
    policy: Policy,
    caller: Caller,
    destination: Destination,
    identify: Callable[[Path], tuple[ExeKey, ExeKey]] = stat_identify,
) -> Decision:
    """Judge a connection by reading the rules from the first to the last.

    identify gives the two keys of an executable named in a rule; it must be
    the one that the caller's executable was described with. Raises what
    identify raises, but for the OSError of a file that is missing.
    """
    why = []
    for rule in policy.rules:
        if rule.direction is not destination.direction:
            continue
        failed = tuple(_failures(rule, caller, destination, identify))
        why.append(Trial(rule.number, failed))
        if not failed:
            return Decision(rule.verdict, rule.number, policy.quiet(rule), tuple(why))
    if destination.direction is Direction.LOCAL:
        return Decision(policy.local_default, None, policy.default_quiet, tuple(why))
    return Decision(Verdict.DENY, None, False, tuple(why))


def _failures(
    rule: Rule,
    caller: Caller,
    destination: Destination,
    identify: Callable[[Path], tuple[ExeKey, ExeKey]],
) -> list[str]:
    failed = []
    if rule.units is not None and not any(
        unit_matches(pattern, caller.unit) for pattern in rule.units
    ):
        failed.append("unit")
    if rule.exes is not None and not any(
        _exe_matches(path, caller.executable, identify) for path in rule.exes
    ):
        failed.append("exe")
    if rule.uids is not None and caller.uid not in rule.uids:
        failed.append("user")
    if rule.gids is not None and caller.gid not in rule.gids:
        failed.append("group")
    if rule.to is not None and not any(
        network_matches(network, destination.address) for network in rule.to
    ):
        failed.append("to")
    if rule.ports is not None and destination.port not in rule.ports:
        failed.append("ports")
    return failed


def unit_matches(pattern: UnitPattern, unit: str | None) -> bool:
    """Tell whether a cgroup path is the pattern's or lies below it."""
    if unit is None:
        return False
    raw = unit.encode("utf-8", "surrogateescape")
    names = [name for name in raw.split(b"/") if name]
    if len(names) < len(pattern.components):
        return False
    for component, name in zip(pattern.components, names, strict=False):
        if len(name) >= NAME_LEN:  # the kernel does not compare so long a name
            return False
        if not component.star:
            if name != component.head:
                return False
        elif not name.startswith(component.head) or (
            component.tail is not None and tail_of(name) is not component.tail
        ):
            return False
    return True


def network_matches(network: Network, address: Address) -> bool:
    """Tell whether a prefix holds an address, IPv4 through NAT64 included."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return network_matches(network, address.ipv4_mapped)
        if address in NAT64 and isinstance(network, ipaddress.IPv4Network):
            return ipaddress.IPv4Address(address.packed[12:]) in network
    return address in network


def _exe_matches(
    path: Path,
    executable: Executable | None,
    identify: Callable[[Path], tuple[ExeKey, ExeKey]],
) -> bool:
    if executable is None or not executable.trusted:
        return False
    try:
        inode, name = identify(path)
    except OSError as error:
        if is_missing(error):
            return False
        raise
    return exe_id(inode) == executable.inode or exe_id(name) == executable.name
