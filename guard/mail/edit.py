# SPDX-License-Identifier: GPL-2.0-or-later
"""mail.toml changed by a verb: one key, with all else and the comments as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import tomlkit
import tomlkit.exceptions
from tomlkit import TOMLDocument
from tomlkit.items import Table

from guard.errors import MailError, NotWritten
from guard.mail.table import MailTable, load, parse

Edit = Callable[[TOMLDocument], None]
_MODE = 0o644  # no secret stands in it


def smart_host_on(values: Mapping[str, object]) -> Edit:
    """Have [smart_host] hold these values and no others, but for its pin.

    Who gives a new password means to leave to the guard what it may let pass.
    """

    def edit(document: TOMLDocument) -> None:
        before = document.unwrap().get("smart_host")
        smart_host_off(document)
        section = tomlkit.table()
        if isinstance(before, dict) and before.get("pin"):
            section["pin"] = True
        for key, value in values.items():
            section[key] = value
        document["smart_host"] = section

    return edit


def smart_host_off(document: TOMLDocument) -> None:
    """Take [smart_host] out."""
    if "smart_host" in document:
        del document["smart_host"]


def transport(domain: str, value: str | None) -> Edit:
    """Give a domain a transport, or with None take its line out."""

    def edit(document: TOMLDocument) -> None:
        section = document.get("transports")
        if not isinstance(section, Table):
            if value is None:
                return
            section = tomlkit.table()
            document["transports"] = section
        # as the admin wrote it: Yahoo.COM is yahoo.com
        there = [str(key) for key in section if str(key).lower() == domain]
        if value is not None:
            section[there[0] if there else domain] = value
        elif there:
            del section[there[0]]

    return edit


def edited(path: Path, edit: Edit) -> tuple[MailTable, str]:
    """Give the table of an edited mail.toml, and its text, not written yet.

    Raises MailTableError for a file with errors, also those that the edit makes.
    """
    try:
        if path.exists():
            load(path)
        document = tomlkit.parse(path.read_text()) if path.exists() else TOMLDocument()
    except (OSError, tomlkit.exceptions.ParseError) as error:
        raise MailError(f"{path}: {error}") from None
    edit(document)
    text = tomlkit.dumps(document)
    return parse(text, str(path)), text


def write(path: Path, text: str) -> Callable[[], None]:
    """Replace mail.toml, and give what puts the old one back; raises NotWritten."""
    new = path.with_name(f".{path.name}.new")
    try:
        old = path.read_bytes() if path.exists() else None
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _replace(path, new, text.encode())
    except OSError as error:
        raise NotWritten(f"{error.filename or path}: {error.strerror}") from None

    def back() -> None:
        if old is None:
            path.unlink(missing_ok=True)
        else:
            _replace(path, new, old)

    return back


def _replace(path: Path, new: Path, raw: bytes) -> None:
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as stream:
        stream.write(raw)
        stream.flush()
        os.fchmod(fd, _MODE)
        os.fsync(fd)
    new.replace(path)
