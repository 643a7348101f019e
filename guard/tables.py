# SPDX-License-Identifier: GPL-2.0-or-later
"""What a loaded guard's maps hold: policy rows, own addresses, counters, owners.

guard/kernel.py puts the maps there; this changes and reads them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from guard import abi, event, libbpf
from guard.errors import KernelError, NotLoaded
from guard.policy import Rows

MAPS = {
    # name in the object: name of the pin
    ".data.control": "control",
    ".data.state": "state",
    ".data.question": "question",
    "policies": "policies",
    "rules": "rules",
    "exes": "exes",
    "numbers": "numbers",
    "units": "units",
    "prefixes": "prefixes",
    "hosts": "hosts",
    "about": "about",
    "ring": "ring",
    "counters": "counters",
    "owners": "owners",
    "departed": "departed",
    "attempts": "attempts",
    "folds": "folds",
    "makers": "makers",
    "requests": "requests",
    ".data.closed": "closed",
    "conns": "conns",
}
# The maps that hold a policy's rows, and the type of their keys.
ROW_MAPS: dict[str, Any] = {
    "exes": abi.ExeKey,
    "numbers": abi.NumberKey,
    "units": abi.UnitKey,
    "prefixes": abi.PrefixKey,
}
# How late one may ask about a connection that has ended. Beyond that its port may be
# another's, whose row there was no room for.
_LATE_NS = 900 * 10**9
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
KEY0 = bytes(4)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class FileIdentity:
    """The kernel's own view of an executable, by both keys of the exes map."""

    inode: abi.ExeKey
    name: abi.ExeKey
    uid: int
    mode: int
    nlink: int


def netns_cookie() -> int:
    """Give the cookie of this process's network namespace."""
    with socket.socket(socket.AF_UNIX) as probe:  # guardd's unit has no other family
        raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, "little")


def wait_for_running_programs() -> None:
    """Return when no program that began before is still running.

    Programs run inside an RCU read section, and MEMBARRIER_CMD_GLOBAL waits for
    a grace period (membarrier(2)); with nohz_full it is refused, and a second is
    far longer than any program can run.
    """
    membarrier = 324 if os.uname().machine == "x86_64" else 283  # asm/unistd.h
    if _libc.syscall(membarrier, 1, 0, 0):
        time.sleep(1)


class Tables:
    """The pinned maps of one guard."""

    _identify = -1  # until it is opened

    def __init__(self, home: Path, identify: int) -> None:
        """Use the maps pinned in home, and the hand-run program behind identify."""
        self.home = home
        self._identify = identify
        self._maps: dict[str, libbpf.Map] = {}
        # What this process put there last; None: not yet. guard/watch.py compares.
        self.control_put: bytes | None = None
        self.rows_put: Rows | None = None
        self.hosts_put: frozenset[bytes] | None = None
        self._about_lock = threading.Lock()

    def __del__(self) -> None:
        if self._identify >= 0:
            os.close(self._identify)

    def map(self, name: str) -> libbpf.Map:
        """Give the pinned map of that name (a value of MAPS)."""
        if name not in self._maps:
            self._maps[name] = libbpf.Map(libbpf.get_pinned(self.home / name))
        return self._maps[name]

    # ---- the policy's rows

    @property
    def slot(self) -> int:
        """The slot of the policy in force: one bit, as the kernel reads it."""
        return int(self.control().slot) & 1

    @property
    def home_netns(self) -> int:
        """The cookie of the network namespace whose addresses are the host's."""
        return int(self.control().home_netns)

    def control(self) -> abi.Control:
        """Give the words that every program reads first."""
        value = self.map("control").get(KEY0)
        if value is None:
            raise NotLoaded(self.home, hint="load it again: guardctl load")
        return abi.Control.from_buffer_copy(value)

    @property
    def mode(self) -> abi.Mode:
        """The mode of the policy in force; the kernel enforces any but observe."""
        observe = self.policy().mode == abi.Mode.OBSERVE
        return abi.Mode.OBSERVE if observe else abi.Mode.ENFORCE

    def policy(self) -> abi.Policy:
        """Give the fixed part of the policy in force."""
        value = self.map("policies").get(struct.pack("=I", self.slot))
        if value is None:
            raise NotLoaded(self.home, hint="load it again: guardctl load")
        return abi.Policy.from_buffer_copy(value)

    def apply(self, rows: Rows) -> None:
        """Put a policy in force, whole: one store switches every hook to it.

        rows must be compiled for the slot that is not in force (`1 - slot`).
        Raises KernelError, and then the old policy stays in force.
        """
        slot = 1 - self.slot
        self._purge()
        for index in range(abi.MAX_ROWS):
            rule = rows.rules[index] if index < len(rows.rules) else abi.Rule()
            key = struct.pack("=I", slot * abi.MAX_ROWS + index)
            self.map("rules").put(key, bytes(rule))
        for name in ROW_MAPS:
            table = self.map(name)
            for key, value in getattr(rows, name).items():
                table.put(key, value)
        self.map("policies").put(struct.pack("=I", slot), bytes(rows.policy))

        control = self.control()
        _follow(control, rows)
        _set_all_but(control.unguarded[slot], rows.ports)
        self.put_control(bytes(control))
        control.slot = slot
        self.put_control(bytes(control))
        self.rows_put = rows

    def put_control(self, control: bytes) -> None:
        """Write the words that every program reads first."""
        self.map("control").put(KEY0, control)
        self.control_put = control

    def rules(self, slot: int) -> list[bytes]:
        """Give the rule rows of a slot, without the empty ones at the end."""
        table = self.map("rules")
        first = slot * abi.MAX_ROWS
        rows = [
            table.get(struct.pack("=I", first + index)) or b""
            for index in range(abi.MAX_ROWS)
        ]
        while rows and not any(rows[-1]):
            rows.pop()
        return rows

    def _purge(self) -> None:
        """Forget all rows but those in force: no running program reads them.

        Not only the other slot's: rows that somebody put into no slot at all would
        take up the room.
        """
        wait_for_running_programs()
        live = self.slot
        for name, kind in ROW_MAPS.items():
            table = self.map(name)
            for key in list(table.keys()):
                if row_slot(kind.from_buffer_copy(key)) != live:
                    table.delete(key)

    def identify(self, path: Path) -> FileIdentity:
        """Ask the kernel how match_exe() will see a file (btrfs and overlayfs
        show another device in stat(2) than their inodes have).

        Raises OSError when path cannot be opened.
        """
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)  # guardd may not read it
        try:
            question = abi.Identity(fd=fd)
            libbpf.run(self._identify, question)
        finally:
            os.close(fd)
        if question.error:
            raise OSError(-question.error, os.strerror(-question.error), str(path))
        return FileIdentity(
            question.inode, question.name, question.uid, question.mode, question.nlink
        )

    # ---- the host's own addresses

    def set_hosts(self, addresses: set[str]) -> None:
        """Make these (text) the host's own addresses, new ones first."""
        table = self.map("hosts")
        self.hosts_put = None  # in between, and when they do not fit
        wanted = {abi.pack_address(text) for text in addresses}
        for key in wanted:
            table.put(key, struct.pack("=I", 1))
        for key in list(table.keys()):
            if key not in wanted:
                table.delete(key)
        self.hosts_put = frozenset(wanted)

    # ---- reading it

    def counters(self) -> dict[abi.Counter, int]:
        """Give every counter, summed over the CPUs."""
        table = self.map("counters")
        totals = {}
        for counter in abi.Counter:
            raw = table.get(struct.pack("=I", counter)) or b""
            total = sum(struct.unpack(f"={len(raw) // 8}Q", raw))
            totals[counter] = total % 2**64  # HELD goes down on another CPU
        return totals

    def about(self) -> dict[str, Any]:
        """Give the record of who loaded what (see set_about); {}: none yet."""
        for _ in range(100):
            # the kernel copies a value without a lock: it may be half new
            with contextlib.suppress(ValueError):
                return read_about(self.map("about").get(KEY0) or b"")
        raise NotLoaded(self.home, hint="its record is damaged: guardctl load")

    def set_about(self, **changes: Any) -> None:
        """Change some of the record; a value of None takes an entry out."""
        with self._about_lock:
            record = {**self.about(), **changes}
            record = {key: value for key, value in record.items() if value is not None}
            size = self.map("about").value_size
            text = json.dumps(record, separators=(",", ":")).encode()
            if len(text) > size:
                raise KernelError(
                    f"the guard's record has {len(text)} bytes, {size} fit",
                    errno.E2BIG,
                    hint="give the policy file a shorter path",
                )
            self.map("about").put(KEY0, text.ljust(size, b"\0"))

    def owner(
        self, src: tuple[str, int], dst: tuple[str, int], cookie: int | None = None
    ) -> event.Event | None:
        """Tell whose open connection this is, src and dst as in its packets.

        cookie names the network namespace, by default our own. None: no
        connection to a guarded port has these addresses and ports now.
        """
        return self._event("owners", _owner_key(src, dst, cookie))

    def sender(
        self, src: tuple[str, int], dst: tuple[str, int], at_ns: int
    ) -> event.Event | None:
        """Tell who made a connection that the other end, on this host, has accepted.

        As owner(), but also when who made it has closed it since: one that is open
        and was accepted, else the last of these ends that was, else one whose
        answer has yet to arrive (TCP Fast Open). None that was made after at_ns
        (CLOCK_BOOTTIME): a port may be taken again.
        """
        key = _owner_key(src, dst, self._own_netns)
        now = self._event("owners", key)
        if now and now.time_ns > at_ns:
            now = None
        if now and now.established_ns:
            return now
        gone = self._event("departed", key)
        in_time = gone and gone.time_ns <= at_ns <= gone.ended_ns + _LATE_NS
        return gone if in_time else now

    @cached_property
    def _own_netns(self) -> int:
        """guardd stays where it is, and sender() is asked for each message."""
        return netns_cookie()

    def _event(self, name: str, key: bytes) -> event.Event | None:
        raw = self.map(name).get(key)
        return event.unpack_event(raw) if raw else None


def _owner_key(src: tuple[str, int], dst: tuple[str, int], cookie: int | None) -> bytes:
    return _OWNER_KEY.pack(
        cookie or netns_cookie(),
        abi.pack_address(src[0]),
        src[1],
        abi.pack_address(dst[0]),
        dst[1],
    )


# struct owner_key; by struct, as one is made for each message
_OWNER_KEY = struct.Struct("=Q16sH6x16sH6x")
if _OWNER_KEY.size != ctypes.sizeof(abi.OwnerKey):
    raise AssertionError("struct owner_key has changed")


# What stands in the record of who loaded what, where it stands there.
_RECORD: dict[str, type | tuple[type, ...]] = {
    "policy": str,
    "cgroup": str,
    "version": str,
    "refused": str,
    "loaded": (int, float),
    "started": (int, float),
    "pid": int,
    "pid_ticks": int,
    "attempt": int,
    "told": dict,
    "kept_level": int,
    "unkept": int,
    "unkept_told": int,
    "unkept_tried": dict,
    "changed": list,
    "backstop": dict,
    "before": dict,
    "mail": dict,
    "smart_host": dict,
}


def read_about(raw: bytes) -> dict[str, Any]:
    """Read the record of who loaded what: JSON, filled up with NULs.

    Raises ValueError when it is none, or torn: half of one write, half of another.
    """
    try:
        record = json.loads(raw.rstrip(b"\0") or b"{}")
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError("not an object")
    for name, value in record.items():
        wanted = _RECORD.get(name, object)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{name!r} is not what it is to be")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name!r} is no time")
    for name in ("told", "unkept_tried"):
        if not all(type(count) is int for count in record.get(name, {}).values()):
            raise ValueError(f"{name!r} is not what it is to be")
    return record


def row_slot(key: ctypes.Structure) -> int:
    """Give the slot a key of one of the four row maps belongs to."""
    if isinstance(key, abi.UnitKey):
        return int(key.slot_depth) >> 16
    return int(key.slot)


def guarded_ports(control: abi.Control, slot: int | None = None) -> frozenset[int]:
    """Give the TCP ports whose connects are judged; slot: by default the live one."""
    return _clear_bits(control.unguarded[control.slot & 1 if slot is None else slot])


def _follow(control: abi.Control, rows: Rows) -> None:
    """Follow connections to the policy's ports, and to where it redirects.

    What a former policy let pass is followed to its end as well.
    """
    # never asked of zero-filled words: 65,536 ports would take 6 MB for good
    first = not any(control.unfollowed)
    before = frozenset() if first else _clear_bits(control.unfollowed)
    targets = {
        int(target.port)
        for target in (rows.policy.redirect4, rows.policy.redirect6)
        if target.set
    }
    _set_all_but(control.unfollowed, rows.ports | targets | before)


def _clear_bits(words: ctypes.Array[ctypes.c_uint64]) -> frozenset[int]:
    return frozenset(
        64 * index + bit
        for index, word in enumerate(words)
        if word != 2**64 - 1
        for bit in range(64)
        if not word >> bit & 1
    )


def _set_all_but(words: ctypes.Array[ctypes.c_uint64], ports: frozenset[int]) -> None:
    for index in range(len(words)):
        words[index] = 2**64 - 1
    for port in ports:
        words[port >> 6] &= ~(1 << (port & 63))
