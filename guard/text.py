# SPDX-License-Identifier: GPL-2.0-or-later
"""Text from processes is hostile: what may stand in a message or on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape what could steer a terminal or hide text: \x1b, \udce9 as \xe9.

    Escaped are control characters (newlines too), bytes that were not UTF-8
    (surrogateescape), line separators and invisible or direction-changing
    characters: all that str.isprintable() refuses.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


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
