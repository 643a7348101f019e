# SPDX-License-Identifier: GPL-2.0-or-later
"""What a question asks for: journald's indexed matches, and the rest by hand."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TypeAlias

from guard.errors import BadQuery
from guard.finding import Finding
from guard.text import printable

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Filter:
    """What a finding must be. Values of one attribute are alternatives."""

    since_us: int = 0  # of the connect(), CLOCK_REALTIME
    until_us: int = (1 << 55) - 1
    ports: tuple[int, ...] = ()
    from_ports: tuple[int, ...] = ()
    to: tuple[str, ...] = ()  # address or prefix
    pids: tuple[int, ...] = ()
    uids: tuple[int, ...] = ()
    users: tuple[str, ...] = ()
    exes: tuple[str, ...] = ()  # exact, or a shell pattern
    units: tuple[str, ...] = ()  # exact, or a shell pattern
    scripts: tuple[str, ...] = ()  # exact, or a shell pattern
    pools: tuple[str, ...] = ()  # exact, or a shell pattern
    verdicts: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    kinds: tuple[str, ...] = field(default=())  # values of Kind

    def matches(self) -> list[str]:
        """Give what journald's index can find: "FIELD=value", ORed a field.

        A "+" stands between two sets of which an entry meets either, as on
        journalctl(1)'s command line: a sum over many destinations may be of any.
        A field with a shell pattern or a prefix among its values is left to
        accepts(). Raises BadQuery for a `to` that is no address.
        """
        indexed: list[tuple[str, Iterable[object]]] = [
            ("SMTPGUARD_DST_PORT", self.ports),
            ("SMTPGUARD_SRC_PORT", self.from_ports),
            ("SMTPGUARD_PID", self.pids),
            ("SMTPGUARD_UID", self.uids),
            ("SMTPGUARD_USER", self.users),
            ("SMTPGUARD_VERDICT", self.verdicts),
            ("SMTPGUARD_DIRECTION", self.directions),
            ("SMTPGUARD_KIND", self.kinds),
        ]
        if not _patterns(self.exes):
            indexed.append(("SMTPGUARD_EXE", self.exes))
        if not _patterns(self.units):
            indexed.append(("SMTPGUARD_UNIT", self.units))
        if not _patterns(self.scripts):
            indexed.append(("SMTPGUARD_SCRIPT", self.scripts))
        if not _patterns(self.pools):
            indexed.append(("SMTPGUARD_POOL", self.pools))
        matches = [f"{name}={value}" for name, values in indexed for value in values]
        networks = [_network(to) for to in self.to]
        if not networks or any(net.prefixlen != net.max_prefixlen for net in networks):
            return matches
        there = [f"SMTPGUARD_DST_ADDR={net.network_address}" for net in networks]
        return [*matches, *there, "+", *matches, "SMTPGUARD_DESTINATIONS=many"]

    def accepts(self) -> Callable[[Finding], bool]:
        """Give the test for all that matches() could not ask of journald."""
        tests: list[Callable[[Finding], bool]] = []
        since, until = self.since_us, self.until_us
        networks = [_network(to) for to in self.to]
        if any(net.prefixlen != net.max_prefixlen for net in networks):
            within = tuple(networks)
            tests.append(
                lambda f: f.destinations == "many" or _within(f.dst[0], within)
            )
        if _patterns(self.exes):
            tests.append(lambda f: _like(f.exe, self.exes))
        if _patterns(self.units):
            tests.append(lambda f: _like(f.unit, self.units))
        if _patterns(self.scripts):
            tests.append(lambda f: _like(f.script, self.scripts))
        if _patterns(self.pools):
            tests.append(lambda f: _like(f.pool, self.pools))

        def accept(finding: Finding) -> bool:
            if not since <= finding.time_us <= until:
                return False
            return all(test(finding) for test in tests)

        return accept


def _patterns(values: Iterable[str]) -> bool:
    return any(_GLOB.intersection(value) for value in values)


def _like(text: str | None, patterns: Iterable[str]) -> bool:
    return text is not None and any(
        text == pattern or fnmatchcase(text, pattern) for pattern in patterns
    )


def _network(text: str) -> Network:
    try:
        net = ipaddress.ip_network(text.strip("[]"))
    except ValueError as error:
        raise BadQuery(
            printable(repr(text)),
            f"no address or prefix ({printable(str(error))})",
            hint="write 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32; names are not"
            " looked up",
        ) from None
    # The journal has a mapped IPv4 as plain IPv4.
    mapped = getattr(net.network_address, "ipv4_mapped", None)
    if mapped and net.prefixlen >= 96:
        return ipaddress.ip_network((mapped, net.prefixlen - 96))
    return net


@lru_cache(maxsize=4096)
def _within(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        host = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(host in net for net in networks)
