# SPDX-License-Identifier: GPL-2.0-or-later
"""SPF records (RFC 7208): as one is, as it should be, and what is wrong with it.

Whether a message would pass is for a receiver to say; here a record is read, given the
relay that it lacks, and counted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

VERSION = "v=spf1"
MAX_LOOKUPS = 10  # RFC 7208 section 4.6.4
MAX_VOID = 2  # lookups without an answer, likewise
MAX_STRING = 255  # bytes of one string of a TXT record, RFC 1035 section 3.3.14
SMALL = 450  # characters that surely fit into 512 bytes of UDP, RFC 7208 section 3.4
_STOP = 100  # lookups after which counting ends, whatever a zone has in store

_NEW = ("a", "mx")  # what a domain without a record begins with, and how it ends
_END = "?all"
_TERM = re.compile(
    r"(?P<qualifier>[+?~-]?)(?P<name>all|include|a|mx|ptr|ip4|ip6|exists)"
    r"(?P<value>[:/].*)?",
    re.IGNORECASE | re.DOTALL,
)
_MODIFIER = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9._-]*)=(?P<value>.*)", re.DOTALL)
_LOOKUPS = ("include", "a", "mx", "ptr", "exists")

# A question to DNS: name and type; the texts of the records, none if there are none.
Ask = Callable[[str, str], list[str]]


@dataclass(frozen=True, slots=True)
class Term:
    """One word of a record."""

    text: str  # as it stands there
    kind: str  # a mechanism; redirect, exp or another modifier; "" for neither
    qualifier: str = ""
    value: str = ""  # without the colon


def is_spf(text: str) -> bool:
    """Tell whether the text of a TXT record is an SPF record (section 4.5)."""
    return text[:6].lower() == VERSION and text[6:7] in ("", " ")


def terms(text: str) -> list[Term]:
    """Give the words behind v=spf1."""
    return [_term(word) for word in text.split(" ")[1:] if word]


def _term(word: str) -> Term:
    if found := _TERM.fullmatch(word):
        name, value = found["name"].lower(), found["value"] or ""
        return Term(word, name, found["qualifier"], value.removeprefix(":"))
    if modifier := _MODIFIER.fullmatch(word):
        return Term(word, modifier["name"].lower(), "", modifier["value"])
    return Term(word, "")


def wanted(text: str | None, includes: Iterable[str]) -> str:
    """Give the record as it should be: what is there, and these domains included.

    text: the record that there is, None where there is none. All that it says is kept;
    an include goes before `all`, because nothing behind that is looked at.
    """
    words = [Term(word, word) for word in _NEW] if text is None else terms(text)
    if text is None:
        words.append(_term(_END))
    for domain in includes:
        before = [word.kind for word in words]
        end = before.index("all") if "all" in before else len(words)
        if any(_includes(word, domain) for word in words[:end]):
            continue
        words = [word for word in words if not _includes(word, domain)]
        kinds = [word.kind for word in words]
        stops = [kinds.index(k) for k in ("all", "redirect") if k in kinds]
        words.insert(min([*stops, len(words)]), _term(f"include:{domain}"))
    return " ".join([VERSION, *(word.text for word in words)])


def _includes(word: Term, domain: str) -> bool:
    same = word.value.lower().rstrip(".") == domain.lower().rstrip(".")
    return word.kind == "include" and word.qualifier in ("", "+") and same


def strings(text: str) -> list[str]:
    """Split a record into strings of a TXT record; joined they are the record again.

    At a blank where there is one, which stays: nothing is put between strings when
    they are read (section 3.3).
    """
    parts = []
    while len(text) > MAX_STRING:
        at = text.rfind(" ", 0, MAX_STRING) + 1 or MAX_STRING
        parts.append(text[:at])
        text = text[at:]
    return [*parts, text]


@dataclass
class Count:
    """What a receiver has to look up for a record, at most."""

    lookups: int = 0
    void: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # good, and worth to know


def examine(domain: str, text: str, ask: Ask) -> Count:
    """Count what a record makes a receiver look up, and say what is wrong with it.

    ask may raise; what it raises goes to the caller.
    """
    count = Count()
    for problem in _problems(domain, text):
        count.problems.append(problem)
    _count(domain, text, ask, count, (domain.lower(),))
    if count.lookups > MAX_LOOKUPS:
        many = "over " if count.lookups >= _STOP else ""
        count.problems.append(
            f"it takes {many}{count.lookups} lookups, {MAX_LOOKUPS} are allowed: name"
            " addresses (ip4:, ip6:) in place of a, mx or include"
        )
    if count.void > MAX_VOID:
        count.problems.append(
            f"{count.void} lookups have no answer, {MAX_VOID} are allowed: take out"
            " what is not there any more"
        )
    if len(text) > SMALL:
        count.notes.append(
            f"it has {len(text)} characters: over {SMALL} may not fit into an answer"
            " by UDP, with the other TXT records of the name"
        )
    return count


def _problems(domain: str, text: str) -> Iterator[str]:
    words = terms(text)
    kinds = [word.kind for word in words]
    for word in words:
        if not _is_good(word):
            yield f"{domain}: {word.text[:80]} is no term of SPF: the record is void"
    for name in ("redirect", "exp"):
        if kinds.count(name) > 1:
            yield f"{domain}: {name} stands there twice: the record is void"
    if "all" in kinds:
        last = kinds.index("all")
        behind = [w.text for w in words[last + 1 :] if w.kind not in ("exp",)]
        if behind:
            yield f"{domain}: nothing looks at what is behind all: {' '.join(behind)}"
        if words[last].qualifier in ("", "+"):
            yield f"{domain}: +all lets anybody send as this domain"
    if not text.isascii() or not text.isprintable():
        yield f"{domain}: it has letters that SPF has not"


def _is_good(word: Term) -> bool:
    if word.kind in ("ip4", "ip6"):
        try:
            version = ipaddress.ip_network(word.value, strict=False).version
        except ValueError:
            return False
        return version == int(word.kind[2])
    if word.kind in ("include", "exists", "redirect"):
        return bool(word.value)
    return bool(word.kind) and not (word.kind == "all" and word.value)


def _count(
    domain: str, text: str, ask: Ask, count: Count, way: tuple[str, ...]
) -> None:
    words = terms(text)
    kinds = [word.kind for word in words]
    for word in words[: kinds.index("all")] if "all" in kinds else words:
        if count.lookups >= _STOP:
            return
        if word.kind not in (*_LOOKUPS, "redirect"):
            continue
        count.lookups += 1
        target = (word.value.partition("/")[0] or domain).rstrip(".")
        if "%" in target or word.kind in ("ptr", "exists"):
            continue  # a macro: another name for each message
        if word.kind in ("include", "redirect"):
            _follow(word, target, ask, count, way)
        elif word.kind == "mx":
            _count_mx(target, ask, count)
        elif not (ask(target, "A") or ask(target, "AAAA")):
            count.void += 1


def _follow(
    word: Term, target: str, ask: Ask, count: Count, way: tuple[str, ...]
) -> None:
    if target.lower() in way:
        count.problems.append(f"{word.text} leads back to {target}: the record is void")
        return
    found = ask(target, "TXT")
    records = [text for text in found if is_spf(text)]
    if not found:
        count.void += 1
    if len(records) != 1:
        what = "no SPF record" if not records else f"{len(records)} SPF records"
        count.problems.append(f"{word.text}: {target} has {what}: the record is void")
        return
    count.problems += [p for p in _problems(target, records[0]) if "void" in p]
    _count(target, records[0], ask, count, (*way, target.lower()))


def _count_mx(target: str, ask: Ask, count: Count) -> None:
    exchanges = ask(target, "MX")
    if not exchanges:
        count.void += 1
    if len(exchanges) > MAX_LOOKUPS:
        count.problems.append(
            f"mx: {target} has {len(exchanges)} mail exchangers, {MAX_LOOKUPS} are"
            " allowed: the record is void"
        )
