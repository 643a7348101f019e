# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks up the smart host, again and again, in a process that may do nothing else.

`guardd --resolve`. guardd itself reaches no network and does not read what comes from
one: it writes the name it wants into a file, this leaves the addresses in another, and
a policy reads them as it reads /etc/passwd (policy/smarthost.py).

An address stays for as long as anybody who goes by DNS may still use it: until the
TTL of the last answer that named it, and the time between two of our questions, have
passed. So what was lawful a moment ago is lawful still when the name changes.
"""

from __future__ import annotations

import ipaddress
import os
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.exception
import dns.resolver

from guard.filewatch import FileWatch
from guard.policy.model import Address, Known, SmartHost
from guard.policy.smarthost import (
    ANSWERS,
    ASKED,
    LOOKED,
    MAX_ADDRESSES,
    MAX_HELD,
    MAX_TTL,
    answer_of,
    by_family,
    held_before,
    is_usable,
    read_known,
    smart_host_of,
)
from guard.text import printable

# Seconds between two questions. A resolver that caches is asked again when its answer
# runs out; one that does not may have news at any time.
_SOONEST, _LATEST = 1.0, 10.0
_QUESTION_SECONDS, _ROUND_SECONDS = 8.0, 30.0
_MAX_EXCHANGES = 10
_FAMILIES = {4: "A", 6: "AAAA"}


@dataclass
class Answer:
    """What one round of questions gave."""

    ttls: dict[Address, float] = field(default_factory=dict)  # seconds
    failed: dict[int, str] = field(default_factory=dict)  # IP version: why
    notes: list[str] = field(default_factory=list)  # what was left out


class Lookup:
    """One round of questions about a smart host."""

    def __init__(self, host: SmartHost) -> None:
        """Ask who /etc/resolv.conf names, and nobody else."""
        self._host = host
        self._resolver = dns.resolver.Resolver()
        self._resolver.use_edns(0, 0, 1232)
        self._end = time.monotonic() + _ROUND_SECONDS
        self._answer = Answer()
        self._left_out: set[str] = set()

    def ask(self) -> Answer:
        """Ask all that is to be asked; what fails is in the answer."""
        names = self._exchanges() if self._host.mx else {self._host.host: MAX_TTL}
        for name, ttl in names.items():
            for version in _FAMILIES:
                self._addresses(name, ttl, version)
        answer = self._answer
        if self._left_out:
            answer.notes.append(f"left out {', '.join(sorted(self._left_out)[:4])}")
        if not answer.ttls and not answer.failed:
            answer.failed = dict.fromkeys(_FAMILIES, "it has no address")
        return answer

    def _question(self, name: str, kind: str) -> tuple[list[Any], float]:
        """Give the records of a name and their TTL; none where it has none."""
        found = self._resolver.resolve(
            f"{name}.",
            kind,
            raise_on_no_answer=False,
            search=False,
            lifetime=max(0.1, min(_QUESTION_SECONDS, self._end - time.monotonic())),
        )
        ttl = min(MAX_TTL, float(found.chaining_result.minimum_ttl))
        return (list(found.rrset) if found.rrset else []), ttl

    def _exchanges(self) -> dict[str, float]:
        """Give the mail exchangers' names, RFC 5321 section 5.1."""
        host = self._host.host
        try:
            records, ttl = self._question(host, "MX")
        except (dns.exception.DNSException, OSError, ValueError) as error:
            self._answer.failed = dict.fromkeys(_FAMILIES, _why(error))
            return {}
        names = [
            record.exchange.to_text(omit_final_dot=True)
            for record in sorted(records, key=lambda record: int(record.preference))
        ]
        if len(names) > _MAX_EXCHANGES:
            left = len(names) - _MAX_EXCHANGES
            self._answer.notes.append(f"{left} mail exchangers are left out")
        if "." in names or "@" in names:  # RFC 7505: it takes no mail
            self._answer.failed = dict.fromkeys(_FAMILIES, "its MX record is null")
            return {}
        return dict.fromkeys(names[:_MAX_EXCHANGES], ttl) or {host: MAX_TTL}

    def _addresses(self, name: str, most: float, version: int) -> None:
        answer = self._answer
        try:
            records, ttl = self._question(name, _FAMILIES[version])
        except (dns.exception.DNSException, OSError, ValueError) as error:
            answer.failed[version] = _why(error)
            return
        for record in records:
            address = ipaddress.ip_address(record.address)
            if is_usable(address):
                answer.ttls[address] = min(ttl, most)
            else:
                self._left_out.add(f"{address}, which is no other host's")


def _why(error: Exception) -> str:
    if isinstance(error, dns.resolver.NXDOMAIN):
        return "there is no such name"
    if isinstance(error, dns.exception.Timeout):
        return "no name server answers"
    if isinstance(error, dns.resolver.NoNameservers):
        return "no name server gives an answer"
    return printable(f"{type(error).__name__}: {error}")[:200]


class Held:
    """The addresses that are lawful, each with the time until which it is."""

    def __init__(self, known: dict[Address, float] | None = None) -> None:
        """Begin with these and the time (CLOCK_BOOTTIME, s) until which they hold."""
        self.until = dict(known or {})
        self.ttls: dict[Address, float] = {}  # the longest of each, seconds
        self.notes: list[str] = []

    def take(self, answer: Answer, now: float) -> float:
        """Take a round's answer in; gives in how many seconds to ask again.

        An address whose family could not be asked for stays.
        """
        self.notes = list(answer.notes)
        named = self._bounded(answer.ttls)
        again = min([_LATEST, *named.values()]) if named else _LATEST
        again = max(_SOONEST, again)
        if answer.failed:
            again = min(again, 5 * _SOONEST)
        for address, ttl in named.items():
            self.until[address] = now + ttl + again
            self.ttls[address] = max(ttl, self.ttls.get(address, 0.0))
        for address, until in list(self.until.items()):
            if address in named:
                continue
            if address.version in answer.failed:
                self.until[address] = max(until, now + again)
            elif until <= now:
                del self.until[address]
        self._forget()
        soon = [until - now for until in self.until.values()]
        return max(_SOONEST, min([again, *soon]))

    def _bounded(self, ttls: dict[Address, float]) -> dict[Address, float]:
        """Of too many addresses, give those that are known, then the first."""
        if len(ttls) <= MAX_ADDRESSES:
            return ttls
        known = sorted(ttls, key=lambda address: address not in self.until)
        self.notes.append(
            f"the answer has {len(ttls)} addresses, {MAX_ADDRESSES} are taken"
        )
        return {address: ttls[address] for address in known[:MAX_ADDRESSES]}

    def _forget(self) -> None:
        """However often a name changes, hold so many and no more."""
        extra = len(self.until) - MAX_HELD
        for address in sorted(self.until, key=lambda a: self.until[a])[: max(0, extra)]:
            del self.until[address]
        self.ttls = {a: ttl for a, ttl in self.ttls.items() if a in self.until}
        if extra > 0:
            self.notes.append(f"{extra} addresses are forgotten before their TTL")


def held_still(host: SmartHost) -> Held:
    """Give the addresses that a run before this one held, each for its TTL once more.

    What it was asked when it ended is not known: nobody goes by an answer for longer.
    """
    held = Held()
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for known in (held_before(host) or Known(), read_known(host)):
        for address, ttl in zip(known.addresses, known.ttls, strict=False):
            held.ttls[address] = max(ttl, held.ttls.get(address, 0.0))
        for address in known.addresses:
            held.until[address] = now + held.ttls.get(address, 0.0) + _LATEST
    return held


class Names:
    """One run of `guardd --resolve`."""

    def __init__(self, asked: Path = ASKED, answers: Path = ANSWERS) -> None:
        """Read the wanted name in asked, leave addresses in answers."""
        self._asked, self._answers = asked, answers
        self._asked_at = answers.with_name(LOOKED.name)
        self._host: SmartHost | None = None
        self._held = Held()
        self._written = ""

    def round(self) -> float | None:
        """Look it up once; gives in how many seconds to do so again, None: end."""
        try:
            name = self._asked.read_text().partition("\n")[0]
            host = smart_host_of(name[:300].strip(), "asked")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            # not an end: smtp-guard-names.path would start this again at once
            _say(f"{self._asked} cannot be read: {error}")
            return _LATEST
        if host != self._host:
            self._host = host
            self._held = held_still(host)
        answer = Lookup(host).ask()
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        again = self._held.take(answer, now)
        self._leave(host, answer)
        return again

    def _leave(self, host: SmartHost, answer: Answer) -> None:
        addresses = tuple(sorted(self._held.until, key=by_family))
        failed = [f"{_FAMILIES[v]}: {why}" for v, why in answer.failed.items()]
        error = "; ".join(dict.fromkeys(failed + self._held.notes))
        ttls = tuple(self._held.ttls.get(address, 0.0) for address in addresses)
        text = answer_of(host, Known(addresses, error, ttls))
        try:
            self._asked_at.touch(0o644)  # somebody looks it up
            if text != self._written:  # guardd looks whenever this one changes
                _write(self._answers, text)
                self._written = text
                found = ", ".join(map(str, addresses)) or "no address"
                _say(f"{host}: {found}" + (f"; {error}" if error else ""))
        except OSError as problem:
            _say(f"{problem.filename or self._answers}: {problem.strerror}")


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    with new.open("w") as stream:
        os.fchmod(stream.fileno(), 0o644)  # guardd is another user
        stream.write(text)
    new.rename(path)


def _say(text: str) -> None:
    sys.stderr.write(f"guardd --resolve: {printable(text)}\n")
    sys.stderr.flush()


def run() -> None:
    """Look up what is asked for until nothing is, or until SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    ANSWERS.parent.mkdir(mode=0o755, exist_ok=True)  # by hand; else it is the unit's
    names, files = Names(), FileWatch()
    while True:
        files.watch(frozenset({ASKED}))
        again = names.round()
        if again is None:
            return
        end = time.monotonic() + again
        while (left := end - time.monotonic()) > 0:
            select.select([files], [], [], left)
            if files.changed():
                break
