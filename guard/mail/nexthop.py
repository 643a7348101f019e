# SPDX-License-Identifier: GPL-2.0-or-later
"""Where mail for a smart host goes, by the names that smtp(8) would ask for."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import dns.exception
import dns.resolver

from guard.mail.postfix import Postfix
from guard.mail.table import Relay
from guard.policy.smarthost import address_of

_SECONDS = 20.0  # a question, at most
_FAMILIES = {"A": socket.AF_INET, "AAAA": socket.AF_INET6}
_KINDS = {"ipv4": "A", "ipv6": "AAAA"}
_BOTH = ("AAAA", "A")
End = tuple[str, tuple[str, int]]  # the host's name, and an address of it


class Clock:
    """The time that something may take in all, and what it is about."""

    def __init__(self, seconds: float) -> None:
        """Begin to count."""
        self.seconds = seconds
        self.at = ""
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Give the seconds that are left, 0 where none are."""
        return max(0.0, self._end - time.monotonic())

    def is_over(self) -> bool:
        """Tell whether none are."""
        return not self.left()


@dataclass(frozen=True, slots=True)
class Asking:
    """What smtp(8) asks for a host's addresses, postconf(5)."""

    dns: bool = True
    native: bool = False  # /etc/hosts as well, where DNS has none
    kinds: tuple[str, ...] = _BOTH


def asking_of(postfix: Postfix) -> Asking:
    """Read how a Postfix asks: by default DNS alone."""
    protocols = postfix.value("inet_protocols").replace(",", " ").split()
    kinds = tuple(_KINDS[word] for word in protocols if word in _KINDS) or _BOTH
    if postfix.value("smtp_dns_support_level") == "disabled":
        return Asking(dns=False, native=True, kinds=kinds)
    ways = postfix.value("smtp_host_lookup").replace(",", " ").split()
    return Asking("dns" in ways, "native" in ways, kinds)


def next_hops(relay: Relay, asking: Asking, clock: Clock) -> Iterator[str]:
    """Give the hosts in the order Postfix tries them: by MX, or the one itself."""
    if relay.by_mx and asking.dns:
        with contextlib.suppress(dns.exception.DNSException):
            seconds = min(_SECONDS, clock.left())
            answer = dns.resolver.resolve(relay.host, "MX", lifetime=seconds)
            found = sorted(
                (record.preference, str(record.exchange)) for record in answer
            )
            yield from (name.rstrip(".") for _, name in found if name != ".")
            if found:
                return
    yield relay.host


def resolve(
    hosts: list[str], port: int, asking: Asking, clock: Clock
) -> tuple[list[End], list[str]]:
    """Give the addresses of hosts, and why one has none."""
    found: list[End] = []
    failures = []
    for host in hosts:
        try:
            found += [(host, (text, port)) for text in _addresses(host, asking, clock)]
        except LookupError as error:
            failures.append(f"{host}: {error}")
    return found, failures


def _addresses(host: str, asking: Asking, clock: Clock) -> list[str]:
    """Give a host's addresses; raises LookupError with why there are none."""
    if address_of(host) is not None:
        return [host]
    found, why = _by_dns(host, asking, clock) if asking.dns else ([], "")
    native, not_native = ([], "") if found else _native(host, asking, clock)
    if asking.native:
        found, why = found or native, why or not_native
    elif native:
        why += "; /etc/hosts or another source has it, where smtp(8) does not look"
        why += " (smtp_host_lookup)"
    if not found:
        raise LookupError(why)
    return found


def _by_dns(host: str, asking: Asking, clock: Clock) -> tuple[list[str], str]:
    found, failures = [], []
    for kind in asking.kinds:
        seconds = min(_SECONDS / 4, clock.left())
        try:
            answer = dns.resolver.resolve(f"{host}.", kind, lifetime=seconds)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            continue
        except dns.exception.Timeout:
            failures.append("no name server answers")
        except dns.exception.DNSException as error:
            failures.append(str(error))
        else:
            found += [record.address for record in answer]
    why = (
        failures[0] if failures else f"no address ({' or '.join(asking.kinds)}) in DNS"
    )
    return found, why


def _native(host: str, asking: Asking, clock: Clock) -> tuple[list[str], str]:
    if clock.is_over():  # the C library would begin anew, with limits of its own
        return [], "no time was left to ask"
    families = {_FAMILIES[kind] for kind in asking.kinds}
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return [], error.strerror or str(error)
    found = [str(end[0]) for family, *_, end in answers if family in families]
    return found, "no address of inet_protocols"
