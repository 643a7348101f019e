# SPDX-License-Identifier: GPL-2.0-or-later
"""From the bytes of one ring sample to an Event, or to TornEvent.

The sample is struct event of bpf/guard.h; abi.RawEvent is its layout.
"""

from __future__ import annotations

import ctypes as c
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

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


class Ancestor(NamedTuple):
    """A parent of the caller, as it was at the moment of the connect()."""

    pid: int
    uid: int
    start_ns: int
    comm: str


class Event(NamedTuple):
    """One event of the ring; texts are decoded with surrogateescape.

    A tuple, as it is made for each connection and message: a frozen dataclass of so
    many fields takes twenty times as long to make.
    """

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
_WHO_AT: int = RawEvent.start_ns.offset  # the connection before, its process behind
_WHAT, _WHO = (
    struct.Struct("=" + "".join(_format(f[1]) for f in fields))
    for fields in (
        [f for f in RawEvent._fields_ if getattr(RawEvent, f[0]).offset < _WHO_AT],
        [f for f in RawEvent._fields_ if getattr(RawEvent, f[0]).offset >= _WHO_AT][
            :-1
        ],
    )
)
_LENGTHS = struct.Struct("=5H")
_LENGTHS_AT: int = RawEvent.exe_len.offset
if (_WHAT.size, _WHO_AT + _WHO.size) != (_WHO_AT, HEADER_SIZE):
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
    ) = _WHAT.unpack_from(raw)  # fmt: skip
    if abi != ABI:
        raise TornEvent(f"contract version {abi}, this is version {ABI}")
    end = HEADER_SIZE + sum(_LENGTHS.unpack_from(raw, _LENGTHS_AT))
    if end > len(raw) or ancestors > ANCESTORS:
        raise TornEvent(f"texts end at {end}, the event at {len(raw)}")
    try:
        return Event._make(
            (
                *_words(kind, verdict, mode, direction, outcome),
                rule,
                flags,
                seq,
                connection,
                time_ns,
                established_ns,
                ended_ns,
                sent,
                received,
                (unpack_address(src), src_port),
                (unpack_address(dst), dst_port),
                (unpack_address(via), via_port),
                *_who(raw[_WHO_AT:end], ancestors, flags & _CUTS),
            )
        )
    except ValueError as error_:
        raise TornEvent(str(error_)) from None


_CUTS = int(Flag.NO_EXE | Flag.EXE_CUT | Flag.CWD_CUT | Flag.CGROUP_CUT)


@lru_cache(maxsize=256)
def _words(
    kind: int, verdict: int, mode: int, direction: int, outcome: int
) -> tuple[EventKind, Verdict, Mode, Direction, Outcome]:
    return (
        EventKind(kind),
        Verdict(verdict),
        Mode(mode),
        Direction(direction),
        Outcome(outcome),
    )


@lru_cache(maxsize=256)  # one process has several connections, and each an end
def _who(raw: bytes, ancestors: int, flags: int) -> tuple[Any, ...]:
    """Give the fields of an Event from start_ns on, of as many bytes of the sample."""
    (
        start_ns, cgroup_id, netns_cookie, inode, device, generation, nlink,
        netns, pid, tid, uid, gid, real_uid, real_gid, loginuid, session, error,
        act, comm, *rest,
    ) = _WHO.unpack_from(raw)  # fmt: skip
    exe, cwd, cgroup, args, request = _texts(raw, rest[-5:])
    return (
        start_ns, cgroup_id, netns_cookie, inode, device, generation, nlink,
        netns, pid, tid, uid, gid, real_uid, real_gid, loginuid, session, error,
        _text(comm.split(b"\0", 1)[0]),
        _ancestors(tuple(rest[: 4 * ancestors])),
        "" if flags & Flag.NO_EXE else _path(exe, bool(flags & Flag.EXE_CUT)),
        _path(cwd, bool(flags & Flag.CWD_CUT)),
        _path(cgroup, bool(flags & Flag.CGROUP_CUT)),
        _args(args),
        Act(act),
        *_request(request),
    )  # fmt: skip


def _texts(raw: bytes, lengths: list[int]) -> Iterator[bytes]:
    at = _WHO.size
    for length in lengths:
        yield raw[at : at + length]
        at += length


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
