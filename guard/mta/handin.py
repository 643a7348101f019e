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
from pathlib import Path, PurePosixPath
from typing import Any

from guard.abi import Flag
from guard.errors import JournalError, TornEvent
from guard.event import Ancestor, Event, unpack_event
from guard.finding import Kind, Notice
from guard.origin import Naming, incomplete_of, request_text, unit_of
from guard.procfs import look
from guard.script import Script, is_shell, script_of
from guard.text import printable

_HEAD = struct.Struct("=4I2Q64s64s")  # struct handin up to `by`
_DROPPED, _QUEUED = 1, 2  # enum what
MOST_WAITING = 4096  # files in maildrop whose makers are kept; some 8 KB each
# daemon_directory of postconf(5), as distributions have it
_SMTPD = tuple(
    f"{folder}/smtpd" for folder in ("/usr/lib/postfix/sbin", "/usr/libexec/postfix")
)
# Where /bin/sh leads to; as daemon_directory, only root can write there.
_BIN = (PurePosixPath("/bin"), PurePosixPath("/usr/bin"))
# The path of an executable is one that somebody but root can have made up.
_NOT_REAL = Flag.EXE_CUT | Flag.NO_EXE | Flag.EXE_SET
_NOT_REAL |= Flag.FOREIGN_MOUNTS | Flag.FOREIGN_USERNS
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
    real: bool  # its executable is at that path, and not where a user put it there


@dataclass(frozen=True, slots=True)
class CallingScript:
    """What is known of the script that called; as in a Finding."""

    script: str | None = None
    script_from: str | None = None
    pool: str | None = None
    request_method: str | None = None
    request_uri: str | None = None
    incomplete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HandedIn:
    """A message that sendmail(1) or postdrop(1) was given, and by whom."""

    time_us: int  # CLOCK_REALTIME, of the queue file
    queue_id: str
    maildrop: str  # the name of its file there
    uid: int  # of who made that file
    caller: Caller  # of sendmail(1)
    chain: tuple[Caller, ...]  # postdrop first, then its parents
    script: CallingScript = CallingScript()


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


@dataclass(frozen=True, slots=True)
class _Step:
    """A process of a chain, and what PHP said of the request that it was started in."""

    caller: Caller
    request: Event | None = None  # None: of none
    incomplete: tuple[str, ...] = ()


class _Chain:
    """The processes that made one file, as they come in."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
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
        self.steps.append(_step(sample))
        self._parent = event.ancestors[0] if event.ancestors else None

    def close(self) -> None:
        """Add the parent of the last one, which has ended since."""
        if (parent := self._parent) and parent.pid > 1:
            self.steps.append(
                _Step(_gone(parent.pid, parent.uid, parent.comm)),
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
        if chain is None or not chain.steps:
            return None
        chain.close()
        return _notice(sample, tuple(chain.steps), self._naming)

    def _drop(self, sample: Dropped) -> None:
        if sample.step == 0:
            self._made[sample.key] = _Chain()
            self._made.move_to_end(sample.key)
            if len(self._made) > MOST_WAITING:
                self._made.popitem(last=False)
                self.forgotten += 1
        if chain := self._made.get(sample.key):
            chain.add(sample)


def _step(sample: Dropped) -> _Step:
    event = sample.event
    if not sample.whole:
        return _from_proc(event)
    caller = Caller(
        pid=event.pid,
        uid=event.uid,
        comm=event.comm,
        exe=event.exe or None,
        args=event.args,
        cwd=event.cwd,
        unit=unit_of(event.cgroup),
        known="kernel",
        real=not event.flags & _NOT_REAL,
    )
    has_request = event.script or event.method or event.uri
    return _Step(caller, event if has_request else None, incomplete_of(event.flags))


def _gone(pid: int, uid: int, comm: str) -> Caller:
    return Caller(pid, uid, comm, None, (), None, None, "", False)


def _from_proc(event: Event) -> _Step:
    """Ask /proc of a process that was started before guardd, or only forked."""
    gone = _gone(event.pid, event.uid, event.comm)
    if _ticks(event.pid) != event.start_ns // _TICK_NS:
        return _Step(gone)
    seen = look(event.pid)
    if seen is None or _ticks(event.pid) != event.start_ns // _TICK_NS:
        return _Step(gone)
    caller = replace(
        gone,
        exe=seen.exe,
        args=seen.args,
        cwd=seen.cwd,
        unit=unit_of(seen.cgroup),
        known="proc",
        real=seen.executable is not None and seen.executable.trusted,
    )
    return _Step(caller, incomplete=seen.incomplete)


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
    postdrop = chain[0].exe if chain[0].real else None
    beside = str(Path(postdrop or "/usr/sbin/postdrop").with_name("sendmail"))
    args: tuple[str, ...] = ()
    for caller in chain[1:]:
        exe = (caller.real and caller.exe) or ""
        # `sendmail -bs` goes on as that
        if exe == beside or (exe in _SMTPD and "-S" in caller.args):
            args = caller.args
        elif not args or not _only_runs(exe, caller.args, args):
            return caller
    return chain[-1]


def _only_runs(exe: str, shell: tuple[str, ...], args: tuple[str, ...]) -> bool:
    """Tell whether a process is `sh -c COMMAND`, and the command no more than args.

    Arguments are what a process was given by who started it, whatever it is: one that
    is no shell would be passed over in the shell's name.
    """
    if PurePosixPath(exe).parent not in _BIN or not is_shell(exe, shell):
        return False
    if len(shell) not in (3, 4) or "-c" not in shell[1:-1]:
        return False
    with contextlib.suppress(ValueError):
        return tuple(shlex.split(shell[-1])) == args
    return False


def _script_of(steps: tuple[_Step, ...], by: Caller) -> CallingScript:
    """Tell which script called, and for which request of PHP's.

    That of the process next to postdrop which was started in one: as it was at the
    call, whatever the caller is at by now. So is the directory of what it started.
    """
    place = [step.caller for step in steps].index(by)
    request = next((s.request for s in steps[: place + 1] if s.request), None)
    if request is None:
        return CallingScript(*_own_script(steps, place, ""))
    return CallingScript(
        *_own_script(steps, place, request.script),
        request_text(request.method),
        request_text(request.uri),
        ("request-cut",) if request.flags & Flag.REQUEST_CUT else (),
    )


def _own_script(steps: tuple[_Step, ...], place: int, request: str) -> Script:
    """Give the script of a step; of a shell that has none that of who started it."""
    below = steps[place - 1].caller if place else None
    by, lacks = steps[place].caller, steps[place].incomplete
    cwd = by.cwd
    if below and (by.known, below.known) == ("proc", "kernel"):
        cwd = below.cwd
    found = script_of(by.exe, by.args, cwd or "/", by.unit, lacks, request)
    is_inline = found == Script() and by.exe and is_shell(by.exe, by.args)
    if is_inline and place + 1 < len(steps):
        return _own_script(steps, place + 1, "")
    return found


# ---- the finding


def _notice(queued: Queued, steps: tuple[_Step, ...], naming: Naming) -> Notice:
    chain = tuple(step.caller for step in steps)
    return _notice_of(queued, chain, _script_of(steps, caller_of(chain)), naming)


def _notice_of(
    queued: Queued, chain: tuple[Caller, ...], script: CallingScript, naming: Naming
) -> Notice:
    by = caller_of(chain)
    to_real = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    user = naming.user(by.uid)
    program = " ".join(by.args) or by.exe or by.comm
    text = f"message {queued.queue_id} handed in by sendmail(1): pid {by.pid}"
    text += f" ({by.comm}, {user or f'uid {by.uid}'}); {program} in {by.cwd or '?'}"
    if script.script:
        text += f", script {script.script}"
    if script.request_uri:
        text += f", {script.request_method or 'request'} {script.request_uri}"
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
        *((name.upper(), getattr(script, name)) for name in _SCRIPT_FIELDS),
        ("INCOMPLETE", ",".join(script.incomplete) or None),
    ):
        if value is not None:
            fields[name] = value
    text += f", unit {by.unit}" if by.unit else ""
    time_us = (queued.time_ns + to_real) // 1000
    # newlines too, which a notice may have: here a process can have written them
    return Notice(Kind.HANDED_IN, time_us, printable(text), 6, fields)


_SCRIPT_FIELDS = ("script", "script_from", "pool", "request_method", "request_uri")


def handed_in(notice: Notice) -> HandedIn:
    """Read the finding back. Raises JournalError for what guardd did not write."""
    fields = notice.fields
    try:
        chain = tuple(_read_caller(one) for one in json.loads(fields["CHAIN"]))
        script: dict[str, Any] = {n: fields.get(n.upper()) for n in _SCRIPT_FIELDS}
        lacks = fields.get("INCOMPLETE", "")
        script["incomplete"] = tuple(filter(None, lacks.split(",")))
        return HandedIn(
            notice.time_us,
            fields["QUEUE_ID"],
            fields["MAILDROP"],
            int(fields["HANDED_IN_BY"]),
            caller_of(chain),
            chain,
            CallingScript(**script),
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
        real=given["real"] is True,
    )
    texts = (caller.comm, caller.known, *caller.args)
    maybe = (caller.exe, caller.cwd, caller.unit)
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(text, str | None) for text in maybe
    ):
        raise ValueError("no text")
    return caller
