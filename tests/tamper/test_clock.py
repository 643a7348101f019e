# SPDX-License-Identifier: GPL-2.0-or-later
"""The time of day set while guardd runs: told, because every finding has one.

The machine's own clock is nobody's to set in a test: clock.c shifts what one process
is told of it.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from guard.finding import Kind
from guard.watch import Clock
from tests.faults.site import Site

SOURCE = Path(__file__).with_name("clock.c")
SECOND = 1_000_000_000


def test_a_clock_that_was_set_is_told_once_each_time() -> None:
    offset = 50 * SECOND
    clock = Clock(lambda: offset)
    assert clock.look() == []
    offset += 3600 * SECOND
    [notice] = clock.look()
    assert notice.kind is Kind.CLOCK_SET and notice.priority == 4
    assert notice.fields["BY_US"] == "3600000000"
    assert "set by +3600.000 s" in notice.message
    assert clock.look() == []
    offset -= 2 * SECOND
    [notice] = clock.look()
    assert notice.fields["BY_US"] == "-2000000"
    for _ in range(4):  # small steps add up
        assert clock.look() == []
        offset += SECOND // 4
    assert len(clock.look()) == 1


def test_guardd_tells_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", SOURCE, "-o", library],
        check=True,
    )
    shift.write_text("0")
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("TEST_CLOCK_SHIFT", str(shift))
        guardd = site.start()
    assert site.connect(1).denied == 1
    for seconds in (7200, -100):
        before = len(site.entries("clock-set"))
        shift.write_text(str(seconds))
        guardd.until(
            lambda: len(site.entries("clock-set")) > before,  # noqa: B023
            "a finding",
            40,
        )
        assert site.connect(1).denied == 1
        site.settled(guardd)
        last = int(site.entries("denied")[-1]["TIME_US"]) / 1e6
        assert abs(last - time.time() - seconds) < 60
    assert [round(int(e["BY_US"]) / 1e6) for e in site.entries("clock-set")] == [
        *(7200, -7300)
    ]
    assert site.entries("tampered") == []
