# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd's part in following the smart host: what it asks for, keeps and tells.

names.py looks the name up, in a process of its own; policy/smarthost.py reads what
it found whenever a policy is made anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guard.finding import Kind, Notice
from guard.policy import Known, Policy, SmartHost
from guard.policy.model import Address
from guard.policy.smarthost import (
    ASKED,
    LOOKED,
    address_of,
    kept_file,
    question,
    read_known,
    smart_host_of,
)

# The process that looks it up says so every 10 s; a round of questions may take 30 s.
_SILENT_SECONDS = 120.0
_START = "systemctl start smtp-guard-names, or guardd --resolve by hand"
# An answer that changes all the time: five findings at once, then one in this time.
_TELL_SECONDS, _AT_ONCE = 10.0, 5
_SHOWN = 8  # addresses in a message


def silent_for() -> float | None:
    """Give for how many seconds nobody has looked it up; None: never yet."""
    try:
        return time.time() - LOOKED.stat().st_mtime
    except OSError:
        return None


def is_followed(host: SmartHost) -> bool:
    """Tell whether somebody has to look it up: it is no address."""
    return address_of(host.host) is None


class Follower:
    """The smart host of the policy in force."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self._host: SmartHost | None = None
        self._known: Known | None = None  # None: no rule asks for a smart host
        self._told: tuple[SmartHost | None, Known | None] = None, None
        self._tell_at = 0.0
        self._silent = False
        self._since = time.monotonic()
        self.trouble = ""  # "" when all is well

    def put(self, policy: Policy) -> list[Notice]:
        """A policy was put in force: ask for its smart host, and tell what is new."""
        if self._host != policy.smart_host:
            self._since = time.monotonic()
            self._tell_at = 0.0  # the admin's doing
        self._host, self._known = policy.smart_host, policy.known
        self._ask()
        self._keep()
        return self._news()

    def look(self) -> list[Notice]:
        """Each second: what was not told yet, and does still somebody look it up?"""
        notices, host, known = self._news(), self._host, self._known
        self.trouble = known.error if known else ""
        if host is None or known is None or not is_followed(host):
            self._silent = False
            return notices
        ago = silent_for()
        waited = time.monotonic() - self._since
        silent = (ago is None or ago > _SILENT_SECONDS) and waited > _SILENT_SECONDS
        if silent:
            self.trouble = f"nobody looks up {host}: {_START}"
        if silent != self._silent:
            self._silent = silent
            text = self.trouble if silent else f"smart host {host} is looked up again"
            notices.append(_made(text, 4 if silent else 5, host, known.addresses))
        return notices

    def _news(self) -> list[Notice]:
        """Tell how it is, if new; an answer that changes all the time, seldom."""
        now = time.monotonic()
        ahead = (_AT_ONCE - 1) * _TELL_SECONDS
        if self._told == (self._host, self._known) or now < self._tell_at - ahead:
            return []
        was_host, was = self._told
        self._told = self._host, self._known
        if self._known is None:
            return []
        self._tell_at = max(self._tell_at, now) + _TELL_SECONDS
        before = was.addresses if was and self._host == was_host else ()
        return [_notice(self._host, self._known, before)]

    def record(self) -> dict[str, Any] | None:
        """Give what other processes may know, for the guard's record."""
        if self._host is None:
            return None
        return {"name": str(self._host), "source": self._host.source}

    def _ask(self) -> None:
        """Leave the name for smtp-guard-names.service, or take it away.

        With what is known, for one that is started anew and would know nothing.
        """
        try:
            if self._host is None or not is_followed(self._host):
                ASKED.unlink(missing_ok=True)
            elif _content(ASKED) != (text := question(self._host, self._known)):
                ASKED.parent.mkdir(mode=0o755, exist_ok=True)
                _write(ASKED, text, 0o644)
        except OSError as error:
            sys.stderr.write(f"guardd: {ASKED}: {error.strerror}\n")

    def _keep(self) -> None:
        """Keep the addresses for a boot, where the units name a folder for that."""
        if not os.environ.get("STATE_DIRECTORY") or not (self._host and self._known):
            return
        addresses = list(map(str, self._known.addresses))
        text = json.dumps({"name": str(self._host), "addresses": addresses})
        with contextlib.suppress(OSError):  # told of by lastpolicy.keep()
            if addresses and _content(kept_file()) != text:
                _write(kept_file(), text, 0o600)


def describe(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Fill up a Follower.record() with what is known now; None: no smart host.

    checked_s: seconds since somebody looked the name up, None if nobody has or it is
    an address.
    """
    try:
        host = smart_host_of(str((record or {})["name"]))
    except (KeyError, ValueError):
        return None
    known, ago = read_known(host), silent_for() if is_followed(host) else None
    trouble = known.error
    if is_followed(host) and (ago is None or ago > _SILENT_SECONDS):
        trouble = f"nobody looks it up: {_START}"
    return {
        **(record or {}),
        "port": host.port,
        "addresses": list(map(str, known.addresses)),
        "checked_s": None if ago is None else round(ago, 1),
        "trouble": trouble,
    }


def in_words(about: dict[str, Any]) -> str:
    """Say in a line what describe() gave."""
    shown = _some(about["addresses"]) or "no address is known"
    trouble = f"; {about['trouble']}" if about["trouble"] else ""
    return f"{about['name']}: {shown}{trouble}"


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeError):
        return None


def _write(path: Path, text: str, mode: int) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    # x: root may do this in a folder of guardd's user, who could put a link there
    with new.open("x") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(text)
    new.rename(path)


def _notice(
    host: SmartHost | None, known: Known, before: tuple[Address, ...]
) -> Notice:
    """Make the finding of the addresses that are lawful now, and what is wrong."""
    if host is None:
        text = 'there is no smart host: rules with to = "smart-host" match nobody'
        return _made(f"{text} (guardctl policy check)", 4, None, ())
    here = set(known.addresses)
    text = f"smart host {host}: {_some(known.addresses) or 'NO ADDRESS is known'}"
    if added := [a for a in known.addresses if a not in before]:
        text += f"; new: {_some(added)}" if before else ""
    if gone := [a for a in before if a not in here]:
        text += f"; no longer: {_some(gone)}"
    if known.error:
        text += f"; {known.error}"
    return _made(text, 4 if known.error or not here else 5, host, known.addresses)


def _made(
    text: str, priority: int, host: SmartHost | None, addresses: tuple[Address, ...]
) -> Notice:
    return Notice(
        Kind.SMART_HOST,
        time.time_ns() // 1000,
        text[:2000],
        priority,
        {"SMART_HOST": str(host or ""), "ADDRESSES": " ".join(map(str, addresses))},
    )


def _some(addresses: Iterable[object]) -> str:
    shown = list(map(str, addresses))
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
