# SPDX-License-Identifier: GPL-2.0-or-later
"""Typed values out of one TOML table; whatever is wrong becomes a problem.

A reader that finds a bad value notes it and goes on, so that one run shows
everything. What it hands out then is never used: a policy with an error is
refused whole.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.policy.model import Network, excerpt
from guard.policy.source import Problems, Source

_UNITS_NS = {
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION = re.compile(r"(\d{1,9}) ?(ms|s|min|m|h)")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
MAX_UINT = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a source, with what a message about it needs."""

    source: Source
    problems: Problems
    data: dict[str, Any]
    table: str = ""  # as in its header
    index: int = 0
    count: int = 1
    label: str | None = None  # of the rule

    def problem(self, severity: str, key: str, message: str, remedy: str) -> None:
        """Note a problem with one key, or with the table when key is empty."""
        self.problems.add(
            severity,
            self.source.name,
            f"{key}: {message}" if key else message,
            remedy,
            line=self.source.lines.find(self.table, self.index, self.count, key),
            rule=self.label or (f"[{self.table}]" if self.table else None),
        )

    def error(self, key: str, message: str, remedy: str) -> None:
        """Note what makes the policy unusable."""
        self.problem("error", key, message, remedy)

    def warn(self, key: str, message: str, remedy: str) -> None:
        """Note what the admin should know."""
        self.problem("warning", key, message, remedy)

    def section(self, name: str, known: Collection[str]) -> Table:
        """Give the table [name] of this one, empty when it is not there."""
        value = self.data.get(name, {})
        if not isinstance(value, dict):
            self.error(name, "is not a section", f"write [{name}]")
            value = {}
        table = Table(self.source, self.problems, value, name)
        table.only(known)
        return table

    def only(self, known: Collection[str]) -> None:
        """Refuse keys that mean nothing here."""
        for key in self.data:
            if key in known:
                continue
            near = difflib.get_close_matches(key[:40], known, 1)
            remedy = f'did you mean "{near[0]}"? ' if near else ""
            self.error(
                key,
                "unknown key",
                f"{remedy}known here: {', '.join(sorted(known))}",
            )

    def choice(self, key: str, choices: Collection[str]) -> str | None:
        """Give one of a few words; None when it is missing or wrong."""
        value = self.data.get(key)
        if isinstance(value, str) and value in choices:
            return value
        words = " or ".join(f'"{word}"' for word in choices)
        if key not in self.data:
            self.error("", f"{key} is missing", f"add {key} = {words}")
        else:
            self.error(key, f"{_shown(value)} is not {words}", f"write {words}")
        return None

    def flag(self, key: str) -> bool | None:
        """Give true or false, None when it is not there."""
        value = self.data.get(key)
        if value is None or isinstance(value, bool):
            return value
        self.error(key, f"{_shown(value)} is not true or false", "write true or false")
        return None

    def count_of(self, key: str, default: int) -> int:
        """Give a number of findings, at least 1."""
        value = self.data.get(key, default)
        if _is_int(value) and 1 <= value <= MAX_UINT:
            return int(value)
        self.error(key, f"{_shown(value)} is not a count", "write a number from 1 up")
        return default

    def number(self, key: str, default: int, most: int, what: str) -> int:
        """Give a whole number from 1 to most; what names it in a message."""
        value = self.data.get(key, default)
        if _is_int(value) and 1 <= value <= most:
            return int(value)
        self.error(key, f"{_shown(value)} is not {what}", f"write 1 to {most:#x}")
        return default

    def duration(self, key: str, default: int, *, zero: str) -> int:
        """Give a time in ns, from text such as "5s"; zero: what "0s" does."""
        value = self.data.get(key)
        if value is None:
            return default
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        nanoseconds = int(match[1]) * _UNITS_NS[match[2]] if match else -1
        if 0 <= nanoseconds <= _UNITS_NS["h"]:
            return nanoseconds
        self.error(
            key,
            f"{_shown(value)} is not a time of at most 1h",
            f'write it as in "500ms", "5s" or "1m"; "0s" {zero}',
        )
        return default

    def texts(self, key: str) -> list[str] | None:
        """Give one text or a list of them as a list; None when not there."""
        values = self._listed(key)
        if values is None:
            return None
        good = [value for value in values if isinstance(value, str) and value]
        for value in values:
            if not isinstance(value, str) or not value:
                self.error(key, f"{_shown(value)} is not a text", "write it in quotes")
        return good

    def paths(self, key: str) -> tuple[Path, ...] | None:
        """Give absolute paths of folders, below the root and without "..\"."""
        texts = self.texts(key)
        if texts is None:
            return None
        for text in texts:
            parts = text.split("/")
            if parts[0] or not "".join(parts) or ".." in parts or "\0" in text:
                self.error(
                    key,
                    f"{_shown(text)} is no folder's whole path",
                    'write the path from / on, as in "/srv/www", without ..',
                )
        return tuple(dict.fromkeys(map(Path, texts)))

    def _listed(self, key: str) -> list[Any] | None:
        if key not in self.data:
            return None
        value = self.data[key]
        values = value if isinstance(value, list) else [value]
        if not values:
            self.error(
                key,
                "an empty list matches nothing",
                f"name at least one value, or leave {key} out to match all",
            )
        return values

    def ports(self, key: str) -> tuple[int, ...] | None:
        """Give TCP ports."""
        values = self._listed(key)
        if values is None:
            return None
        good = [v for v in values if _is_int(v) and 1 <= v <= 65535]
        for value in values:
            if not (_is_int(value) and 1 <= value <= 65535):
                self.error(
                    key,
                    f"{_shown(value)} is not a TCP port",
                    "write numbers from 1 to 65535",
                )
        return tuple(dict.fromkeys(good))

    def numbers(
        self, key: str, lookup: Callable[[str], int], optional: bool
    ) -> tuple[int, ...] | None:
        """Give uids or gids of names and numbers.

        lookup raises KeyError for a name it does not know. Unknown names of an
        optional rule are left out, and the rule may end up matching nobody.
        """
        values = self._listed(key)
        if values is None:
            return None
        good = []
        for value in values:
            number = _number(value, lookup)
            if number is not None:
                good.append(number)
            elif not (isinstance(value, str) and value):
                self.error(
                    key,
                    f"{_shown(value)} is not a {key}",
                    "write a name, or a number below 4294967295",
                )
            elif not optional:
                self.error(
                    key,
                    f"there is no {key} {_shown(value)} on this host",
                    "correct the name, or create it first; optional = true for a"
                    " rule whose package may be missing",
                )
        return tuple(dict.fromkeys(good))

    def networks(self, key: str) -> tuple[Network, ...] | None:
        """Give IPv4 and IPv6 prefixes; IPv4-mapped ones as IPv4."""
        values = self._listed(key)
        if values is None:
            return None
        good = []
        for value in values:
            try:
                good.append(_network(value))
            except ValueError as error:
                self.error(key, f"{_shown(value)}: {error}", _network_remedy(value))
        return tuple(dict.fromkeys(good))

    def target(self, key: str, default: str) -> tuple[str, int] | None:
        """Give ADDRESS:PORT of a redirect; None for false: this family cannot."""
        value = self.data.get(key, default)
        if value is False:
            return None
        family = 6 if key.endswith("6") else 4
        host, _, port = value.rpartition(":") if isinstance(value, str) else ("",) * 3
        try:
            if family == 6 and not (host.startswith("[") and host.endswith("]")):
                raise ValueError(value)
            address = ipaddress.ip_address(host.strip("[]") if family == 6 else host)
            if address.version != family or not re.fullmatch(r"[0-9]{1,5}", port):
                raise ValueError(value)
            if not 1 <= int(port) <= 65535:
                raise ValueError(value)
            if address.is_unspecified or address.is_multicast:
                raise ValueError(value)
        except ValueError:
            self.error(
                key,
                f"{_shown(value)} is not an IPv{family} address and port",
                f'write it as in "{default}", or false to deny instead',
            )
            return None
        return str(address), int(port)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{excerpt(value, 60)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return excerpt(value, 40)
    return "a table" if isinstance(value, dict) else "a value of another type"


def _number(value: Any, lookup: Callable[[str], int]) -> int | None:
    # The last number is (uid_t) -1, "no change" to the kernel: nobody has it.
    if _is_int(value):
        return int(value) if 0 <= value < MAX_UINT else None
    if not isinstance(value, str) or not value:
        return None
    try:
        return lookup(value)
    except (KeyError, ValueError):  # ValueError: embedded NUL
        pass
    if re.fullmatch(r"[0-9]{1,10}", value) and int(value) < MAX_UINT:
        return int(value)
    return None


def _network(value: Any) -> Network:
    if not isinstance(value, str):
        raise ValueError("not an address or prefix")
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        if str(error).endswith("has host bits set"):
            raise ValueError("has bits set after the prefix") from None
        raise ValueError("not an address or prefix") from None
    if isinstance(network, ipaddress.IPv6Network):
        if getattr(network.network_address, "scope_id", None):
            raise ValueError("a zone cannot be compared")
        if network.subnet_of(_MAPPED):
            packed = network.network_address.packed[12:]
            return ipaddress.IPv4Network((packed, network.prefixlen - 96))
    return network


def _network_remedy(value: Any) -> str:
    try:
        network = ipaddress.ip_network(str(value).split("%")[0], strict=False)
        return f'write "{network}"'
    except ValueError:
        return 'write it as in "203.0.113.0/24" or "2001:db8::1"'
