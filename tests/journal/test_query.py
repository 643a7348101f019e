# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to a real journal: filters, merging of ends, order, bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from guard.errors import BadQuery, JournalError
from guard.finding import Finding, Kind, Notice
from guard.query import Filter, Journal, connections
from guard.query.connections import WINDOW
from guard.query.entries import writers
from guard.query.groups import FIELDS, groups
from guard.query.planning import candidates
from tests.journal.conftest import guardctl, rows
from tests.journal.findings import finding, now_us
from tests.journald import Journald

Store = Callable[..., Journal]


def names(found: list[Finding]) -> list[str]:
    return [one.connection for one in found]


MANY = {"kind": Kind.SUMMARY, "destinations": "many", "dst": ("198.51.100.1", 465)}
VARIED: dict[str, dict[str, Any]] = {
    "plain": {},
    "port": {"dst": ("203.0.113.9", 587)},
    "six": {"dst": ("2001:db8::25", 25)},
    "near": {"dst": ("203.0.113.77", 25)},
    "from": {"src": ("10.0.0.1", 40001)},
    "pid": {"pid": 99},
    "user": {"uid": 1001, "user": "ann=x"},
    "nameless": {"uid": 1002, "user": None},
    "exe": {"exe": "/opt/mail/[x]send"},
    "bytes": {"exe": "/opt/mail/\udce9"},
    "unit": {"unit": "cron.service"},
    "unitless": {"unit": None, "exe": None},
    "script": {"script": "/srv/shop/a.php", "script_from": "args"},
    "folder": {"script": "/srv/shop/", "script_from": "cwd", "pool": "shop"},
    "allow": {"verdict": "allow"},
    "local": {"direction": "local"},
}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ({"ports": (587,)}, ["port"]),
        ({"ports": (587, 465)}, ["port"]),
        ({"to": ("2001:db8::25",)}, ["six"]),
        ({"to": ("[2001:DB8:0::25]",)}, ["six"]),
        ({"to": ("2001:db8::/32",)}, ["six"]),
        ({"to": ("203.0.113.64/26",)}, ["near"]),
        ({"to": ("::ffff:203.0.113.77",)}, ["near"]),
        ({"to": ("::ffff:203.0.113.64/122", "2001:db8::25")}, ["six", "near"]),
        ({"from_ports": (40001,)}, ["from"]),
        ({"pids": (99,)}, ["pid"]),
        ({"users": ("ann=x",)}, ["user"]),
        ({"uids": (1001, 1002)}, ["user", "nameless"]),
        ({"exes": ("/opt/mail/[x]send",)}, ["exe"]),
        ({"exes": ("/opt/*",)}, ["exe", "bytes"]),
        ({"exes": ("/opt/mail/\udce9",)}, ["bytes"]),
        ({"units": ("cron.service",)}, ["unit"]),
        ({"units": ("c*.service",)}, ["unit"]),
        ({"scripts": ("/srv/shop/a.php",)}, ["script"]),
        ({"scripts": ("/srv/shop/*",)}, ["script", "folder"]),
        ({"scripts": ("/srv/sho*",), "pools": ("shop",)}, ["folder"]),
        ({"pools": ("s[g-i]op",)}, ["folder"]),
        ({"verdicts": ("allow", "redirect")}, ["allow"]),
        ({"directions": ("local",)}, ["local"]),
        ({"directions": ("local",), "verdicts": ("allow",)}, []),
    ],
)
def test_filters_find_what_they_say(
    store: Store, question: dict[str, Any], answer: list[str]
) -> None:
    journal = store(*(finding(connection=n, **v) for n, v in VARIED.items()))
    assert names(rows(journal, **question)) == answer
    assert names(rows(journal)) == list(VARIED), "the control: all are there"
    backwards = rows(journal, newest_first=True, **question)
    assert names(backwards) == answer[::-1]


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        ({"to": ("203.0.113.77",)}, ["near", "many"]),
        ({"to": ("203.0.113.64/26",)}, ["near", "many"]),
        ({"to": ("203.0.113.77",), "uids": (33,)}, ["near", "many"]),
        ({"to": ("203.0.113.77",), "uids": (1001,)}, []),
        ({"to": ("203.0.113.77",), "ports": (25,)}, ["near"]),
        ({"ports": (465,)}, ["many"]),
    ],
)
def test_a_sum_over_many_destinations_may_be_of_any(
    store: Store, question: dict[str, Any], shown: list[str]
) -> None:
    journal = store(
        finding(connection="near", **VARIED["near"]),
        finding(connection="far", dst=("192.0.2.1", 25)),
        finding(connection="many", **MANY),
    )
    assert names(rows(journal, **question)) == shown


@pytest.mark.parametrize("newest_first", [False, True])
def test_one_that_is_older_than_the_guard_has_its_end(
    store: Store, newest_first: bool
) -> None:
    older = {"connection": "before-1", "verdict": "deny", "outcome": "to-end"}
    left = {"connection": "before-2", "verdict": "deny", "outcome": "left-open"}
    journal = store(
        finding(Kind.PRE_EXISTING, **older),
        finding(Kind.PRE_EXISTING, **left),
        finding(Kind.ENDED, connection="before-1", outcome="not-ended", error="EPERM"),
    )
    found = {one.connection: one for one in rows(journal, newest_first=newest_first)}
    assert list(found) == ["before-1", "before-2"][:: -1 if newest_first else 1]
    ended = found["before-1"]
    assert (ended.kind, ended.outcome) == (Kind.PRE_EXISTING, "not-ended")
    assert ended.error == "EPERM"
    assert found["before-2"].outcome == "left-open"


def test_since_and_until_are_of_the_connect(store: Store) -> None:
    start = now_us() - 3_600_000_000
    journal = store(
        *(finding(connection=str(n), time_us=start + n * 60_000_000) for n in range(5))
    )
    # Written only now, as after a time in which guardd did not run.
    assert names(rows(journal, since_us=start + 60_000_000)) == ["1", "2", "3", "4"]
    assert names(rows(journal, until_us=now_us() - 1_000_000)) == list("01234")
    assert rows(journal, since_us=now_us()) == []
    assert rows(journal, until_us=start - 1) == []


@pytest.mark.parametrize(
    "wrong", ["example.org", "1.2.3", "1.2.3.4/33", "1.2.3.4/24", ""]
)
def test_no_address_is_said_so(wrong: str) -> None:
    with pytest.raises(BadQuery, match="no address"):
        Filter(to=(wrong,)).matches()


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("between", [0, WINDOW + 200])
def test_a_connection_is_one_row(
    store: Store, newest_first: bool, between: int
) -> None:
    opening = finding(Kind.LOCAL, connection="c", uid=7)
    others = [finding(connection=f"other{n}") for n in range(between)]
    end = finding(
        Kind.CLOSED, connection="c", uid=7, outcome="failed", error="ECONNRESET",
        time_us=opening.time_us,
    )  # fmt: skip
    journal = store(opening, *others, end)
    merged = dataclasses.replace(
        opening, outcome="failed", error="ECONNRESET", bytes_sent=345,
        bytes_received=678, duration_us=1_234_567,
    )  # fmt: skip
    found = rows(journal, newest_first=newest_first)
    assert len(found) == between + 1
    assert [row for row in found if row.connection == "c"] == [merged]
    assert rows(journal, uids=(7,), newest_first=newest_first) == [merged]
    assert rows(journal, uids=(7,), ends=False) == [opening]
    # The end lies after --until, or outside of what a filter lets through.
    assert rows(journal, kinds=("local",), newest_first=newest_first) == [merged]


def test_many_open_connections_end_each_at_its_own_row(store: Store) -> None:
    made = [finding(Kind.LOCAL, connection=str(n)) for n in range(3 * WINDOW)]
    ends = [
        finding(Kind.CLOSED, connection=one.connection, bytes_sent=int(one.connection))
        for one in made
    ]
    random.Random(1).shuffle(ends)
    journal = store(*made, *ends)
    for newest_first in (False, True):
        found = rows(journal, newest_first=newest_first)
        assert len(found) == len(made)
        assert all(row.bytes_sent == int(row.connection) for row in found)


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_finding_written_twice_is_one_row(store: Store, newest_first: bool) -> None:
    """guardd was killed with it in hand: the next one writes it again."""
    one = finding(Kind.DENIED, connection="one")
    other = finding(Kind.LOCAL, connection="other")
    end = dataclasses.replace(other, kind=Kind.CLOSED, outcome="closed")
    journal = store(one, one, other, other, end)
    found = list(connections(journal, Filter(), pytest.fail, newest_first=newest_first))
    assert sorted(names(found)) == ["one", "other"]
    assert {row.connection: row.outcome for row in found}["other"] == "closed"


def test_rows_are_in_order_of_time(store: Store) -> None:
    start = now_us()
    times = [start + 1000 * n for n in range(300)]
    random.Random(2).shuffle(times)
    journal = store(*(finding(connection=str(t), time_us=t) for t in times))
    for newest_first in (False, True):
        found = [row.time_us for row in rows(journal, newest_first=newest_first)]
        assert found == sorted(times, reverse=newest_first)


def test_an_open_connection_and_a_summary_get_no_end(store: Store) -> None:
    first = finding(Kind.LOCAL, connection="c")
    summary = finding(
        Kind.SUMMARY, connection="c", count=9, outcome="syn-sent", verdict="allow"
    )
    found = rows(store(first, finding(Kind.CLOSED, connection="c"), summary))
    assert [(row.kind, row.outcome) for row in found] == [
        (Kind.LOCAL, "closed"),
        (Kind.SUMMARY, "syn-sent"),
    ]
    (row,) = rows(
        store(finding(Kind.LOCAL, connection="d")), since_us=found[1].time_us + 1
    )
    assert (row.outcome, row.duration_us) == ("syn-sent", None)


def test_notices_are_no_rows_and_torn_entries_are_told(store: Store) -> None:
    torn: list[JournalError] = []
    bad = dataclasses.replace(finding(uid=5), pid="x", connection="torn")
    journal = store(finding(uid=5), Notice(Kind.LOST, now_us(), "lost"), bad)
    assert len(list(connections(journal, Filter(), torn.append))) == 1
    assert len(torn) == 1 and "not a number" in str(torn[0])


def test_groups_count_what_summaries_stand_for(store: Store) -> None:
    last = now_us() + 5_000_000
    journal = store(
        finding(connection="1", cwd="/a"),
        finding(connection="2", cwd="/b"),
        finding(connection="3", cwd="/b", verdict="allow"),
        finding(Kind.SUMMARY, connection="1", cwd="/a", count=40, last_us=last),
    )
    made = groups(rows(journal), "cwd")
    assert [(g.value, g.count, g.denied) for g in made] == [
        ("/a", 41, 41),
        ("/b", 2, 1),
    ]
    assert made[0].last_us == last
    for field in FIELDS:
        assert sum(g.count for g in groups(rows(journal), field)) == 43


def test_candidates_are_who_a_rule_can_tell_apart() -> None:
    found = [
        finding(Kind.WOULD_DENY, cwd="/a"),
        finding(Kind.WOULD_DENY, cwd="/b", dst=("203.0.113.10", 587)),
        finding(Kind.WOULD_DENY, uid=34, user="x"),
        finding(Kind.SUMMARY, count=10, uid=34, user="x", mode="observe"),
        finding(Kind.DENIED, unit="cron.service"),
    ]
    made, beyond = candidates(found)
    assert beyond == 0
    assert [(c.finding.uid, c.count) for c in made] == [(34, 11), (33, 2), (33, 1)]
    assert made[1].ports == {25, 587} and made[1].directories == {"/a", "/b"}


def test_a_directory_that_is_none_is_said_so(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    for wrong in ("missing", "file"):
        with pytest.raises(JournalError, match=wrong):
            Journal(str(tmp_path / wrong))
    assert rows(Journal(str(tmp_path))) == []


def test_a_damaged_journal_is_read_as_far_as_it_goes(
    journald: Journald, store: Store
) -> None:
    journal = store(*(finding(connection=str(n)) for n in range(3000)))
    assert len(rows(journal)) == 3000
    journald.stop()
    (file,) = journald.directory.glob("*/*.journal")
    raw = bytearray(file.read_bytes())
    name = b"SMTPGUARD_CONNECTION="
    places = [match.start() for match in re.finditer(name, raw)]
    for place in places[::10]:  # no such field any more
        raw[place] ^= 0x20
    file.write_bytes(raw)
    for newest_first in (False, True):
        torn: list[JournalError] = []
        how = {"newest_first": newest_first}
        found = list(connections(journal, Filter(), torn.append, **how))
        assert torn and len(found) < 3000
    done = guardctl("who-connected", "--directory", journald.directory)
    assert "Traceback" not in done.stderr and done.stderr
    # anywhere: where it is what entries are looked up by, sd-journal tells nobody
    dice = random.Random(3)
    for _ in range(1000):
        at = dice.randrange(300, len(raw))
        raw[at : at + 8] = dice.randbytes(8)
    file.write_bytes(raw)
    for newest_first in (False, True):
        how = {"newest_first": newest_first}
        with contextlib.suppress(JournalError):
            found = list(connections(journal, Filter(), torn.append, **how))
            assert len(found) < 3000
    done = guardctl("who-connected", "--directory", journald.directory)
    assert "Traceback" not in done.stderr and done.returncode in (0, 1, 74)


def test_the_guards_own_account_is_trusted_on_its_own_host_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guard.query.entries.ACCOUNT", "nobody")
    assert "_UID=65534" in writers(foreign=False)
    assert "_UID=65534" not in writers(foreign=True)
    monkeypatch.setattr("guard.query.entries.ACCOUNT", "no-such-account")
    always = ["_UID=0"]
    for name in ("smtp-guard", "smtp-guard-load"):
        always.append(f"_SYSTEMD_UNIT={name}.service")
    assert writers(foreign=False) == writers(foreign=True) == always
