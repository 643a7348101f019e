# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of the Sender Rewriting Scheme: whose they are, and are they genuine.

The scheme is Meng Weng Wong's and Shevek's "The Sender Rewriting Scheme" (2004); what
is hashed, and how an answer is compared, is as libsrs2 and postsrsd do it:

    SRS0=HASH=TT=host=user@forwarder         HASH of lower(TT + host + user)
    SRS1=HASH=host=(what followed SRS0)@forwarder   of lower(host + what followed)

HASH is the head of the base64 of an HMAC-SHA1; TT is the day since 1970 modulo 1024,
two digits of base32. A relay may fold the case of a local part, so neither is compared
by case.
"""

from __future__ import annotations

import base64
import hmac
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

DAY = 86_400
MAX_AGE = 21  # days, postsrsd's and libsrs2's
HASH_LENGTH = 4  # characters, likewise
_SLOTS = 1024
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"  # RFC 4648 section 6
_TAG = re.compile(r"SRS([01])([=+-])(.*)", re.DOTALL | re.IGNORECASE)
_STAMP = re.compile(r"[A-Za-z2-7]{2}")
_LONGEST = 1024  # characters; RFC 5321 allows 320, rewritten once more some more


class NotSrs(ValueError):
    """It is no address of the scheme; the text says why."""


@dataclass(frozen=True, slots=True)
class Srs:
    """A rewritten address, taken apart; texts are as they stood in it."""

    kind: int  # 0: rewritten once; 1: again, by a forwarder behind the first
    separator: str  # what follows SRS0 or SRS1: = + -
    forwarder: str  # who rewrote it last: the domain
    hash: str  # its hash
    signed: tuple[str, ...]  # what that hash is of
    stamp: str  # two digits of base32, of the first forwarder's day
    original: str  # the sender, before anybody rewrote it
    first: str  # who rewrote it first: the domain
    bounce: str  # where a bounce to this address goes next

    def age(self, now: float) -> int | None:
        """Give its age in days, 0 to 1023, at a time in s since 1970; None: no time.

        Of a stamp that is not base32, None as well.
        """
        if not _STAMP.fullmatch(self.stamp):
            return None
        first, second = map(_DIGITS.index, self.stamp.upper())
        return (int(now // DAY) - 32 * first - second) % _SLOTS


def decode(address: str) -> Srs:
    """Take an address apart, with or without <>. Raises NotSrs."""
    text = address.strip().removeprefix("<").removesuffix(">")
    if len(text) > _LONGEST:
        raise NotSrs("it is too long for an address")
    local, at, domain = text.rpartition("@")
    if not at or not domain:
        raise NotSrs("it has no @")
    local = local.removeprefix('"').removesuffix('"')
    found = _TAG.fullmatch(local)
    if not found:
        raise NotSrs("it does not begin with SRS0 or SRS1 and one of = + -")
    kind, separator, rest = int(found[1]), found[2], found[3]
    if not kind:
        return _srs0(separator, rest, domain)
    parts = rest.split("=", 2)
    if len(parts) < 3 or not all(parts):
        raise NotSrs("of hash, host and rest of an SRS1 address, one is missing")
    digest, host, tail = parts
    if tail[0] not in "=+-":
        raise NotSrs("behind its host there is no address that was SRS0")
    inner = _srs0(tail[0], tail[1:], host)
    return replace(
        inner,
        kind=1,
        separator=separator,
        forwarder=domain,
        hash=digest,
        signed=(host, tail),
        bounce=f"SRS0{tail}@{host}",
    )


def _srs0(separator: str, rest: str, forwarder: str) -> Srs:
    parts = rest.split("=", 3)
    if len(parts) < 4 or not all(parts):
        raise NotSrs("of hash, time stamp, host and user one is missing")
    digest, stamp, host, user = parts
    sender = f"{user}@{host}"
    return Srs(
        kind=0,
        separator=separator,
        forwarder=forwarder,
        hash=digest,
        signed=(stamp, host, user),
        stamp=stamp,
        original=sender,
        first=forwarder,
        bounce=sender,
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """How the host's own forwarder makes and checks its addresses."""

    secrets: tuple[bytes, ...]  # the first signs, all verify
    hash_length: int = HASH_LENGTH
    hash_min: int = HASH_LENGTH
    max_age: int = MAX_AGE


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an address is genuine, by this host's secrets."""

    state: str  # good, expired, bad-hash, bad-stamp
    secret: int | None  # which one signed it, from 1; None: none
    age: int | None  # days; None: the stamp says none, or it is no part of the hash
    why: str


def judge(srs: Srs, settings: Settings, now: float | None = None) -> Judgement:
    """Check hash and age, as the forwarder will when a bounce comes; now: s of 1970.

    Of an SRS1 address only the hash is this host's to check: the time stamp is the
    first forwarder's, who checks it when the bounce gets there.
    """
    age = srs.age(time.time() if now is None else now)
    signer = _signer(srs, settings)
    if signer is None:
        short = len(srs.hash) < settings.hash_min
        why = (
            f"its hash has {len(srs.hash)} characters, {settings.hash_min} are wanted"
            if short
            else "none of the secrets gives its hash: it was not made here, or changed"
        )
        return Judgement("bad-hash", None, age, why)
    if srs.kind:
        why = f"made here; its age is {srs.first}'s to check"
        return Judgement("good", signer, age, why)
    if age is None:
        return Judgement("bad-stamp", signer, None, "its time stamp is none")
    if age > settings.max_age:
        why = f"it is {age} days old, {settings.max_age} are allowed"
        return Judgement("expired", signer, age, why)
    return Judgement("good", signer, age, "made here, and in time")


def _signer(srs: Srs, settings: Settings) -> int | None:
    """Give the number of the secret that made the hash, from 1."""
    if len(srs.hash) < max(1, settings.hash_min):
        return None
    length = min(len(srs.hash), settings.hash_length)
    given = srs.hash[:length].encode("utf-8", "surrogateescape").lower()
    for number, secret in enumerate(settings.secrets, 1):
        made = hash_of(srs.signed, secret)[:length].lower().encode()
        if hmac.compare_digest(given, made):
            return number
    return None


def hash_of(parts: Sequence[str], secret: bytes) -> str:
    """Give the whole hash (28 characters) of what an address says."""
    text = "".join(parts).encode("utf-8", "surrogateescape")
    # bytes.lower() knows A to Z alone, as tolower(3) of the C locale
    digest = hmac.digest(secret, text.lower(), "sha1")
    return base64.b64encode(digest).decode()
