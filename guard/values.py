# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of journal fields, which anybody may have written, as what they must be.

Each raises ValueError for what guardd cannot have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text(value: Any) -> str:
    """Read bytes or str, as journal readers give them; ValueError for a list."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value
    if type(value) is int:  # PRIORITY, by systemd.journal.Reader
        return str(value)
    raise ValueError(f"a {type(value).__name__} is no field of ours")


def number(value: Any) -> int:
    """Read a plain decimal; ValueError for a sign, a space, more than 64 bits.

    All 64 are needed: who mounts a FUSE file system chooses its inode numbers.
    """
    if not isinstance(value, bytes):
        value = text(value).encode("utf-8", "surrogateescape")
    if len(value) > 20 or not value.isdigit() or (made := int(value)) >> 64:
        raise ValueError(f"{value[:40]!r} is not a number")
    return made


def time_us(value: Any) -> int:
    """Read microseconds since 1970; ValueError beyond what datetime can show."""
    if (made := number(value)) >> 55:
        raise ValueError(f"{made} is not a time of this millennium")
    return made


def end(which: str, entry: Mapping[str, Any]) -> tuple[str, int]:
    """Read one end of a connection; which is SRC, DST, CLIENT and so on."""
    port = number(entry[f"SMTPGUARD_{which}_PORT"])
    if port > 65535:
        raise ValueError(f"{port} is no port")
    return text(entry[f"SMTPGUARD_{which}_ADDR"]), port
