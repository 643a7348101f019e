# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to DNS for the verbs that show what stands there: a text a record."""

from __future__ import annotations

from collections.abc import Callable

import dns.exception
import dns.resolver

from guard.errors import DnsError
from guard.text import printable

_SECONDS = 8.0  # a question
_QUESTIONS = 400


def asker(server: str | None = None) -> Callable[[str, str], list[str]]:
    """Give what asks: name and type in, texts of the records out, none for none.

    server: an address to ask in place of those of /etc/resolv.conf. What it gives
    raises DnsError when nobody answers.
    """
    try:
        resolver = dns.resolver.Resolver(configure=server is None)
    except dns.exception.DNSException as error:
        raise DnsError(
            f"/etc/resolv.conf: {error}", hint="--server ADDRESS asks another"
        ) from None
    if server is not None:
        resolver.nameservers = [server]
    resolver.use_edns(0, 0, 1232)
    known: dict[tuple[str, str], list[str]] = {}

    def ask(name: str, kind: str) -> list[str]:
        key = name.lower(), kind
        if key not in known:
            if len(known) >= _QUESTIONS:
                raise DnsError(f"more than {_QUESTIONS} questions for one record")
            known[key] = _ask(resolver, name, kind)
        return known[key]

    return ask


def _ask(resolver: dns.resolver.Resolver, name: str, kind: str) -> list[str]:
    try:
        found = resolver.resolve(
            f"{name}.", kind, raise_on_no_answer=False, search=False, lifetime=_SECONDS
        )
    except dns.resolver.NXDOMAIN:
        return []
    except dns.exception.Timeout:
        servers = ", ".join(map(str, resolver.nameservers))
        raise DnsError(
            f"{name} {kind}: no answer from {servers} within {_SECONDS:.0f} s",
            hint="is the name server up? --server ADDRESS asks another",
        ) from None
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise DnsError(
            printable(f"{name} {kind}: {error}")[:300],
            hint="is the name server up? --server ADDRESS asks another",
        ) from None
    if not found.rrset:
        return []
    if kind == "TXT":
        return [b"".join(r.strings).decode("latin-1") for r in found.rrset]
    return [record.to_text() for record in found.rrset]
