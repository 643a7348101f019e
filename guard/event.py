# SPDX-License-Identifier: GPL-2.0-or-later
"""From the bytes of one ring sample to an Event, or to TornEvent.

The sample is struct event of bpf/guard.h; abi.RawEvent is its layout.
"""

from __future__ import annotations

import ctypes as c
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from guard.abi import (
    ABI,
    ANCESTORS,
    Act,
    Direction,
    EventKind,
    Flag,
    Mode,
    Outcome,
    RawEvent,
    Verdict,
    unpack_address,
)
from guard.errors import TornEvent


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A parent of the caller, as it was at the moment of the connect()."""

    pid: int
    uid: int
    start_ns: int
    comm: str


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the ring; texts are decoded with surrogateescape."""

    kind: EventKind
    verdict: Verdict
    mode: Mode
    direction: Direction
    outcome: Outcome
    rule: int
    flags: int
    seq: int
    connection: int
    time_ns: int
    established_ns: int
    ended_ns: int
    bytes_sent: int
    bytes_received: int
    src: tuple[str, int]
    dst: tuple[str, int]
    via: tuple[str, int]
    start_ns: int
    cgroup_id: int
    netns_cookie: int
    exe_inode: int
    exe_device: int
    exe_generation: int
    exe_nlink: int
    netns: int
    pid: int
    tid: int
    uid: int
    gid: int
    real_uid: int
    real_gid: int
    loginuid: int
    session: int
    error: int
    comm: str
    ancestors: tuple[Ancestor, ...]
    exe: str
    cwd: str
    cgroup: str
    args: tuple[str, ...]
    act: Act = Act.NONE
    # of the request that PHP is at; "": none is known, or it has none
    script: str = ""
    uri: str = ""
    method: str = ""


def _format(kind: Any) -> str:
    """Give the struct-module format of a ctypes type that has no hidden pad."""
    codes = {c.c_uint8: "B", c.c_uint16: "H", c.c_uint32: "I", c.c_uint64: "Q"}
    if kind in codes:
        return str(codes[kind])
    if issubclass(kind, c.Array):
        if kind._type_ in (c.c_char, c.c_uint8):
            return f"{int(kind._length_)}s"
        return _format(kind._type_) * int(kind._length_)
    return "".join(_format(field[1]) for field in kind._fields_)


HEADER_SIZE: int = RawEvent.text.offset
_HEADER = struct.Struct("=" + "".join(_format(f[1]) for f in RawEvent._fields_[:-1]))
if _HEADER.size != HEADER_SIZE:
    raise AssertionError("struct event has hidden padding: make it explicit")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


@lru_cache(maxsize=1024)
def _path(raw: bytes, cut: bool) -> str:
    """Join components that come leaf first; a cut path has lost its front."""
    parts = raw[:-1].split(b"\0") if raw else []
    parts.reverse()
    path = "/".join(map(_text, parts))
    return f".../{path}" if cut else f"/{path}"


def unpack_event(raw: bytes) -> Event:
    """Turn the bytes of one event into an Event.

    raw is one sample of the ring (struct event up to the used text). Raises
    TornEvent when the bytes cannot have come from our kernel programs.
    """
    if len(raw) < HEADER_SIZE:
        raise TornEvent(f"{len(raw)} bytes, an event has at least {HEADER_SIZE}")
    (
        abi, kind, verdict, mode, direction, outcome, ancestors, rule, flags,
        seq, connection, time_ns, established_ns, ended_ns, sent, received,
        src, src_port, _, _, _, dst, dst_port, _, _, _, via, via_port, _, _, _,
        start_ns, cgroup_id, netns_cookie, inode, device, generation, nlink,
        netns, pid, tid, uid, gid, real_uid, real_gid, loginuid, session, error,
        act, comm, *rest,
    ) = _HEADER.unpack_from(raw)  # fmt: skip
    exe_len, cwd_len, cgroup_len, args_len, request_len = rest[-5:]
    if abi != ABI:
        raise TornEvent(f"contract version {abi}, this is version {ABI}")
    exe_end = HEADER_SIZE + exe_len
    cwd_end = exe_end + cwd_len
    cgroup_end = cwd_end + cgroup_len
    args_end = cgroup_end + args_len
    request_end = args_end + request_len
    if request_end > len(raw) or ancestors > ANCESTORS:
        raise TornEvent(f"texts end at {request_end}, the event at {len(raw)}")
    try:
        script, uri, method = _request(raw[args_end:request_end])
        return Event(
            kind=EventKind(kind),
            verdict=Verdict(verdict),
            mode=Mode(mode),
            direction=Direction(direction),
            outcome=Outcome(outcome),
            rule=rule,
            flags=flags,
            seq=seq,
            connection=connection,
            time_ns=time_ns,
            established_ns=established_ns,
            ended_ns=ended_ns,
            bytes_sent=sent,
            bytes_received=received,
            src=(unpack_address(src), src_port),
            dst=(unpack_address(dst), dst_port),
            via=(unpack_address(via), via_port),
            start_ns=start_ns,
            cgroup_id=cgroup_id,
            netns_cookie=netns_cookie,
            exe_inode=inode,
            exe_device=device,
            exe_generation=generation,
            exe_nlink=nlink,
            netns=netns,
            pid=pid,
            tid=tid,
            uid=uid,
            gid=gid,
            real_uid=real_uid,
            real_gid=real_gid,
            loginuid=loginuid,
            session=session,
            error=error,
            comm=_text(comm.split(b"\0", 1)[0]),
            ancestors=_ancestors(tuple(rest[: 4 * ancestors])),
            exe=""
            if flags & Flag.NO_EXE
            else _path(raw[HEADER_SIZE:exe_end], bool(flags & Flag.EXE_CUT)),
            cwd=_path(raw[exe_end:cwd_end], bool(flags & Flag.CWD_CUT)),
            cgroup=_path(raw[cwd_end:cgroup_end], bool(flags & Flag.CGROUP_CUT)),
            args=_args(raw[cgroup_end:args_end]),
            act=Act(act),
            script=script,
            uri=uri,
            method=method,
        )
    except ValueError as error_:
        raise TornEvent(str(error_)) from None


@lru_cache(maxsize=1024)
def _request(raw: bytes) -> tuple[str, str, str]:
    """Split what our program read of a request: three texts, a NUL after each."""
    if not raw:
        return "", "", ""
    script, uri, method, rest = map(_text, raw.split(b"\0"))
    if rest:
        raise ValueError("a request that has no end")
    return script, uri, method


@lru_cache(maxsize=256)
def _ancestors(flat: tuple[Any, ...]) -> tuple[Ancestor, ...]:
    """Group start, pid, uid, comm of each parent, nearest first."""
    return tuple(
        Ancestor(pid, uid, start_ns, _text(comm.split(b"\0", 1)[0]))
        for start_ns, pid, uid, comm in zip(*[iter(flat)] * 4, strict=True)
    )


def _args(raw: bytes) -> tuple[str, ...]:
    """Split what stood between mm->arg_start and arg_end at its NULs."""
    if not raw:
        return ()
    return tuple(map(_text, (raw[:-1] if raw.endswith(b"\0") else raw).split(b"\0")))
