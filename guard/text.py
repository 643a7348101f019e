# SPDX-License-Identifier: GPL-2.0-or-later
"""Text from processes is hostile: what may stand in a message or on a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

# Shown as nothing or as a blank, and yet letters and marks to str.isprintable():
# what Unicode calls Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and
# the blank Braille pattern.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)


def printable(text: str) -> str:
    r"""Escape what could steer a terminal or hide text: \x1b, \udce9 as \xe9.

    Escaped are control characters (newlines too), bytes that were not UTF-8
    (surrogateescape), line separators and invisible or direction-changing
    characters: all that str.isprintable() refuses, and what is as good as those.
    """
    if text.isprintable() and (text.isascii() or not _INVISIBLE.search(text)):
        return text
    return "".join(c if _visible(c) else _escape(ord(c)) for c in text)


def printable_lines(text: str) -> str:
    """Escape as printable() does, but let newlines stand."""
    return "\n".join(map(printable, text.split("\n")))


def json_text(value: Any, indent: int | None = None) -> str:
    """Give JSON that is printable ASCII whatever is in it: DEL is no exception."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def _visible(character: str) -> bool:
    return character.isprintable() and not _INVISIBLE.match(character)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte that was not UTF-8
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def address(end: tuple[str, int]) -> str:
    """Write an address and a port: 192.0.2.1:25, [2001:db8::1]:25."""
    host, port = end
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
