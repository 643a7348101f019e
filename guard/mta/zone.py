# SPDX-License-Identifier: GPL-2.0-or-later
"""The records that a domain with mail on this host has, as a zone file has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from guard.mta.spf import strings
from guard.policy.model import Address

HOSTS = ("mail", "horde", "roundcube")
_PREFERENCES = (10, 20)


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record of class IN."""

    name: str  # absolute, with its dot
    ttl: int  # s
    type: str
    value: str  # as it stands in a zone file

    def __str__(self) -> str:
        """Write a line of a zone file, RFC 1035 section 5.1."""
        return f"{self.name} {self.ttl} IN {self.type} {self.value}"


def records(
    domain: str, zone: str, spf: str, addresses: Iterable[Address], ttl: int
) -> Iterator[Record]:
    """Give MX, TXT, and for each address the hosts' records; names without dots.

    domain: whose mail it is, zone itself or below it; the hosts stand in the zone.
    """
    for preference in _PREFERENCES:
        yield Record(f"{domain}.", ttl, "MX", f"{preference} mail.{zone}.")
    yield Record(f"{domain}.", ttl, "TXT", " ".join(map(_quoted, strings(spf))))
    for address in addresses:
        kind = "A" if address.version == 4 else "AAAA"
        for host in HOSTS:
            yield Record(f"{host}.{zone}.", ttl, kind, str(address))


def _quoted(text: str) -> str:
    """Put a string in quotes; what would end it, or is no letter, in digits."""
    made = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\{byte:03d}"
        for byte in text.encode("latin-1", "replace")
    )
    return f'"{made}"'
