# SPDX-License-Identifier: GPL-2.0-or-later
"""What journald has kept, read from files that a real one wrote."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.finding import Kind, Notice
from guard.journal import JournalWriter, frame
from guard.receipts import Receipts, entries_with, siphash24
from tests.journald import Journald, until

# Aumasson and Bernstein, appendix A: the bytes 0 to 14, the key 0 to 15
VECTOR = 0xA129CA6149BE45E5


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    with Journald(tmp_path / "journald") as journald:
        yield journald


def write(journald: Journald, times: int, **fields: str) -> None:
    writer = JournalWriter(str(journald.socket))
    for _ in range(times):
        now_us = time.time_ns() // 1000
        writer.write(Notice(Kind.LOST, now_us, "a test", fields=fields), 5)
    writer.close()
    journald.sync()


def active(journald: Journald) -> Path:
    [path] = journald.directory.glob("*/system.journal")
    return path


def test_the_reference_vector() -> None:
    assert siphash24(bytes(range(15)), bytes(range(16))) == VECTOR


def test_entries_are_counted_from_the_start_and_over_rotations(
    journald: Journald,
) -> None:
    write(journald, 7, mark="a")
    journald.rotate()
    receipts = Receipts([journald.directory])
    both = "SMTPGUARD_MARK=a", "SMTPGUARD_MARK=b"

    def kept() -> list[int]:
        return list(receipts.kept(both).values())

    assert kept() == [0, 0]
    write(journald, 100, mark="a")
    assert kept() == [100, 0]
    journald.rotate()
    write(journald, 50, mark="b")
    assert kept() == [100, 50]
    journald.stop()
    journald.start()
    write(journald, 5, mark="a")
    assert kept() == [105, 50]
    for old in journald.directory.glob("*/system@*"):
        old.unlink()
    assert kept() == [105, 50], "what is deleted later was kept once"
    assert receipts.kept(["SMTPGUARD_MARK=c"]) == {"SMTPGUARD_MARK=c": 0}


def test_a_field_is_found_in_what_is_new(journald: Journald) -> None:
    write(journald, 1, mark="old")
    journald.rotate()
    receipts = Receipts([journald.directory])
    write(journald, 3, mark="new")
    assert receipts.has("SMTPGUARD_MARK=new")
    assert not receipts.has("SMTPGUARD_MARK=old")
    assert not receipts.has("SMTPGUARD_MARK=ne")


def test_each_field_of_many_is_counted_as_journalctl_does(journald: Journald) -> None:
    """So many that chains of the hash table are longer than one."""
    for number in range(3000):
        if number % 100 == 0:
            write(journald, 2, mark=str(number))
        write_one(journald, number)
    journald.sync()
    file = os.open(active(journald), os.O_RDONLY)
    for number in range(0, 3000, 97):
        match = f"SMTPGUARD_MARK={number}"
        counted = subprocess.run(
            ["journalctl", "-q", "-D", str(journald.directory), "-o", "cat", match],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout.count(b"\n")
        assert entries_with(file, match.encode())[1] == counted > 0
    os.close(file)


def write_one(journald: Journald, number: int) -> None:
    writer = JournalWriter(str(journald.socket))
    fields = {"mark": str(number)}
    writer.write(Notice(Kind.LOST, time.time_ns() // 1000, "x", fields=fields), 5)
    writer.close()


def test_no_journal_is_no_entry(tmp_path: Path) -> None:
    assert Receipts([tmp_path / "none"]).kept(["A=b"]) == {"A=b": 0}


def test_torn_files_are_refused_or_read(journald: Journald, tmp_path: Path) -> None:
    write(journald, 20, mark="x")
    whole = active(journald).read_bytes()
    torn = tmp_path / "torn"
    chance = random.Random(8)
    for turn in range(300):
        raw = bytearray(whole[: 1 << 20])
        if turn % 3 == 0:
            raw = raw[: chance.randrange(4096)]
        else:
            for _ in range(20):
                raw[chance.randrange(300)] = chance.randrange(256)
        torn.write_bytes(raw)
        file = os.open(torn, os.O_RDONLY)
        try:
            entries_with(file, b"SMTPGUARD_MARK=x")
        except ValueError:
            pass
        finally:
            os.close(file)


def test_what_a_process_prints_is_none_of_its_entries(journald: Journald) -> None:
    """Under its unit that goes into the journal, too, with the same _PID."""
    write(journald, 1)  # a file to count in
    by_pid, ours = f"_PID={os.getpid()}", "SMTPGUARD_WRITER=me"
    receipts = Receipts([journald.directory])

    def kept() -> tuple[int, int]:
        counts = receipts.kept([by_pid, ours])
        return counts[by_pid], counts[ours]

    with socket.socket(socket.AF_UNIX) as stdout:  # as systemd opens a unit's
        stdout.connect(str(journald.runtime / "stdout"))
        stdout.sendall(b"guardd\n\n6\n0\n0\n0\n0\na complaint\n")
        until(lambda: kept()[0] == 2, "the line in the journal")
    assert kept()[1] == 0
    writer = JournalWriter(str(journald.socket))
    writer.send(frame(["MESSAGE=an entry", "SMTPGUARD_WRITER=me"]), 5)
    writer.close()
    until(lambda: kept() == (3, 1), "the entry in the journal")
