# SPDX-License-Identifier: GPL-2.0-or-later
"""Who called sendmail(1): bytes of the kernel -> a finding, and back.

The samples are struct handin of bpf/handin.bpf.c, where it says how a queue id leads
to a file in maildrop, and that file to the processes that made it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import struct
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from guard.errors import JournalError, TornEvent
from guard.event import Ancestor, Event, unpack_event
from guard.finding import Kind, Notice
from guard.origin import Naming, unit_of
from guard.procfs import look

_HEAD = struct.Struct("=4I2Q64s64s")  # struct handin up to `by`
_DROPPED, _QUEUED = 1, 2  # enum what
MOST_WAITING = 4096  # files in maildrop whose makers are kept; some 8 KB each
# daemon_directory of postconf(5), as distributions have it
_SMTPD = tuple(
    f"{folder}/smtpd" for folder in ("/usr/lib/postfix/sbin", "/usr/libexec/postfix")
)
_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")

Key = tuple[int, int, bytes]  # device, inode and name of a file in maildrop


@dataclass(frozen=True, slots=True)
class Caller:
    """One of the processes between a program and the mail queue."""

    pid: int
    uid: int  # effective
    comm: str
    exe: str | None  # None: not known
    args: tuple[str, ...]
    cwd: str | None
    unit: str | None
    known: str  # "kernel": as it was started; "proc": as it was soon after; "": gone


@dataclass(frozen=True, slots=True)
class HandedIn:
    """A message that sendmail(1) or postdrop(1) was given, and by whom."""

    time_us: int  # CLOCK_REALTIME, of the queue file
    queue_id: str
    maildrop: str  # the name of its file there
    uid: int  # of who made that file
    caller: Caller  # of sendmail(1)
    chain: tuple[Caller, ...]  # postdrop first, then its parents


@dataclass(frozen=True, slots=True)
class Dropped:
    """A process of the chain that made a file in maildrop."""

    key: Key
    step: int  # 0 is postdrop itself
    whole: bool  # the kernel saw it being started
    event: Event


@dataclass(frozen=True, slots=True)
class Queued:
    """A queue file, and the file in maildrop that it is made of."""

    key: Key
    queue_id: str
    time_ns: int  # CLOCK_BOOTTIME


def read_sample(raw: bytes) -> Dropped | Queued:
    """Read one sample. Raises TornEvent for what our program cannot have sent."""
    if len(raw) < _HEAD.size:
        raise TornEvent(f"{len(raw)} bytes of a message handed in")
    what, step, whole, device, inode, at, name, queue_id = _HEAD.unpack_from(raw)
    key = device, inode, name.partition(b"\0")[0]
    if what == _DROPPED:
        return Dropped(key, step, bool(whole), unpack_event(raw[_HEAD.size :]))
    if what != _QUEUED:
        raise TornEvent(f"no such sample: {what}")
    text = queue_id.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return Queued(key, text, at)


class _Chain:
    """The processes that made one file, as they come in."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []
        self._steps = 0
        self._parent: Ancestor | None = None  # of the last one, when it was started

    def add(self, sample: Dropped) -> None:
        """Take the next step; what came after a lost one is not known."""
        if sample.step != self._steps:
            return
        self._steps += 1
        event = sample.event
        if self._parent and (self._parent.pid, self._parent.start_ns) != (
            event.pid,
            event.start_ns,
        ):
            self.close()
        self.callers.append(_caller(sample))
        self._parent = event.ancestors[0] if event.ancestors else None

    def close(self) -> None:
        """Add the parent of the last one, which has ended since."""
        if (parent := self._parent) and parent.pid > 1:
            self.callers.append(
                Caller(parent.pid, parent.uid, parent.comm, None, (), None, None, "")
            )
        self._parent = None


class Joiner:
    """Keeps who made the files in maildrop until they are in the queue."""

    def __init__(self, naming: Naming) -> None:
        """Begin with no file."""
        self._naming = naming
        self._made: OrderedDict[Key, _Chain] = OrderedDict()
        self.forgotten = 0  # files that waited with too many others

    def take(self, sample: Dropped | Queued) -> Notice | None:
        """Take one sample; gives the finding when it completes one."""
        if isinstance(sample, Dropped):
            self._drop(sample)
            return None
        chain = self._made.pop(sample.key, None)
        if chain is None or not chain.callers:
            return None
        chain.close()
        return _notice(sample, tuple(chain.callers), self._naming)

    def _drop(self, sample: Dropped) -> None:
        if sample.step == 0:
            self._made[sample.key] = _Chain()
            self._made.move_to_end(sample.key)
            if len(self._made) > MOST_WAITING:
                self._made.popitem(last=False)
                self.forgotten += 1
        if chain := self._made.get(sample.key):
            chain.add(sample)


def _caller(sample: Dropped) -> Caller:
    event = sample.event
    caller = Caller(
        pid=event.pid,
        uid=event.uid,
        comm=event.comm,
        exe=event.exe or None,
        args=event.args,
        cwd=event.cwd,
        unit=unit_of(event.cgroup),
        known="kernel",
    )
    return caller if sample.whole else _from_proc(caller, event.start_ns)


def _from_proc(caller: Caller, start_ns: int) -> Caller:
    """Ask /proc of a process that was started before guardd, or only forked."""
    gone = replace(caller, exe=None, args=(), cwd=None, unit=None, known="")
    if _ticks(caller.pid) != start_ns // _TICK_NS:
        return gone
    seen = look(caller.pid)
    if seen is None or _ticks(caller.pid) != start_ns // _TICK_NS:
        return gone
    return replace(
        gone,
        exe=seen.exe,
        args=seen.args,
        cwd=seen.cwd,
        unit=unit_of(seen.cgroup),
        known="proc",
    )


def _ticks(pid: int) -> int | None:
    """Give when a process was started, as proc_pid_stat(5) has it; None: gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        raw = Path(f"/proc/{pid}/stat").read_bytes()
        return int(raw.rpartition(b")")[2].split()[19])
    return None


def caller_of(chain: tuple[Caller, ...]) -> Caller:
    """Give the process that called sendmail(1), or postdrop(1) itself.

    Postfix's own programs are known by where they stand, where only root can put
    one. A shell that popen(3) or system(3) started for this one command is nobody.
    """
    beside = str(Path(chain[0].exe or "/usr/sbin/postdrop").with_name("sendmail"))
    args: tuple[str, ...] = ()
    for caller in chain[1:]:
        exe = caller.exe or ""
        # `sendmail -bs` goes on as that
        if exe == beside or (exe in _SMTPD and "-S" in caller.args):
            args = caller.args
        elif not args or not _only_runs(caller, args):
            return caller
    return chain[-1]


def _only_runs(shell: Caller, args: tuple[str, ...]) -> bool:
    """Tell whether a process is `sh -c COMMAND`, and the command no more than args."""
    if len(shell.args) not in (3, 4) or "-c" not in shell.args[1:-1]:
        return False
    with contextlib.suppress(ValueError):
        return tuple(shlex.split(shell.args[-1])) == args
    return False


# ---- the finding


def _notice(queued: Queued, chain: tuple[Caller, ...], naming: Naming) -> Notice:
    by = caller_of(chain)
    to_real = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    user = naming.user(by.uid)
    program = " ".join(by.args) or by.exe or by.comm
    text = f"message {queued.queue_id} handed in by sendmail(1): pid {by.pid}"
    text += f" ({by.comm}, {user or f'uid {by.uid}'}); {program} in {by.cwd or '?'}"
    fields = {
        "QUEUE_ID": queued.queue_id,
        "MAILDROP": queued.key[2].decode("utf-8", "surrogateescape"),
        "PID": str(by.pid),
        "UID": str(by.uid),
        "COMM": by.comm,
        "HANDED_IN_BY": str(chain[0].uid),
        "ARGS": json.dumps(by.args),
        "CHAIN": json.dumps([asdict(one) for one in chain]),
    }
    for name, value in (
        ("USER", user),
        ("EXE", by.exe),
        ("CWD", by.cwd),
        ("UNIT", by.unit),
    ):
        if value is not None:
            fields[name] = value
    text += f", unit {by.unit}" if by.unit else ""
    time_us = (queued.time_ns + to_real) // 1000
    return Notice(Kind.HANDED_IN, time_us, text, 6, fields)


def handed_in(notice: Notice) -> HandedIn:
    """Read the finding back. Raises JournalError for what guardd did not write."""
    fields = notice.fields
    try:
        chain = tuple(_read_caller(one) for one in json.loads(fields["CHAIN"]))
        return HandedIn(
            notice.time_us,
            fields["QUEUE_ID"],
            fields["MAILDROP"],
            int(fields["HANDED_IN_BY"]),
            caller_of(chain),
            chain,
        )
    except (KeyError, ValueError, TypeError, IndexError, RecursionError):
        raise JournalError("a torn entry: of a message handed in") from None


def _read_caller(given: dict[str, Any]) -> Caller:
    caller = Caller(
        pid=int(given["pid"]),
        uid=int(given["uid"]),
        comm=given["comm"],
        exe=given["exe"],
        args=tuple(given["args"]),
        cwd=given["cwd"],
        unit=given["unit"],
        known=given["known"],
    )
    texts = (caller.comm, caller.known, *caller.args)
    maybe = (caller.exe, caller.cwd, caller.unit)
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(text, str | None) for text in maybe
    ):
        raise ValueError("no text")
    return caller
