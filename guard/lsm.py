# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock in the LSM, beside the guard: load, attach, and what it takes for ours.

Where the kernel loads such programs, a connection that no connect program would
see is judged all the same, and who reaches for the guard itself is recorded or
refused. Everything else works without it. Our own programs say so first, by
enrol(), which the journal tells of.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from guard import libbpf, tables
from guard.checks import Check, State, good
from guard.errors import KernelError
from guard.kernel import HOOKS as CGROUP_HOOKS
from guard.kernel import Guard
from guard.pins import hand_over, pin_anew

OBJECT = Path(__file__).with_name("lsm.bpf.o")
HOOKS = (
    *("lsm_connect", "lsm_sendmsg", "lsm_create", "lsm_free"),
    *("lsm_bpf", "lsm_mmap"),
    *("lsm_unlink", "lsm_rmdir", "lsm_rename", "lsm_umount"),
)
_HAND_RUN = ("lsm_enrol", "lsm_remember")
_MAPS = {
    # name in the object: name of the pin
    ".data.lsm": "lsm",
    "ours": "lsm_ours",
    "keepers": "lsm_keepers",
    "drafts": "lsm_drafts",
}
# guardctl explain asks by it, and nothing depends on it
_ANYBODYS = {"question"}


class _Thing(enum.IntEnum):
    """enum thing, bpf/ours.bpf.h."""

    MAP = 1
    PROGRAM = 2
    LINK = 3
    FOLDER = 4
    FILESYSTEM = 5
    MOUNTS = 6


class _Memory(ctypes.Structure):
    """struct memory, bpf/lsm.bpf.c."""

    _fields_ = [
        ("fd", ctypes.c_int32),
        ("thing", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
    ]


def enrol(pin_dir: Path) -> None:
    """Say that this process is one of our programs, where somebody asks.

    Raises KernelError.
    """
    for program in pin_dir.glob("v*/lsm_enrol"):
        fd = libbpf.get_pinned(program)
        try:
            libbpf.run(fd)
        finally:
            os.close(fd)


def put(guard: Guard, cgroup: Path) -> str:
    """Load and attach the lock to a guard that is attached at cgroup.

    Gives why it is not in force, "" when it is; then nothing of it is left. One
    that is there gets the installed programs, with no moment without.
    """
    try:
        _load(guard, cgroup)
        _remember(guard)
        if _is_asked(guard):
            _retire(guard, keep=HOOKS)
            return ""
        why = "bpf is not in the kernel's list of security modules"
    except (KernelError, OSError) as error:
        why = str(error)
    _take_out(guard)
    return why


def check(guard: Guard) -> Check:
    """Answer whether the lock is in force."""
    name = "lsm"
    if not (guard.home / "lsm_remember").exists():
        why = guard.about().get("lsm") or "not loaded"
        return Check(
            name,
            State.NOTE,
            f"no lock in the LSM: {why}",
            "the guard does not need it; Linux from 6.1 with bpf in lsm= has it",
        )
    missing = [hook for hook in HOOKS if not _link(guard, hook).exists()]
    again = "load it again: systemctl restart smtp-guard, or guardctl load"
    if missing:
        what = f"not attached: {', '.join(missing)}"
        return Check(name, State.BAD, what, again)
    if not _is_asked(guard):
        return Check(name, State.BAD, "the kernel does not ask it", again)
    protection = guard.policy().protection
    words = ("refused and recorded", "recorded", "let be")
    return good(
        name,
        f"{len(HOOKS)} attached; who reaches for the guard is {words[protection]}",
    )


def _link(guard: Guard, hook: str) -> Path:
    return guard.link_path(hook)


def _load(guard: Guard, cgroup: Path) -> None:
    with libbpf.Object(OBJECT) as obj:
        for name, pin in {**tables.MAPS, **_MAPS}.items():
            if obj.has_map(name):
                obj.set_pin_path(name, guard.home / pin)
        obj.set_max_entries("ring", guard.map("ring").max_entries)
        obj.load()
        for pin in _MAPS.values():
            hand_over(guard.home / pin)
        for name in _HAND_RUN:
            pin_anew(obj.program(name), guard.home / name)
        enrol(guard.pin_dir)
        # the inode number of a cgroup2 folder is its cgroup id (kernfs, 64 bit)
        state = struct.pack("=QQ", os.stat(cgroup).st_ino, 0)
        _own_map(guard, "lsm").put(tables.KEY0, state)
        for hook in HOOKS:
            link = libbpf.attach_traced(obj.program(hook))
            try:
                pin_anew(link, _link(guard, hook))
            finally:
                os.close(link)


def _retire(guard: Guard, keep: Collection[str]) -> None:
    """Take out the links of another version's hooks, as kernel.py does."""
    for link in guard.pin_dir.glob("link-lsm_*"):
        if (hook := link.name.removeprefix("link-")) not in keep:
            with contextlib.suppress(OSError):
                link.unlink()
                guard.retired.append(hook)


def _take_out(guard: Guard) -> None:
    for hook in HOOKS:
        _link(guard, hook).unlink(missing_ok=True)
    _retire(guard, keep=())
    for name in (*_HAND_RUN, *_MAPS.values()):
        (guard.home / name).unlink(missing_ok=True)


def _own_map(guard: Guard, pin: str) -> libbpf.Map:
    return libbpf.Map(libbpf.get_pinned(guard.home / pin))


def _is_asked(guard: Guard) -> bool:
    """Tell whether the kernel asks our programs: lsm_bpf counts runs by hand."""
    table = _own_map(guard, "lsm")
    before = table.get(tables.KEY0)
    with _pinned(guard.home / "lsm_remember") as program:
        libbpf.run(program, _Memory(fd=-1))
    return table.get(tables.KEY0) != before


def _remember(guard: Guard) -> None:
    """Have the kernel know what is ours by its address, and forget what was.

    The mounts it guards are those of process 1: guardd may have its own.
    """
    ours = _own_map(guard, "lsm_ours")
    mounts = struct.pack("=Q", os.stat("/proc/1/ns/mnt").st_ino)
    ours.put(mounts, struct.pack("=I", _Thing.MOUNTS))
    known = {mounts}
    with _pinned(guard.home / "lsm_remember") as program:
        for thing, path in _things(guard):
            with _opened(thing, path) as fd:
                memory = _Memory(fd, thing)
                libbpf.run(program, memory)
            if not memory.address:
                raise KernelError(f"cannot remember {path}", 28)
            known.add(struct.pack("=Q", memory.address))
    for key in set(ours.keys()) - known:
        ours.delete(key)


def _things(guard: Guard) -> Iterator[tuple[_Thing, Path]]:
    home = guard.home
    for pin in {*tables.MAPS.values(), *_MAPS.values()} - _ANYBODYS:
        yield _Thing.MAP, home / pin
    for hook in CGROUP_HOOKS:
        yield _Thing.PROGRAM, home / hook
    for hook in (*CGROUP_HOOKS, *HOOKS):
        yield _Thing.LINK, _link(guard, hook)
    yield _Thing.FOLDER, guard.pin_dir
    yield _Thing.FOLDER, home
    yield _Thing.FILESYSTEM, home


@contextlib.contextmanager
def _opened(thing: _Thing, path: Path) -> Iterator[int]:
    if thing not in (_Thing.FOLDER, _Thing.FILESYSTEM):
        with _pinned(path) as fd:
            yield fd
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _pinned(path: Path) -> Iterator[int]:
    fd = libbpf.get_pinned(path)
    try:
        yield fd
    finally:
        os.close(fd)
