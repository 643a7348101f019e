# SPDX-License-Identifier: GPL-2.0-or-later
"""The finding that somebody reached for the guard itself, as the LSM saw it."""

from __future__ import annotations

from guard.abi import Act, EventKind, Verdict
from guard.event import Event
from guard.finding import Finding, Kind, Notice
from guard.text import printable

_WHAT = {
    Act.NONE: "nothing",
    Act.MAP: "maps",
    Act.LINK: "links",
    Act.PIN: "pins",
    Act.UMOUNT: "mount",
}
_ACTS = {
    Act.NONE: "nothing",
    Act.MAP: "a write to a map",
    Act.LINK: "a link detached or changed",
    Act.PIN: "a pin removed or renamed",
    Act.UMOUNT: "the pins unmounted",
}


def touched_notice(event: Event, found: Finding) -> Notice:
    """Make the finding of an EVENT_TAMPER or EVENT_KEEPER; found names its process."""
    user = found.user or f"uid {found.uid}"
    # a notice may have newlines: of these none, whatever a process is called
    who = f"pid {found.pid} ({found.comm}, {user}), {found.exe or 'no executable'}"
    if found.unit:
        who += f", unit {found.unit}"
    arguments = " ".join(found.args)
    who = printable(f"{who}; {arguments}")
    fields = {
        "PID": str(found.pid),
        "UID": str(found.uid),
        "COMM": found.comm,
        "EXE": found.exe or "",
        "CWD": found.cwd,
        "CGROUP": found.cgroup,
        "ARGS": arguments,
        "PARENTS": ", ".join(f"{p.comm} ({p.pid})" for p in found.ancestors),
    }
    if found.loginuid is not None:
        fields["LOGINUID"] = str(found.loginuid)
    if event.kind is EventKind.KEEPER:
        text = f"may change the guard from now on: {who}"
        return Notice(Kind.ENROLLED, found.time_us, text, 5, fields)
    denied = event.verdict is Verdict.DENY
    how = "refused" if denied else "NOT REFUSED"
    text = f"{_ACTS[event.act]}, {how}: {who}"
    fields |= {
        "WHAT": _WHAT[event.act],
        "STATE": "refused" if denied else "seen",
        "REPAIRED": str(int(denied)),
        "DETAIL": text,
    }
    return Notice(Kind.TAMPERED, found.time_us, text, 3 if denied else 2, fields)
