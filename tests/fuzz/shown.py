# SPDX-License-Identifier: GPL-2.0-or-later
"""What guardctl shows of hostile entries, by its real verbs, in this process."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from guard.cli import options
from guard.cli.main import run

# sysexits.h, grep's 1, click's 2, and 128 + SIGINT
STATUSES = {0, 1, 2, *range(64, 79), 130}
# Steers a terminal or hides text: controls (C0, DEL, C1), surrogates, formats
# (bidi, zero width, tags), line separators, and what shows as nothing at all.
HARMFUL = re.compile(
    "[\0-\x09\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


class Entries:
    """Stands for a Journal that holds these entries; filters nothing."""

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        self._entries = entries

    def forward(self, *_: object) -> Iterator[dict[str, Any]]:
        return iter([dict(entry) for entry in self._entries])

    def backward(self, *_: object) -> Iterator[dict[str, Any]]:
        return iter([dict(entry) for entry in reversed(self._entries)])

    def find(self, _: object) -> dict[str, Any] | None:
        return dict(self._entries[-1]) if self._entries else None

    def find_all(self, _: object) -> Iterator[dict[str, Any]]:
        return self.forward()

    def written_by(self, *_: object) -> Iterator[dict[str, Any]]:
        return iter([{**entry, "_AT": 1} for entry in self._entries])

    def follow(self, *_: object) -> Iterator[dict[str, Any] | None]:
        yield from self.forward()
        yield None
        raise KeyboardInterrupt  # as Ctrl-C ends it


def guardctl(*argv: str, stdin: bytes = b"") -> tuple[int, str]:
    """Run a verb; give its exit status, and all it wrote, which must be harmless."""
    out = io.TextIOWrapper(io.BytesIO(), errors="surrogateescape", newline="")
    given = io.TextIOWrapper(io.BytesIO(stdin))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        mock.patch.object(sys, "stdin", given),
    ):
        try:
            status = run(["--pin-dir", "/nonexistent", *argv])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        out.flush()
    raw = out.buffer.getvalue()  # type: ignore[attr-defined]
    text = raw.decode("utf-8", "surrogateescape")
    if "--csv" in argv:
        text = text.replace("\r\n", "\n")  # RFC 4180
    harm = HARMFUL.search(text)
    assert harm is None, (argv, harm, text[max(harm.start() - 40, 0) : harm.end() + 9])
    assert status in STATUSES, (argv, status)
    assert "Traceback" not in text
    return status, text


def show(entries: Sequence[dict[str, Any]], *argv: str) -> str:
    """Let a verb that reads the journal read these entries."""
    journal = mock.patch.object(options, "take_journal", lambda *_: Entries(entries))
    with journal:
        _, text = guardctl(*argv)
    if "--json" in argv:
        for line in text.splitlines():
            if line.startswith("{"):
                json.dumps(json.loads(line), ensure_ascii=False).encode()
    return text
