# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile texts through a real journald: the same findings come back, and harmless."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.errors import GuardError
from guard.event import unpack_event
from guard.finding import Finding, Process
from guard.journal import JournalWriter, read
from guard.query import Journal
from tests.fuzz.inputs import events, seeds, texts
from tests.fuzz.shown import guardctl
from tests.fuzz.targets import NAMING, fields_of, of_this_version
from tests.journal.findings import PLAIN
from tests.journald import Journald

# Every text of a finding that a process, or who names users and units, can choose.
_CHOSEN = (
    *("comm", "exe", "cwd", "cgroup", "user", "group", "unit", "container", "rule"),
    *("connection", "outcome", "error", "exe_device"),
)
hostile_findings = st.builds(
    lambda chosen, args, comm: dataclasses.replace(
        PLAIN, **chosen, args=tuple(args), ancestors=(Process(1, 0, comm, 2**64 - 1),)
    ),
    st.fixed_dictionaries(dict.fromkeys(_CHOSEN, texts)),
    st.lists(texts, max_size=4),
    texts,
) | events().map(lambda raw: NAMING.finding(unpack_event(raw)))


class Store:
    """A journald of the test's own, and what was written to it."""

    def __init__(self, journald: Journald) -> None:
        self.journald = journald
        self.directory = str(journald.directory)
        self._writer = JournalWriter(str(journald.socket))
        self._written = 0

    def send(self, findings: list[Finding]) -> list[Finding]:
        """Write findings; give what the journal then has of them."""
        for finding in findings:
            self._writer.write(finding, 10)
        self.journald.sync()
        entries = list(Journal(self.directory).forward([], 0, 1 << 62))
        new = entries[self._written :]
        self._written = len(entries)
        return [found for found in map(read, new) if isinstance(found, Finding)]

    def close(self) -> None:
        self._writer.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Journald(tmp_path_factory.mktemp("fuzz") / "j") as journald:
        made = Store(journald)
        yield made
        made.close()


def _kept() -> Iterator[Finding]:
    """Give the findings of all kept inputs that come to one."""
    for path in seeds("event"):
        with contextlib.suppress(GuardError):
            yield NAMING.finding(unpack_event(of_this_version(path.read_bytes())))
    for path in seeds("entry"):
        for entry in fields_of(path.read_bytes()):
            with contextlib.suppress(GuardError):
                found = read(entry)
                if isinstance(found, Finding):
                    yield found


def test_kept_inputs_come_back(store: Store) -> None:
    kept = list(_kept())
    assert len(kept) > 10
    assert store.send(kept) == kept


@settings(
    max_examples=25,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(batch=st.lists(hostile_findings, min_size=1, max_size=8))
def test_made_up_findings_come_back(store: Store, batch: list[Finding]) -> None:
    assert store.send(batch) == batch


@pytest.mark.parametrize(
    "argv", [(), ("--json",), ("--csv",), ("--group-by", "args"), ("--reverse",)]
)
def test_what_is_shown_of_them_is_harmless(store: Store, argv: tuple[str, ...]) -> None:
    store.send([PLAIN, *_kept()])
    status, text = guardctl("who-connected", "--directory", store.directory, *argv)
    assert status == 0 and "could not be read" not in text


def test_a_plan_of_them_is_harmless(store: Store) -> None:
    store.send([PLAIN, *_kept()])
    for json_ in ((), ("--json",)):
        argv = ("plan", "--since", "@0", "--directory", store.directory, *json_)
        status, text = guardctl(*argv)
        assert status == 0 and text.strip()
