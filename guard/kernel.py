# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard in the kernel: load, pin, attach by link, swap, change rows, unload.

Everything lives under one folder of a BPF file system: `link-NAME` for each
attachment and `v<ABI>/NAME` for each map and hand-run program. Pins outlive every
process, so the guard does too; another contract version gets another folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from guard import abi, event, libbpf
from guard.errors import AbiMismatch, KernelError, NotLoaded

DEFAULT_PIN_DIR = Path("/sys/fs/bpf/smtp-guard")
OBJECT = Path(__file__).with_name("guard.bpf.o")

# Attach types, include/uapi/linux/bpf.h. The order matters: what reports a
# connection is in place before what judges it.
HOOKS = {
    "guard_sockops": 3,
    "guard_release": 34,
    "guard_peername4": 29,
    "guard_peername6": 30,
    "guard_connect4": 10,
    "guard_connect6": 11,
}
HAND_RUN = ("identify", "judge")
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
    "folds": "folds",
    "conns": "conns",
}
# The maps that hold a policy's rows, and the type of their keys.
ROW_MAPS: dict[str, Any] = {
    "exes": abi.ExeKey,
    "numbers": abi.NumberKey,
    "units": abi.UnitKey,
    "prefixes": abi.PrefixKey,
}
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
ALL_PORTS = frozenset(range(65536))
_KEY0 = bytes(4)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Attachment:
    """One pinned link: which program runs at which cgroup."""

    name: str
    program_id: int
    tag: str
    cgroup_id: int


@dataclass(frozen=True)
class FileIdentity:
    """The kernel's own view of an executable, by both keys of the exes map."""

    inode: abi.ExeKey
    name: abi.ExeKey
    uid: int
    mode: int
    nlink: int


def is_loaded(pin_dir: Path) -> bool:
    """Tell whether a guard of this contract version is pinned there."""
    return (pin_dir / f"v{abi.ABI}" / "judge").exists()


def find_cgroup2() -> Path:
    """Give the mount point of cgroup v2, also beside v1. Raises KernelError."""
    for part in psutil.disk_partitions(all=True):
        if part.fstype == "cgroup2":
            return Path(part.mountpoint)
    raise KernelError(
        "no cgroup2 file system is mounted",
        errno.ENODEV,
        hint="mount -t cgroup2 none /sys/fs/cgroup",
    )


def ensure_bpffs(pin_dir: Path) -> None:
    """Make pin_dir, mounting /sys/fs/bpf first where nobody has.

    Raises KernelError when the folder is not on a BPF file system: pins made
    anywhere else would not be pins.
    """
    bpffs = Path("/sys/fs/bpf")
    if bpffs in pin_dir.parents and not os.path.ismount(bpffs):
        if _libc.mount(b"bpf", bytes(bpffs), b"bpf", 0, b"mode=0700"):
            raise KernelError(f"cannot mount {bpffs}", ctypes.get_errno())
    try:
        pin_dir.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise KernelError(f"cannot make {pin_dir}", error.errno or 0) from None


def netns_cookie() -> int:
    """Give the cookie of this process's network namespace."""
    with socket.socket() as probe:
        raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, "little")


def check_layouts(layouts: dict[str, tuple[int, dict[str, int]]]) -> None:
    """Compare an object's structs (size, field offsets) with abi.py's.

    Raises AbiMismatch naming the first struct and field that differ.
    """
    for name, mirror in abi.LAYOUTS.items():
        if name not in layouts:
            raise AbiMismatch(f"struct {name} is not in the object")
        size, offsets = layouts[name]
        mine = {field[0]: getattr(mirror, field[0]).offset for field in mirror._fields_}
        for field in {**offsets, **mine}:
            if offsets.get(field) != mine.get(field):
                raise AbiMismatch(
                    f"struct {name}, field {field}: offset {offsets.get(field)} in "
                    f"the object, {mine.get(field)} in abi.py"
                )
        if size != ctypes.sizeof(mirror):
            raise AbiMismatch(f"struct {name}: {size} bytes, not {mirror}")


def wait_for_running_programs() -> None:
    """Return when no program that began before is still running.

    Programs run inside an RCU read section, and MEMBARRIER_CMD_GLOBAL waits for
    a grace period (membarrier(2)); with nohz_full it is refused, and a second is
    far longer than any program can run.
    """
    membarrier = 324 if os.uname().machine == "x86_64" else 283  # asm/unistd.h
    if _libc.syscall(membarrier, 1, 0, 0):
        time.sleep(1)


class Guard:
    """The guard that is pinned under a folder: its maps, rows and links."""

    def __init__(self, pin_dir: Path = DEFAULT_PIN_DIR) -> None:
        """Open a loaded guard. Raises NotLoaded when there is none."""
        self.pin_dir = pin_dir
        self.home = pin_dir / f"v{abi.ABI}"
        if not is_loaded(pin_dir):
            raise NotLoaded(pin_dir, hint="load it: guardctl load, or start guardd")
        self.abandoned = 0  # bytes of findings a load could not read any more
        self._maps: dict[str, libbpf.Map] = {}
        self._about_lock = threading.Lock()
        self._identify = libbpf.get_pinned(self.home / "identify")

    def map(self, name: str) -> libbpf.Map:
        """Give the pinned map of that name (a value of MAPS)."""
        if name not in self._maps:
            self._maps[name] = libbpf.Map(libbpf.get_pinned(self.home / name))
        return self._maps[name]

    def link_path(self, hook: str) -> Path:
        """Give where the link of a hook is pinned."""
        return self.pin_dir / f"link-{hook}"

    # ---- putting it there and taking it away

    @classmethod
    def load(
        cls,
        pin_dir: Path = DEFAULT_PIN_DIR,
        object_path: Path = OBJECT,
        ring_bytes: int | None = None,
    ) -> Guard:
        """Load our programs beside those that may be in force; see attach().

        Maps of this contract version that are pinned already are kept with all
        they hold. ring_bytes, a power of two, only counts for a ring that does
        not exist yet. Raises KernelError or AbiMismatch.
        """
        ensure_bpffs(pin_dir)
        home = pin_dir / f"v{abi.ABI}"
        fresh = not is_loaded(pin_dir)
        if fresh and home.exists():
            _remove(home)  # a load that died half-way
        home.mkdir(mode=0o700, exist_ok=True)
        try:
            with libbpf.Object(object_path) as obj:
                check_layouts(obj.layouts())
                for name, pin in MAPS.items():
                    obj.set_pin_path(name, home / pin)
                if not fresh:
                    ring = libbpf.Map(libbpf.get_pinned(home / "ring"))
                    ring_bytes = ring.max_entries
                if ring_bytes is not None:
                    obj.set_max_entries("ring", ring_bytes)
                obj.load()
                for name in (*HOOKS, *HAND_RUN):
                    # pinned under another name first: a rename has no gap
                    staged = home / f"{name}_new"
                    staged.unlink(missing_ok=True)
                    libbpf.pin(obj.program(name), staged)
                    staged.rename(home / name)
            guard = cls(pin_dir)
            if fresh:
                guard._begin()
        except BaseException:
            if fresh:
                _remove(home)
            raise
        return guard

    def _retire_others(self) -> None:
        """Forget the maps of other contract versions: no program uses them now.

        What waited in their rings cannot be read any more; `abandoned` counts it.
        """
        for folder in self.pin_dir.glob("v*"):
            if folder != self.home:
                with contextlib.suppress(KernelError), _opened(folder / "ring") as ring:
                    self.abandoned += libbpf.ring_backlog(ring)
                _remove(folder)

    def _begin(self) -> None:
        """Set what a new set of maps starts from."""
        control = abi.Control(abi=abi.ABI, home_netns=netns_cookie())
        self.map("control").put(_KEY0, bytes(control))
        # so that numbers of connections go on rising over an unload and a load
        connection = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.map("state").put(_KEY0, struct.pack("=QQ", 1, connection))

    def attach(self, cgroup: Path) -> None:
        """Put the loaded programs in force, the policy's rows being in place.

        Links that exist get the new programs by LINK_UPDATE, so that nothing
        slips by, and stay where they are; the others are made at the cgroup2
        folder and pinned. Raises KernelError; links that this call made are then
        taken back: half a guard is none.
        """
        try:
            folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise KernelError(f"cannot open {cgroup}", error.errno or 0) from None
        made: list[Path] = []
        try:
            for hook, attach_type in HOOKS.items():
                with _opened(self.home / hook) as program:
                    if self.link_path(hook).exists():
                        with _opened(self.link_path(hook)) as link:
                            libbpf.swap(link, program)
                        continue
                    with _closing(libbpf.attach(program, folder, attach_type)) as link:
                        libbpf.pin(link, self.link_path(hook))
                    made.append(self.link_path(hook))
        except BaseException:
            for path in reversed(made):
                path.unlink()
            raise
        finally:
            os.close(folder)
        self._retire_others()

    def forget(self) -> None:
        """Take back a load(): what is attached stays as it is."""
        _remove(self.home)

    def detach(self) -> None:
        """Detach every hook: from here on the host is open."""
        for hook in reversed(HOOKS):
            self.link_path(hook).unlink(missing_ok=True)

    def unload(self) -> None:
        """Detach everything and forget it, findings that wait included."""
        self.detach()
        for folder in self.pin_dir.glob("v*"):
            _remove(folder)
        with contextlib.suppress(OSError):  # somebody else's pins are in it
            self.pin_dir.rmdir()

    # ---- the policy's rows

    @property
    def slot(self) -> int:
        """The slot of the policy in force."""
        return int(self.control().slot)

    @property
    def home_netns(self) -> int:
        """The cookie of the network namespace whose addresses are the host's."""
        return int(self.control().home_netns)

    def control(self) -> abi.Control:
        """Give the words that every program reads first."""
        value = self.map("control").get(_KEY0)
        if value is None:
            raise NotLoaded(self.pin_dir, hint="load it again: guardctl load")
        return abi.Control.from_buffer_copy(value)

    @property
    def mode(self) -> abi.Mode:
        """The mode of the policy in force."""
        return abi.Mode(self.policy().mode)

    def policy(self) -> abi.Policy:
        """Give the fixed part of the policy in force."""
        value = self.map("policies").get(struct.pack("=I", self.slot))
        if value is None:
            raise NotLoaded(self.pin_dir, hint="load it again: guardctl load")
        return abi.Policy.from_buffer_copy(value)

    def apply(self, rows: RowsLike) -> None:
        """Put a policy in force, whole: one store switches every hook to it.

        rows must be compiled for the slot that is not in force (`1 - slot`).
        Raises KernelError, and then the old policy stays in force.
        """
        slot = 1 - self.slot
        self._purge(slot)
        for index in range(abi.MAX_ROWS):
            rule = rows.rules[index] if index < len(rows.rules) else abi.Rule()
            key = struct.pack("=I", slot * abi.MAX_ROWS + index)
            self.map("rules").put(key, bytes(rule))
        for name in ROW_MAPS:
            table = self.map(name)
            for key, value in getattr(rows, name).items():
                table.put(key, value)
        self.map("policies").put(struct.pack("=I", slot), bytes(rows.policy))

        # A port that both policies guard is guarded throughout; one that only
        # one of them names is judged by that one or not at all.
        control = self.control()
        before = guarded_ports(control)
        unguard(control, (before & rows.ports) if before != ALL_PORTS else rows.ports)
        self.map("control").put(_KEY0, bytes(control))
        control.slot = slot
        self.map("control").put(_KEY0, bytes(control))
        unguard(control, rows.ports)
        self.map("control").put(_KEY0, bytes(control))

    def _purge(self, slot: int) -> None:
        """Forget the rows of a slot that no running program reads any more."""
        wait_for_running_programs()
        for name, kind in ROW_MAPS.items():
            table = self.map(name)
            for key in list(table.keys()):
                if row_slot(kind.from_buffer_copy(key)) == slot:
                    table.delete(key)

    def update_exes(self, rows: dict[bytes, bytes]) -> None:
        """Make the live slot's executables exactly these, new ones first."""
        table = self.map("exes")
        slot = self.slot
        for key, value in rows.items():
            table.put(key, value)
        for key in list(table.keys()):
            if key not in rows and abi.ExeKey.from_buffer_copy(key).slot == slot:
                table.delete(key)

    def identify(self, path: Path) -> FileIdentity:
        """Ask the kernel how match_exe() will see a file (btrfs and overlayfs
        show another device in stat(2) than their inodes have).

        Raises OSError when path cannot be opened.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
        wanted = {abi.pack_address(text) for text in addresses}
        for key in wanted:
            table.put(key, struct.pack("=I", 1))
        for key in list(table.keys()):
            if key not in wanted:
                table.delete(key)

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
        raw = self.map("about").get(_KEY0) or b""
        text = raw.rstrip(b"\0")
        return dict(json.loads(text)) if text else {}

    def set_about(self, **changes: Any) -> None:
        """Change some of the record; a value of None takes an entry out."""
        with self._about_lock:
            record = {**self.about(), **changes}
            record = {key: value for key, value in record.items() if value is not None}
            size = self.map("about").value_size
            text = json.dumps(record, separators=(",", ":")).encode()
            if len(text) > size:
                raise ValueError(f"the record has {len(text)} bytes, {size} fit")
            self.map("about").put(_KEY0, text.ljust(size, b"\0"))

    def owner(
        self, src: tuple[str, int], dst: tuple[str, int], cookie: int | None = None
    ) -> event.Event | None:
        """Tell whose open connection this is, src and dst as in its packets.

        cookie names the network namespace, by default our own. None: no
        connection to a guarded port has these addresses and ports now.
        """
        key = abi.OwnerKey(netns_cookie=cookie or netns_cookie())
        for end, (address, port) in ((key.src, src), (key.dst, dst)):
            end.address[:] = abi.pack_address(address)
            end.port = port
        raw = self.map("owners").get(bytes(key))
        return event.unpack_event(raw) if raw else None

    def attachments(self) -> list[Attachment]:
        """Give the links that are pinned, with the program each one runs."""
        found = []
        for hook in HOOKS:
            try:
                with _opened(self.link_path(hook)) as fd:
                    link = libbpf.info(fd, libbpf.LinkInfo)
                program = libbpf.program_by_id(link.prog_id)
            except KernelError:
                continue
            tag = libbpf.tag(program)
            os.close(program)
            found.append(Attachment(hook, link.prog_id, tag, link.cgroup_id))
        return found


class RowsLike(Protocol):
    """What apply() needs of a compiled policy (guard.policy.rows.Rows)."""

    @property
    def policy(self) -> abi.Policy: ...
    @property
    def rules(self) -> list[abi.Rule]: ...
    @property
    def exes(self) -> dict[bytes, bytes]: ...
    @property
    def numbers(self) -> dict[bytes, bytes]: ...
    @property
    def units(self) -> dict[bytes, bytes]: ...
    @property
    def prefixes(self) -> dict[bytes, bytes]: ...
    @property
    def ports(self) -> frozenset[int]: ...


def row_slot(key: ctypes.Structure) -> int:
    """Give the slot a key of one of the four row maps belongs to."""
    if isinstance(key, abi.UnitKey):
        return int(key.slot_depth) >> 16
    return int(key.slot)


def guarded_ports(control: abi.Control) -> frozenset[int]:
    """Give the TCP ports whose connects are judged."""
    return frozenset(
        64 * index + bit
        for index, word in enumerate(control.unguarded)
        if word != 2**64 - 1
        for bit in range(64)
        if not word >> bit & 1
    )


def unguard(control: abi.Control, ports: frozenset[int]) -> None:
    """Mark every port but these as not guarded."""
    words = [2**64 - 1] * len(control.unguarded)
    for port in ports:
        words[port >> 6] &= ~(1 << (port & 63))
    control.unguarded[:] = words


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _opened(path: Path) -> contextlib.AbstractContextManager[int]:
    return _closing(libbpf.get_pinned(path))


def _remove(folder: Path) -> None:
    for pin in folder.iterdir():
        pin.unlink()
    folder.rmdir()
