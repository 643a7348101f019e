# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings as JSON, CSV and a table, with nothing in them that could harm.

JSON has text as it is, with bytes that are not UTF-8 written \\xNN. CSV and the
table are escaped as guard/text.py says.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from guard.finding import REASONS, UNKNOWN, Finding, Kind, Message, Notice
from guard.journal import Found
from guard.message import mail_message
from guard.text import address, json_text, printable


def iso_time(us: int) -> str:
    """Write CLOCK_REALTIME microseconds as ISO 8601 with this host's offset."""
    clock, offset = _iso_parts(us // 1_000_000)
    return f"{clock}.{us % 1_000_000:06d}{offset}"


@lru_cache(maxsize=64)
def _iso_parts(seconds: int) -> tuple[str, str]:
    text = datetime.fromtimestamp(seconds).astimezone().isoformat()
    return text[:19], text[19:]


@lru_cache(maxsize=64)
def _short_second(seconds: int) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(seconds))


def short_time(us: int) -> str:
    """Write CLOCK_REALTIME microseconds as month-day and clock, 14 characters."""
    return _short_second(us // 1_000_000)


def valid(text: str) -> str:
    r"""Give text that every JSON parser takes: bytes not UTF-8 become \xNN."""
    if text.isascii():
        return text
    raw = text.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def _text(text: str | None) -> str | None:
    return None if text is None else valid(text)


def _end(end: tuple[str, int] | None) -> dict[str, Any]:
    host, port = end or (None, None)
    return {"addr": _text(host), "port": port}


def row(finding: Finding) -> dict[str, Any]:
    """Give the JSON row of a finding; the keys are documented and stay."""
    duration = finding.duration_us
    return {
        "time": iso_time(finding.time_us),
        "verdict": valid(finding.verdict),
        "direction": valid(finding.direction),
        "rule": _text(finding.rule),
        "pid": finding.pid,
        "ppid": finding.ppid,
        "uid": finding.uid,
        "user": _text(finding.user),
        "gid": finding.gid,
        "group": _text(finding.group),
        "loginuid": finding.loginuid,
        "comm": valid(finding.comm),
        "exe": _text(finding.exe),
        "args": [valid(arg) for arg in finding.args],
        "cwd": valid(finding.cwd),
        "unit": _text(finding.unit),
        "cgroup": valid(finding.cgroup),
        "ancestors": [
            {"pid": p.pid, "uid": p.uid, "comm": valid(p.comm)}
            for p in finding.ancestors
        ],
        "src": _end(finding.src),
        "dst": _end(finding.dst),
        "outcome": valid(finding.outcome),
        "bytes_sent": finding.bytes_sent,
        "bytes_received": finding.bytes_received,
        "duration_ms": None if duration is None else duration / 1000,
        "kind": finding.kind.value,
        "mode": valid(finding.mode),
        "count": finding.count,
        "destinations": _text(finding.destinations),
        "last": iso_time(finding.last_us) if finding.last_us else None,
        "connection": valid(finding.connection),
        "via": _end(finding.via) if finding.via else None,
        "error": _text(finding.error),
        "tid": finding.tid,
        "start": iso_time(finding.start_us),
        "session": finding.session,
        "real_uid": finding.real_uid,
        "real_gid": finding.real_gid,
        "container": _text(finding.container),
        "netns": finding.netns,
        "exe_device": valid(finding.exe_device),
        "exe_inode": finding.exe_inode,
        "exe_nlink": finding.exe_nlink,
        "script": _text(finding.script),
        "script_from": _text(finding.script_from),
        "pool": _text(finding.pool),
        "request_method": _text(finding.request_method),
        "request_uri": _text(finding.request_uri),
        "incomplete": list(map(valid, finding.incomplete)),
        "makers": [
            {
                "pid": m.pid,
                "uid": m.uid,
                "comm": valid(m.comm),
                "exe": _text(m.exe),
                "args": [valid(arg) for arg in m.args],
                "unit": _text(m.unit),
            }
            for m in finding.makers
        ],
    }


def notice_row(notice: Notice) -> dict[str, Any]:
    """Give the JSON row of a notice."""
    return {
        "time": iso_time(notice.time_us),
        "kind": notice.kind.value,
        "message": valid(notice.message),
        "priority": notice.priority,
        "fields": {valid(name): valid(text) for name, text in notice.fields.items()},
    }


def mail_row(found: Message) -> dict[str, Any]:
    """Give the JSON row of a message."""
    return {
        "time": iso_time(found.time_us),
        "kind": found.kind.value,
        "queue_id": valid(found.queue_id),
        "sender": valid(found.sender),
        "recipients": found.recipients,
        "size": found.size,
        "sasl_user": valid(found.sasl_user),
        "sasl_method": valid(found.sasl_method),
        "protocol": valid(found.protocol),
        "state": valid(found.state),
        "helo": valid(found.helo),
        "client": _end(found.client),
        "server": _end(found.server),
        "origin": row(found.origin) if found.origin else None,
        "unknown": UNKNOWN.get(found.unknown),
        "answer": valid(found.answer),
        "reason": REASONS.get(found.reason),
        "limit": valid(found.limit) or None,
        "token": valid(found.token) or None,
        "messages": found.messages,
        "last_time": iso_time(found.last_us) if found.last_us else None,
    }


def as_json(found: Found) -> str:
    """Give one line of JSON Lines, without its newline."""
    if isinstance(found, Notice):
        return json_text(notice_row(found))
    return json_text(mail_row(found) if isinstance(found, Message) else row(found))


class Csv:
    """Rows as RFC 4180, nested values flattened: src_addr, src_port, ..."""

    def __init__(self) -> None:
        """Write to standard output."""
        self._writer = csv.writer(sys.stdout)
        self._headed = False

    def write(self, values: dict[str, Any]) -> None:
        """Write a row, and before the first the names of its columns."""
        flat = {
            name: cell
            for key, value in values.items()
            for name, cell in _flat(key, value)
        }
        if not self._headed:
            self._writer.writerow(flat)
            self._headed = True
        self._writer.writerow(map(_cell, flat.values()))


def _flat(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if key == "via":  # None or an end, but always these columns
        value = value or _end(None)
    if isinstance(value, dict):
        return [(f"{key}_{inner}", cell) for inner, cell in value.items()]
    if isinstance(value, list):
        return [(key, json.dumps(value) if value else "")]
    return [(key, value)]


def _cell(value: Any) -> Any:
    """Escape text; a spreadsheet would compute what begins like a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


# ---- the table

_WORDS = {
    Kind.DENIED: "denied",
    Kind.WOULD_DENY: "would-deny",
    Kind.REDIRECTED: "redirected",
    Kind.ALLOWED: "allowed",
    Kind.LOCAL: "local",
    Kind.BACKSTOP: "backstop",
}
WIDE = 120  # columns of a terminal that has room for outcome and unit


def terminal_width() -> int:
    """Give the columns to fill: the terminal's, 80 where there is none."""
    return max(80, shutil.get_terminal_size((80, 24)).columns)


def verdict_word(finding: Finding) -> str:
    """Say in at most 10 characters what was done about a connection."""
    if finding.kind is Kind.CLOSED:
        return finding.outcome
    if finding.kind in (Kind.PRE_EXISTING, Kind.ENDED):
        return "ended" if finding.outcome == "ended-by-guard" else "open"
    if finding.verdict == "deny":
        return "denied" if finding.mode == "enforce" else "would-deny"
    if finding.kind is Kind.SUMMARY:
        word = "local" if finding.direction == "local" else "allowed"
        return "redirected" if finding.verdict == "redirect" else word
    return _WORDS[finding.kind]


def cut(text: str, width: int) -> str:
    """Escape text and fit it into width columns, its end cut off."""
    text = printable(text)
    return f"{text[: width - 1]}…" if len(text) > width else text


def cut_front(text: str, width: int) -> str:
    """Escape text and fit it into width columns; of a path the end says more."""
    text = printable(text)
    return f"…{text[1 - width :]}" if len(text) > width else text


def _to(finding: Finding) -> str:
    many = finding.destinations == "many"
    return "many destinations" if many else address(finding.dst)


class Table:
    """Findings as lines of at most `width` columns."""

    def __init__(self, width: int) -> None:
        """Lay the columns out for a terminal so wide, 80 at least."""
        self.wide = width >= WIDE
        self._rest = width - (92 if self.wide else 63)

    def header(self) -> str:
        """Give the names of the columns."""
        wide = f"{'OUTCOME':<9} {'UNIT':<18} " if self.wide else ""
        return (
            f"{'TIME':<14} {'VERDICT':<10} {'PID':>7} {'USER':<8} "
            f"{'TO':<19} {wide}PROGRAM, SCRIPT"
        )

    def line(self, finding: Finding) -> str:
        """Give the line of a finding."""
        user = finding.user if finding.user is not None else str(finding.uid)
        wide = ""
        if self.wide:
            wide = f"{cut(finding.outcome, 9):<9} {cut(finding.unit or '-', 18):<18} "
        repeats = f"{finding.count}x " if finding.kind is Kind.SUMMARY else ""
        name = f"one of {len(finding.makers)}" if finding.makers else finding.comm
        comm = f"{repeats}{cut(name, 15)} "
        room = max(self._rest - len(comm), 1)
        return (
            f"{short_time(finding.time_us)} {cut(verdict_word(finding), 10):<10} "
            f"{finding.pid:>7} {cut(user, 8):<8} "
            f"{cut_front(_to(finding), 19):<19} {wide}"
            f"{cut(comm + cut_front(finding.script or finding.cwd, room), self._rest)}"
        )


def notice_line(found: Notice | Message, width: int) -> str:
    """Give the line of what is no connection, in the place of one's."""
    if isinstance(found, Message):
        text = mail_message(found)
    else:
        text = f"{found.kind.value}: {found.message.split(chr(10), 1)[0]}"
    return cut(f"{short_time(found.time_us)} {text}", width)
