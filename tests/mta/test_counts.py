# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts: exact whoever is killed when, bounded whoever sends, deaf to the clock."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.errors import MtaError
from guard.mta import limits
from guard.mta.limits import MOST_ORIGINS, Counts, read_counts
from guard.policy import Policy, parse
from guard.policy.model import Limit

CHECKOUT = Path(__file__).resolve().parents[2]
NAMES = (f"1A2B.{number}.0" for number in itertools.count())
HOURLY = Limit("users", "user", "defer", (None, 3), (None, None))
# Says when it has been told that one is counted, until it is killed.
COUNT = """\
import sys
from pathlib import Path
from guard.mta.limits import Counts
from guard.policy.model import Limit
counts = Counts(Path(sys.argv[1]))
free = Limit("users", "user", "defer", (None, 10**9), (None, None))
for number in range(10**9):
    counts.take(f"{sys.argv[2]}.{number}", [(free, "uid 33")], 2, True)
    sys.stdout.write(".")
    sys.stdout.flush()
"""


PUT = """\
counts = Counts(Path(sys.argv[1]))
from guard.policy import parse
counts.put(parse('mode = "enforce"'))"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/x.counts"


@pytest.fixture
def counts(path: Path) -> Iterator[Counts]:
    made = Counts(path)
    made.put(policy())
    yield made
    made.close()


def policy(most: int = 3) -> Policy:
    return parse(
        'mode = "enforce"\n[mta]\nsocket = "/a/b/c"\n[[mta.limit]]\nname = "users"\n'
        f'by = "user"\naction = "defer"\nmessages_per_hour = {most}\n'
    )


def take(counts: Counts, limit: Limit = HOURLY, origin: str = "uid 33") -> bool:
    """Count a message; tell whether it is beyond the limit."""
    met, _ = counts.take(next(NAMES), [(limit, origin)], 1, True)
    return met is not None


def hour(path: Path, origin: str = "uid 33") -> tuple[int, int, int]:
    """Give messages, recipients and refused ones of an origin's hour."""
    [one] = (count for count in read_counts(path)[2] if count.origin == origin)
    window = one.windows[1]
    return window.messages, window.recipients, window.refused


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """CLOCK_BOOTTIME in the hand of a test: an hour of it is too long to wait."""
    now = [10**15]
    real = time.clock_gettime_ns
    monkeypatch.setattr(
        time,
        "clock_gettime_ns",
        lambda which: now[0] if which == time.CLOCK_BOOTTIME else real(which),
    )
    return now


def test_a_window_begins_with_a_message_and_ends(
    counts: Counts, path: Path, clock: list[int]
) -> None:
    assert [take(counts) for _ in range(5)] == [False] * 3 + [True] * 2
    clock[0] += limits.SPANS_NS[1] - 1
    assert take(counts) and hour(path) == (3, 3, 3)
    clock[0] += 1
    assert hour(path) == (0, 0, 0)
    assert not take(counts) and hour(path) == (1, 1, 0)


def test_the_time_of_day_may_be_set(
    counts: Counts, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step of it, back or forth, changes a count; a mock, as root alone may."""
    for step in (0, -(10**9), 10**9, -1):
        monkeypatch.setattr(time, "time", lambda step=step: 1e9 + step)
        monkeypatch.setattr(time, "time_ns", lambda step=step: (10**9 + step) * 10**9)
        take(counts)
    assert hour(path) == (3, 3, 1)


def test_the_same_message_is_counted_once(counts: Counts, path: Path) -> None:
    """As Postfix asks again when its first question was not answered."""
    free = Limit("users", "user", "hold", (None, 1), (None, None))
    first = counts.take("a.b.c", [(free, "uid 33")], 5, True)
    again = counts.take("a.b.c", [(free, "uid 33")], 5, True)
    assert (first, again) == ((None, []), (None, []))
    met, news = counts.take("a.b.d", [(free, "uid 33")], 5, True)
    assert met is free and len(news) == 1
    assert counts.take("a.b.d", [(free, "uid 33")], 5, True) == (free, [])
    assert hour(path) == (2, 10, 0)


def test_what_could_not_be_written_is_not_counted(counts: Counts, path: Path) -> None:
    """What is known of the file is looked up again after a failure half-way."""
    take(counts)
    with pytest.raises(OverflowError):  # more than SQLite has numbers for
        counts.take(next(NAMES), [(HOURLY, "uid 33")], 2**64, True)
    assert not take(counts) and hour(path) == (2, 2, 0)


def test_refused_and_sent_again_under_the_same_name(
    counts: Counts, path: Path, clock: list[int]
) -> None:
    """smtpd leaves its transaction open after a refusal: DATA may come once more."""
    for _ in range(3):
        take(counts)
    asked = [(HOURLY, "uid 33")]
    assert counts.take("a.b.c", asked, 1, True)[0] is HOURLY
    clock[0] += limits.SPANS_NS[1]
    assert counts.take("a.b.c", asked, 1, True)[0] is None
    assert hour(path) == (1, 1, 0)


def test_a_finding_once_a_window(counts: Counts, clock: list[int]) -> None:
    both = Limit("users", "user", "notify", (2, 3), (None, None))
    news = []
    for _ in range(6):
        _, told = counts.take(next(NAMES), [(both, "uid 33")], 1, True)
        news += [(met.span, met.window.messages) for met in told]
    assert news == [(0, 3), (1, 4)]
    clock[0] += limits.SPANS_NS[0]
    for _ in range(6):
        _, told = counts.take(next(NAMES), [(both, "uid 33")], 1, True)
        news += [(met.span, met.window.messages) for met in told]
    assert news[2:] == [(0, 3)]


def test_the_strictest_of_several_limits(counts: Counts, path: Path) -> None:
    hold = Limit("a", "user", "hold", (None, 1), (None, None))
    reject = Limit("b", "unit", "reject", (None, 2), (None, None))
    asked = [(reject, "unit x"), (hold, "uid 33")]
    met = [counts.take(next(NAMES), asked, 1, True)[0] for _ in range(3)]
    assert met == [None, hold, reject]
    # observed, all of them went out
    met = [counts.take(next(NAMES), asked, 1, False)[0] for _ in range(2)]
    assert met == [reject, reject]
    assert hour(path) == (4, 4, 1)  # it was beyond this one as well
    assert hour(path, "unit x") == (4, 4, 1)


def test_hostile_numbers_of_origins(
    counts: Counts, path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[int]
) -> None:
    """Beyond the most they share one; old ones keep theirs, and the file is small."""
    most = 500
    monkeypatch.setattr(limits, "MOST_ORIGINS", most)
    assert [take(counts) for _ in range(4)] == [False] * 3 + [True]
    for number in range(3 * most):
        take(counts, origin=f"folder /srv/www/{number}" + "x" * (number % 4000))
    assert take(counts) and hour(path) == (3, 3, 2)
    assert hour(path, "(others)")[0] == 3 and hour(path, "(others)")[2] > most
    assert len(read_counts(path)[2]) == most + 1
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    assert size < 12_000_000, size
    clock[0] += limits.SPANS_NS[1]
    assert not take(counts, origin="uid 1") and hour(path, "uid 1") == (1, 1, 0)
    assert len(read_counts(path)[2]) == 1
    assert MOST_ORIGINS >= 10_000


def test_any_bytes_may_be_an_origin(counts: Counts, path: Path) -> None:
    hostile = "folder /srv/www/\udcff\n\x1b[31m'; DROP TABLE counts; --"
    take(counts, origin=hostile)
    assert hour(path, hostile) == (1, 1, 0)


def test_of_another_boot_nothing_is_left(
    counts: Counts, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(counts)
    counts.close()
    monkeypatch.setattr(limits, "boot_id", lambda: "another")
    with pytest.raises(MtaError, match="another boot"):
        read_counts(path)
    take(counts)
    counts.put(policy())
    assert hour(path) == (1, 1, 0)


def test_guardd_has_a_user_of_its_own_and_root_reads() -> None:
    """Whoever looks, also while nobody counts, leaves files that it can go on with."""
    folder = Path(f"/tmp/smtp-guard-counts-{os.getpid()}")
    folder.mkdir()
    path = folder / "x.counts"
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(folder, nobody, nobody)
    program = f"{COUNT}    if number == 9: break\n"
    program = program.replace("counts = Counts(Path(sys.argv[1]))", PUT)
    try:
        for run in range(2):
            subprocess.run(
                [sys.executable, "-c", program, str(path), f"run{run}"],
                cwd=CHECKOUT,
                user=nobody,
                group=nobody,
                extra_groups=[],
                umask=0o077,
                check=True,
                timeout=60,
            )
            assert hour(path)[0] == 10 * (run + 1)
            assert {file.stat().st_uid for file in folder.iterdir()} == {nobody}
    finally:
        shutil.rmtree(folder)


def test_killed_at_any_moment(counts: Counts, path: Path) -> None:
    """SIGKILL: what was told to be counted is, and at most one more."""
    told = 0
    for run in range(8):
        counting = subprocess.Popen(
            [sys.executable, "-c", COUNT, str(path), f"run{run}"],
            stdout=subprocess.PIPE,
        )
        assert counting.stdout
        told += len(counting.stdout.read(30 + 17 * run))
        counting.send_signal(signal.SIGKILL)
        told += len(counting.stdout.read())
        counting.wait(30)
        messages, recipients, _ = hour(path)
        assert told <= messages <= told + 1
        assert recipients == 2 * messages
        told = messages  # the one more is counted, and its answer was not given


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_file_is_not_opened(path: Path, kind: str, end: str) -> None:
    """By who counts and by who reads: a link leads anywhere, a FIFO has no end."""
    other = path.with_name("other.counts")
    # closed here: SQLite writes the file when it is, and Python does so when it likes
    with contextlib.closing(Counts(other)) as counts:
        counts.put(policy())
    place = path.with_name(path.name + end)
    if end:
        shutil.copy(other, path)
    if kind == "link":
        place.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    before = other.read_bytes()
    for act in (lambda: read_counts(path), lambda: Counts(path).put(policy())):
        with pytest.raises(MtaError, match="is no file"):
            act()
    assert os.path.lexists(place) and other.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: run as root")
def test_root_reads_no_more_than_who_counts(counts: Counts, path: Path) -> None:
    """The folder is guardd's user's, who may have put any file there meanwhile."""
    counts.close()
    nobody = pwd.getpwnam("nobody")
    for folder in (*path.parents[2].parents, *path.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    path.chmod(0o600)
    os.chown(path.parent, nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(MtaError, match="unable to open"):
        read_counts(path)  # the file is root's still
    assert (os.geteuid(), os.getegid()) == (0, 0)
    for file in path.parent.iterdir():
        os.chown(file, nobody.pw_uid, nobody.pw_gid)
    assert read_counts(path)[1] in (True, False)
    assert (os.geteuid(), os.getegid()) == (0, 0)
