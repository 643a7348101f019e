# SPDX-License-Identifier: GPL-2.0-or-later
"""mail.toml changed by a verb: one key, with all else and the comments as they are."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import tomlkit
import tomlkit.exceptions
from tomlkit import TOMLDocument
from tomlkit.items import AbstractTable, Comment, Table, Whitespace

from guard.errors import MailError
from guard.mail.table import MailTable, load, parse
from guard.mail.transaction import Target, make_folder

Edit = Callable[[TOMLDocument], None]
_MODE = 0o644  # of a new one: no secret stands in it
_HOST = ("host", "preset")
_CHECKED = ("verify", "secure")


def smart_host_on(values: Mapping[str, object]) -> Edit:
    """Have [smart_host] hold these values and no others, but for its pin.

    Comments stay, but for those at the end of a line that goes.

    Who gives a new password means to leave to the guard what it may let pass, and of
    the same host how its certificate is looked at and who it is told sends.
    """

    def edit(document: TOMLDocument) -> None:
        there = document.get("smart_host")
        before = document.unwrap().get("smart_host")
        kept = _kept(before, values) if isinstance(before, dict) else {}
        wanted = {**kept, **values}
        if isinstance(there, AbstractTable) and isinstance(before, dict):
            _set_to(there, before, wanted)
            return
        if there is not None:
            del document["smart_host"]
        section = tomlkit.table()
        section.update(wanted)
        document["smart_host"] = section

    return edit


def _set_to(
    section: AbstractTable, before: Mapping[str, object], wanted: Mapping[str, object]
) -> None:
    """Change a section in its place: what stays keeps its line and its comment."""
    tail = _cut_tail(section) if isinstance(section, Table) else ""
    for key in before:
        if key not in wanted:
            del section[key]
    for key, value in wanted.items():
        if key not in before or before[key] != value:
            section[key] = value
    if tail:
        section.value.body.append((None, tomlkit.ws(tail)))


def _kept(
    before: Mapping[str, object], values: Mapping[str, object]
) -> dict[str, object]:
    kept: dict[str, object] = {"pin": True} if before.get("pin") else {}
    if all(before.get(key) == values.get(key) for key in _HOST):
        if "user" in values and before.get("tls") in _CHECKED:
            kept["tls"] = before["tls"]
        for key in ("ca_file", "authenticated_header"):
            if key in before:
                kept[key] = before[key]
    return kept


def _cut_tail(section: Table) -> str:
    """Take off what stands behind a section and a blank line, and give it.

    Comments there are the next one's, though TOML has them in this.
    """
    body = section.value.body
    start = len(body)
    while start and isinstance(body[start - 1][1], Comment | Whitespace):
        start -= 1
    while start < len(body) and isinstance(body[start][1], Comment):
        start += 1  # of this section's own
    tail = "".join(item.as_string() for _, item in body[start:])
    del body[start:]
    return tail


def smart_host_off(document: TOMLDocument) -> None:
    """Take [smart_host] out."""
    there = document.get("smart_host")
    tail = _cut_tail(there) if isinstance(there, Table) else ""
    if there is not None and tail:
        section = next(n for n, (_, x) in enumerate(document.body) if x is there)
        del document["smart_host"]
        document.body[section] = (None, tomlkit.ws(tail))
    elif there is not None:
        del document["smart_host"]


def transport(domain: str, value: str | None) -> Edit:
    """Give a domain a transport, or with None take its line out."""

    def edit(document: TOMLDocument) -> None:
        section = document.get("transports")
        if section is None:
            if value is None:
                return
            section = document["transports"] = tomlkit.table()
        if not isinstance(section, AbstractTable):
            raise ValueError("transports stands in several places")
        # as the admin wrote it: Yahoo.COM is yahoo.com
        there = [str(key) for key in section if str(key).lower() == domain]
        if value is not None:
            tail = _cut_tail(section) if isinstance(section, Table) else ""
            section[there[0] if there else domain] = value
            if tail:
                section.value.body.append((None, tomlkit.ws(tail)))
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
        there = path.exists()
        document = tomlkit.parse(path.read_text("utf-8")) if there else TOMLDocument()
    except (OSError, tomlkit.exceptions.ParseError) as error:
        raise MailError(f"{path}: {error}") from None
    try:
        edit(document)
        text = tomlkit.dumps(document)
        if (
            tomllib.loads(text) != document.unwrap()
        ):  # of keys with dots it makes others
            raise ValueError("it has keys with dots")
    except ValueError as error:
        raise MailError(
            f"{path}: cannot be edited as it is written: {error}",
            hint="write its sections as [smart_host] and [transports]",
        ) from None
    return parse(text, str(path)), text


def written(path: Path, text: str) -> list[Target]:
    """Give how mail.toml is replaced; nothing where that is its text already."""
    raw, path = text.encode(), path.absolute()
    if path.exists() and path.read_bytes() == raw:
        return []
    make_folder(path.parent, 0o755)
    return [Target(path, raw, _MODE, keep_mode=True)]


def with_password(table: MailTable, text: str) -> tuple[MailTable, Target]:
    """Give the table with what its password file is to hold, and that file."""
    host = table.smart_host
    assert host and host.password and host.password.file
    password = replace(host.password, given=text)
    table = replace(table, smart_host=replace(host, password=password))
    return table, Target(host.password.file, f"{text}\n".encode(), 0o600)
