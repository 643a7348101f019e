# SPDX-License-Identifier: GPL-2.0-or-later
"""bpf/guard.h in Python: the bytes both sides share, and what they mean.

The ctypes structures are compared with the compiled object's BTF, at load and by
tests/test_abi.py. Units as in the header: host byte order, addresses 16 bytes
in network order with IPv4 mapped, times CLOCK_BOOTTIME nanoseconds.
"""

from __future__ import annotations

import ctypes as c
import enum
import ipaddress
from functools import lru_cache

ABI = 4
MAX_ROWS = 512
MASK_WORDS = 8
UNIT_DEPTH = 12
UNIT_TAILS = 4
NAME_LEN = 64
COMM_LEN = 16
ANCESTORS = 8
MANY_BURSTS = 20
FOLD_MANY = 0x80
COMPONENT_LEN = 256
EXE_LEN = 512
CWD_LEN = 640
CGROUP_LEN = 384
ARGS_LEN = 896
SCRIPT_LEN = 384
URI_LEN = 192
METHOD_LEN = 16
REQUEST_LEN = SCRIPT_LEN + URI_LEN + METHOD_LEN
TEXT_LEN = EXE_LEN + CWD_LEN + CGROUP_LEN + ARGS_LEN + REQUEST_LEN
NO_RULE = 0xFFFFFFFF
UNSET = 0xFFFFFFFF  # loginuid and session of a process nobody logged in for


class Verdict(enum.IntEnum):
    """What a rule says."""

    DENY = 0
    ALLOW = 1
    REDIRECT = 2


class Mode(enum.IntEnum):
    """Whether a verdict is carried out."""

    ENFORCE = 0
    OBSERVE = 1


class Direction(enum.IntEnum):
    """Whether the destination is an address of this host."""

    OUTBOUND = 0
    LOCAL = 1


class EventKind(enum.IntEnum):
    """What an event is about."""

    CONNECT = 1
    CLOSED = 2
    TAMPER = 3
    KEEPER = 4
    MAKER = 5
    STARTED = 6


class Act(enum.IntEnum):
    """What of the guard's own somebody reached for."""

    NONE, MAP, LINK, PIN, UMOUNT = range(5)


class Protection(enum.IntEnum):
    """What becomes of who does so without being one of our programs."""

    DENY = 0
    RECORD = 1
    OFF = 2


class Outcome(enum.IntEnum):
    """How far a connection came."""

    DENIED = 0
    SYN_SENT = 1
    ESTABLISHED = 2
    CLOSED = 3
    REFUSED = 4
    TIMED_OUT = 5
    FAILED = 6
    NOT_SENT = 7


class Flag(enum.IntFlag):
    """What of an event is not whole, and what kind of caller it was."""

    EXE_CUT = 1 << 0
    CWD_CUT = 1 << 1
    ARGS_CUT = 1 << 2
    CGROUP_CUT = 1 << 3
    ANCESTORS_CUT = 1 << 4
    NO_EXE = 1 << 5
    NO_ARGS = 1 << 6
    KTHREAD = 1 << 7
    NO_STORAGE = 1 << 8
    FOREIGN_NETNS = 1 << 9
    FOREIGN_USERNS = 1 << 10
    EXE_SET = 1 << 11
    NO_ROOM = 1 << 12
    FOREIGN_MOUNTS = 1 << 13
    LSM = 1 << 14
    MANY = 1 << 15
    CWD_GONE = 1 << 16
    REQUEST_CUT = 1 << 17
    PARENT_REQUEST = 1 << 18


class Dimension(enum.IntEnum):
    """Which number a `number_key` is about."""

    UID = 0
    GID = 1
    PORT = 2


class UnitTail(enum.IntEnum):
    """What the name of a unit ends in."""

    OTHER = 0
    SERVICE = 1
    SLICE = 2
    SCOPE = 3


class Counter(enum.IntEnum):
    """Index into the counters map.

    JUDGED == EVENTS + FOLDED + QUIET + HELD + LOST_RING whenever no connect()
    is inside the hook.
    """

    JUDGED = 0
    EVENTS = 1
    FOLDED = 2
    QUIET = 3
    HELD = 4
    LOST_RING = 5
    LOST_CLOSED = 6
    CLOSED = 7
    DENIED = 8
    WOULD_DENY = 9
    ALLOWED = 10
    REDIRECTED = 11
    LOCAL = 12
    NO_STORAGE = 13
    NO_OWNER = 14
    NO_FOLD = 15
    NO_MARK = 16
    TOUCHED = 17
    LOST_TOUCHED = 18
    NO_MAKER = 19
    NO_REQUEST = 20


class Mask(c.Structure):
    """struct mask."""

    _fields_ = [("word", c.c_uint64 * MASK_WORDS)]


class ExeKey(c.Structure):
    """struct exe_key."""

    _fields_ = [
        ("inode", c.c_uint64),
        ("device", c.c_uint32),
        ("generation", c.c_uint32),
        ("slot", c.c_uint32),
        ("pad", c.c_uint32),
        ("name", c.c_char * NAME_LEN),
    ]


class NumberKey(c.Structure):
    """struct number_key."""

    _fields_ = [
        ("slot", c.c_uint32),
        ("dimension", c.c_uint32),
        ("number", c.c_uint32),
    ]


class UnitKey(c.Structure):
    """struct unit_key."""

    _fields_ = [
        ("prefixlen", c.c_uint32),
        ("slot_depth", c.c_uint32),
        ("name", c.c_char * NAME_LEN),
    ]


class PrefixKey(c.Structure):
    """struct prefix_key."""

    _fields_ = [
        ("prefixlen", c.c_uint32),
        ("slot", c.c_uint32),
        ("address", c.c_uint8 * 16),
    ]


class Rule(c.Structure):
    """struct rule."""

    _fields_ = [
        ("number", c.c_uint32),
        ("verdict", c.c_uint8),
        ("quiet", c.c_uint8),
        ("pad", c.c_uint16),
    ]


class Target(c.Structure):
    """struct target."""

    _fields_ = [
        ("address", c.c_uint8 * 16),
        ("port", c.c_uint16),
        ("set", c.c_uint8),
        ("pad", c.c_uint8 * 5),
    ]


class Policy(c.Structure):
    """struct policy."""

    _fields_ = [
        ("mode", c.c_uint32),
        ("rules", c.c_uint32),
        ("local_default", c.c_uint32),
        ("local_quiet", c.c_uint32),
        ("denied_burst", c.c_uint32),
        ("passed_burst", c.c_uint32),
        ("window_ns", c.c_uint64),
        ("mark", c.c_uint32),
        ("protection", c.c_uint32),
        ("redirect4", Target),
        ("redirect6", Target),
        ("direction", Mask * 2),
        ("any_uid", Mask),
        ("any_gid", Mask),
        ("any_exe", Mask),
        ("any_to", Mask),
        ("any_port", Mask),
        ("any_unit", Mask * UNIT_DEPTH),
        ("unit_tail", (Mask * UNIT_TAILS) * UNIT_DEPTH),
        ("unit_ends", Mask * (UNIT_DEPTH + 1)),
        ("sha256", c.c_uint8 * 32),
    ]


class Control(c.Structure):
    """struct control."""

    _fields_ = [
        ("slot", c.c_uint32),
        ("abi", c.c_uint32),
        ("home_netns", c.c_uint64),
        ("unguarded", (c.c_uint64 * (65536 // 64)) * 2),
        ("unfollowed", c.c_uint64 * (65536 // 64)),
    ]


class Endpoint(c.Structure):
    """struct endpoint."""

    _fields_ = [
        ("address", c.c_uint8 * 16),
        ("port", c.c_uint16),
        ("pad", c.c_uint16 * 3),
    ]


class RawAncestor(c.Structure):
    """struct ancestor."""

    _fields_ = [
        ("start_ns", c.c_uint64),
        ("pid", c.c_uint32),
        ("uid", c.c_uint32),
        ("comm", c.c_char * COMM_LEN),
    ]


class RawEvent(c.Structure):
    """struct event."""

    _fields_ = [
        ("abi", c.c_uint16),
        ("kind", c.c_uint8),
        ("verdict", c.c_uint8),
        ("mode", c.c_uint8),
        ("direction", c.c_uint8),
        ("outcome", c.c_uint8),
        ("ancestors", c.c_uint8),
        ("rule", c.c_uint32),
        ("flags", c.c_uint32),
        ("seq", c.c_uint64),
        ("connection", c.c_uint64),
        ("time_ns", c.c_uint64),
        ("established_ns", c.c_uint64),
        ("ended_ns", c.c_uint64),
        ("bytes_sent", c.c_uint64),
        ("bytes_received", c.c_uint64),
        ("src", Endpoint),
        ("dst", Endpoint),
        ("via", Endpoint),
        ("start_ns", c.c_uint64),
        ("cgroup_id", c.c_uint64),
        ("netns_cookie", c.c_uint64),
        ("exe_inode", c.c_uint64),
        ("exe_device", c.c_uint32),
        ("exe_generation", c.c_uint32),
        ("exe_nlink", c.c_uint32),
        ("netns", c.c_uint32),
        ("pid", c.c_uint32),
        ("tid", c.c_uint32),
        ("uid", c.c_uint32),
        ("gid", c.c_uint32),
        ("real_uid", c.c_uint32),
        ("real_gid", c.c_uint32),
        ("loginuid", c.c_uint32),
        ("session", c.c_uint32),
        ("error", c.c_uint32),
        ("act", c.c_uint32),
        ("comm", c.c_char * COMM_LEN),
        ("ancestor", RawAncestor * ANCESTORS),
        ("exe_len", c.c_uint16),
        ("cwd_len", c.c_uint16),
        ("cgroup_len", c.c_uint16),
        ("args_len", c.c_uint16),
        ("request_len", c.c_uint16),
        ("text", c.c_char * (TEXT_LEN + COMPONENT_LEN)),
    ]


class OwnerKey(c.Structure):
    """struct owner_key."""

    _fields_ = [("netns_cookie", c.c_uint64), ("src", Endpoint), ("dst", Endpoint)]


class FoldKey(c.Structure):
    """struct fold_key."""

    _fields_ = [
        ("window", c.c_uint64),
        ("start_ns", c.c_uint64),
        ("pid", c.c_uint32),
        ("uid", c.c_uint32),
        ("rule", c.c_uint32),
        ("verdict", c.c_uint8),
        ("direction", c.c_uint8),
        ("port", c.c_uint16),
        ("address", c.c_uint8 * 16),
        ("exec_id", c.c_uint64),
        ("script", c.c_uint64),
    ]


class Fold(c.Structure):
    """struct fold."""

    _fields_ = [
        ("folded", c.c_uint64),
        ("last_ns", c.c_uint64),
        ("first", RawEvent),
    ]


class RawMaker(c.Structure):
    """struct maker."""

    _fields_ = [
        ("socket", c.c_uint64),
        ("family", c.c_uint32),
        ("protocol", c.c_uint32),
        ("fsuid", c.c_uint32),
        ("fsgid", c.c_uint32),
        ("event", RawEvent),
    ]


class Identity(c.Structure):
    """struct identity."""

    _fields_ = [
        ("fd", c.c_int32),
        ("error", c.c_int32),
        ("inode", ExeKey),
        ("name", ExeKey),
        ("uid", c.c_uint32),
        ("mode", c.c_uint32),
        ("nlink", c.c_uint32),
        ("pad", c.c_uint32),
    ]


class Question(c.Structure):
    """struct question."""

    _fields_ = [
        ("slot", c.c_uint32),
        ("direction", c.c_uint32),
        ("uid", c.c_uint32),
        ("gid", c.c_uint32),
        ("inode", ExeKey),
        ("name", ExeKey),
        ("depth", c.c_uint32),
        ("port", c.c_uint32),
        ("address", c.c_uint8 * 16),
        ("component", (c.c_char * NAME_LEN) * UNIT_DEPTH),
        ("trusted", c.c_uint32),
        ("verdict", c.c_uint32),
        ("rule", c.c_uint32),
        ("quiet", c.c_uint32),
    ]


# The name in bpf/guard.h of every mirrored structure.
LAYOUTS: dict[str, type[c.Structure]] = {
    "mask": Mask,
    "exe_key": ExeKey,
    "number_key": NumberKey,
    "unit_key": UnitKey,
    "prefix_key": PrefixKey,
    "rule": Rule,
    "target": Target,
    "policy": Policy,
    "control": Control,
    "endpoint": Endpoint,
    "ancestor": RawAncestor,
    "event": RawEvent,
    "owner_key": OwnerKey,
    "fold_key": FoldKey,
    "fold": Fold,
    "maker": RawMaker,
    "identity": Identity,
    "question": Question,
}


@lru_cache(maxsize=4096)
@lru_cache(maxsize=1024)
def pack_address(text: str) -> bytes:
    """Turn an address as text into the contract's 16 bytes.

    Raises ValueError when text is not an IPv4 or IPv6 address.
    """
    address = ipaddress.ip_address(text)
    if address.version == 4:
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


@lru_cache(maxsize=4096)
def unpack_address(packed: bytes) -> str:
    """Turn the contract's 16 bytes into text; a mapped IPv4 as plain IPv4."""
    if packed.startswith(b"\0\0\0\0\0\0\0\0\0\0\xff\xff"):
        return ".".join(map(str, packed[12:]))
    return str(ipaddress.IPv6Address(packed))
