# SPDX-License-Identifier: GPL-2.0-or-later
"""Points in time as systemd reads them: systemd-analyze is the judge."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import BadQuery
from guard.query import parse_time

SECOND = 1_000_000
NOW = 1_795_335_789 * SECOND + 500_000  # 2026-11-22 08:23:09.5 UTC

FIXED = [
    "2026-11-22",
    "2026-11-22 10:00",
    "2026-11-22 10:00:05",
    "2026-11-22 10:00:05.25",
    "2026-11-22 10:00:05 UTC",
    "2026-11-22 UTC",
    "Sun 2026-11-22 10:00:05",
    "2026-07-01 10:00",
    "@1795335789",
    "@1795335789.5",
]
RELATIVE = [
    "now", "today", "yesterday", "tomorrow", "10:00", "9:05:30", "-1h", "+2min",
    "2 hours ago", "1h 30min ago", "1.5 days ago", "90s ago", "3 weeks ago",
    "1 month ago", "1 year ago", "-5m", "-1d12h", "5min left", "250ms ago",
]  # fmt: skip
WRONG = [
    "", " ", "noon", "-", "+", "ago", " ago", "1 fortnight ago", "@", "@x", "@-5",
    "2026-13-01", "2026-11-31", "25:00", "10:61", "1h2", "--1h", "2026", "@1e9",
    "9999-12-31", "99999999999 years ago", "today 25:00", "\x1b[31m", "1" * 5000,
    "@" + "9" * 400, "1h\n; rm", "yesterday ago",
]  # fmt: skip


@pytest.fixture(autouse=True, params=["Europe/Berlin", "UTC", "America/St_Johns"])
def _zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    request.addfinalizer(time.tzset)
    request.addfinalizer(monkeypatch.undo)


def systemd(text: str) -> float:
    """Ask systemd for the seconds since 1970."""
    answer = subprocess.run(
        ["systemd-analyze", "timestamp", "--", text], capture_output=True, text=True
    )
    found = re.search(r"UNIX seconds: @([0-9.]+)", answer.stdout)
    assert found, answer
    return float(found[1])


@pytest.mark.parametrize("text", FIXED)
def test_dates_are_what_systemd_makes_of_them(text: str) -> None:
    assert parse_time(text, NOW) / SECOND == pytest.approx(systemd(text), abs=1e-3)


@pytest.mark.parametrize("text", RELATIVE)
def test_relative_times_are_what_systemd_makes_of_them(text: str) -> None:
    # The clock goes on between the two: a second is allowed, or a midnight.
    for _ in range(2):
        ours, theirs = parse_time(text) / SECOND, systemd(text)
        if abs(ours - theirs) < 2:
            return
    assert ours == theirs


@pytest.mark.parametrize("text", WRONG)
def test_no_point_in_time_says_what_to_write(text: str) -> None:
    with pytest.raises(BadQuery) as refused:
        parse_time(text, NOW)
    assert refused.value.exit_status == 64
    assert "2 hours ago" in refused.value.report()
    assert "\x1b" not in refused.value.report()


@given(st.text(max_size=30) | st.from_regex(r"[-+@]?[0-9 .:hmsdwMy]{0,20}( ago)?"))
def test_any_text_is_a_time_or_our_error(text: str) -> None:
    try:
        found = parse_time(text, NOW)
    except BadQuery:
        return
    assert 0 <= found < 2**55
