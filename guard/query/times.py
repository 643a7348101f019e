# SPDX-License-Identifier: GPL-2.0-or-later
"""Points in time as systemd.time(7) has them: "2 hours ago", "yesterday", -1h."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

from guard.errors import BadQuery
from guard.text import printable

# systemd.time(7), PARSING TIME SPANS: in microseconds.
_SECOND = 1_000_000
_UNITS = {
    "us usec µs": 1,
    "ms msec": 1000,
    "s sec second seconds": _SECOND,
    "m min minute minutes": 60 * _SECOND,
    "h hr hour hours": 3600 * _SECOND,
    "d day days": 86_400 * _SECOND,
    "w week weeks": 7 * 86_400 * _SECOND,
    "M month months": 2_629_800 * _SECOND,
    "y year years": 31_557_600 * _SECOND,
}
_SPAN = {name: us for names, us in _UNITS.items() for name in names.split()}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)\s*", re.ASCII)
_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}
_WEEKDAY = re.compile(r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+", re.IGNORECASE)
_CLOCK = re.compile(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?")

_REMEDY = 'write "2026-11-22 10:00", "2 hours ago", -1h, today, yesterday or @SECONDS'


def parse_time(text: str, now_us: int | None = None) -> int:
    """Give the point in time that text names, in microseconds since 1970.

    A date or a clock time without a zone is this host's. Raises BadQuery when
    text names none.
    """
    now = time.time_ns() // 1000 if now_us is None else now_us
    try:
        found = _parse(" ".join(text.split()), now)
    except (ValueError, OverflowError, OSError):
        found = -1
    if not 0 <= found < 1 << 55:
        raise BadQuery(printable(repr(text)), "no point in time", hint=_REMEDY)
    return found


def _parse(text: str, now: int) -> int:
    if text == "now":
        return now
    if text.startswith("@"):
        seconds, _, fraction = text[1:].partition(".")
        return int(seconds) * _SECOND + int((fraction + "000000")[:6])
    if text.startswith(("-", "+")):
        span = _span(text[1:])
        return now - span if text[0] == "-" else now + span
    if text.endswith(" ago"):
        return now - _span(text.removesuffix(" ago"))
    if text.endswith(" left"):
        return now + _span(text.removesuffix(" left"))
    return round(_date(text, now).timestamp() * _SECOND)


def _span(text: str) -> int:
    """Add up "1h 30min"; a bare number is seconds."""
    total, at = 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != at:
            break
        at = part.end()
        total += float(part[1]) * _SPAN.get(part[2] or "s", float("nan"))
    if at != len(text) or not text:
        raise ValueError(text)
    return int(total)


def _date(text: str, now: int) -> datetime:
    """Read a day, a clock time or both; local unless a zone is named."""
    midnight = datetime.fromtimestamp(now / _SECOND).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    word, _, clock = text.partition(" ")
    if word in _DAYS:
        day = midnight + timedelta(days=_DAYS[word])
        return datetime.fromisoformat(f"{day:%Y-%m-%d} {_padded(clock or '00:00')}")
    if _CLOCK.fullmatch(text):
        return datetime.fromisoformat(f"{midnight:%Y-%m-%d} {_padded(text)}")
    text = _WEEKDAY.sub("", text, count=1)
    if text.endswith(" UTC"):
        return datetime.fromisoformat(text.removesuffix(" UTC")).replace(tzinfo=UTC)
    return datetime.fromisoformat(text)


def _padded(clock: str) -> str:
    return clock if clock.find(":") == 2 else f"0{clock}"
