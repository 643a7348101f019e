# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of Postfix's log and of Exim's, out of files and out of the journal."""

from __future__ import annotations

import gzip
import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from guard.errors import MtaError
from guard.mta.maillog import Logged, LogLine, files, parse_line, read_line

NOW_US = 1_795_564_800_000_000  # 2026-11-25 00:00 UTC


@pytest.mark.parametrize(
    ("program", "text", "found"),
    [
        (
            "postfix/smtpd",
            "4jZ0BV37cFz1f: client=localhost[127.0.0.1]:37634",
            Logged("4jZ0BV37cFz1f", 5, client=("127.0.0.1", 37634)),
        ),
        (
            "postfix/submission/smtpd",
            "8045F2AB23: client=localhost[::1]:37634, sasl_method=PLAIN,"
            " sasl_username=app@x, sasl_sender=b",
            Logged("8045F2AB23", 5, client=("::1", 37634), sasl_user="app@x"),
        ),
        (
            "postfix/smtpd",
            "8045F2AB23: client=unknown[203.0.113.9]",
            Logged("8045F2AB23", 5, client=("203.0.113.9", None)),
        ),
        (
            "postfix/cleanup",
            "8045F2AB23: message-id=<1@shop.example>",
            Logged("8045F2AB23", 5, message_id="1@shop.example"),
        ),
        (
            "postfix/pickup",
            "8045F2AB23: uid=33 from=<www-data>",
            Logged("8045F2AB23", 5, uid=33, sender="www-data"),
        ),
        (
            "postfix/pickup",
            "8045F2AB23: uid=105 from=<a@b.example> orig_id=4jZ0BV37cFz1f",
            Logged(
                "8045F2AB23",
                5,
                uid=105,
                sender="a@b.example",
                before="4jZ0BV37cFz1f",
            ),
        ),
        (
            "exim",
            "1vNQ2k-000000-A7 <= a@b.example H=(c.example) [127.0.0.1]:37634 P=esmtpa"
            " A=plain:app S=345 id=1@shop.example",
            Logged(
                "1vNQ2k-000000-A7",
                5,
                message_id="1@shop.example",
                client=("127.0.0.1", 37634),
                sender="a@b.example",
                sasl_user="app",
            ),
        ),
        (
            "exim",
            "[77] 1vNQ2k-00000000Ab1-1Xyz <= <> U=root P=local S=345",
            Logged("1vNQ2k-00000000Ab1-1Xyz", 5, uid=0, sender="<>"),
        ),
        ("postfix/smtpd", "connect from localhost[127.0.0.1]:37634", None),
        ("postfix/qmgr", "8045F2AB23: client=localhost[127.0.0.1]:37634", None),
        ("sshd", "8045F2AB23: uid=33 from=<root>", None),
    ],
)
def test_what_a_line_tells(program: str, text: str, found: Logged | None) -> None:
    assert parse_line(LogLine(5, program, text)) == found


@pytest.mark.parametrize(
    ("head", "clock"),
    [
        ("Nov 24 23:44:40", "2026-11-24 23:44:40"),
        ("Dec 31 23:44:40", "2025-12-31 23:44:40"),
        ("2025-11-24T23:44:40.5+00:00", "2025-11-24 23:44:40.5+00:00"),
    ],
)
def test_times_of_syslog(head: str, clock: str) -> None:
    line = read_line(f"{head} host postfix/smtpd[1]: hello", NOW_US)
    assert line is not None
    assert line.time_us == round(datetime.fromisoformat(clock).timestamp() * 1e6)
    assert (line.program, line.text) == ("postfix/smtpd", "hello")


def test_lines_of_other_kinds_are_passed_over() -> None:
    for text in ("", "hello", "Feb 30 10:00:00 host x[1]: y", "Nov 24 host x: y"):
        assert read_line(text, NOW_US) is None


def test_files_packed_or_not(tmp_path: Path) -> None:
    year = time.strftime("%Y")
    plain, packed = tmp_path / "mail.log", tmp_path / "mail.log.2.gz"
    line = f"{year}-01-02T03:04:05Z host postfix/smtpd[1]: "
    plain.write_text(f"{line}second \udcff\n", errors="surrogateescape")
    packed.write_bytes(gzip.compress(f"{line}first\n".encode()))
    assert [line.text for line in files([packed, plain])()] == [
        "first",
        "second \udcff",
    ]


@pytest.mark.parametrize(
    ("name", "said", "remedy"),
    [
        ("missing", "No such file or directory", "maillog_file"),
        ("folder", "Is a directory", "maillog_file"),
        ("torn.gz", "ended before the end-of-stream marker", "gzip -t"),
        ("plain.gz", "Not a gzipped file", "gzip -t"),
        ("bad.gz", "invalid", "gzip -t"),
        ("notes", "no line of it is of a mail log", "maillog_file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, said: str, remedy: str
) -> None:
    packed = gzip.compress(b"x" * 500)
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn.gz").write_bytes(packed[:20])
    (tmp_path / "plain.gz").write_text("x\n")
    (tmp_path / "bad.gz").write_bytes(packed[:10] + b"\xff" * 20)
    (tmp_path / "notes").write_text("of the admin's own\n")
    with pytest.raises(MtaError, match=f"{tmp_path / name}: .*{said}") as caught:
        list(files([tmp_path / name])())
    assert "Errno" not in str(caught.value)
    assert remedy in caught.value.hint


def test_a_file_that_is_not_ours_to_read(tmp_path: Path) -> None:
    (tmp_path / "mail.log").touch(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(MtaError, match="Permission denied") as caught:
            list(files([tmp_path / "mail.log"])())
    finally:
        os.seteuid(0)
    assert "adm" in caught.value.hint


def test_an_empty_log_is_one(tmp_path: Path) -> None:
    (tmp_path / "mail.log").write_bytes(b"")
    assert not list(files([tmp_path / "mail.log"])())
