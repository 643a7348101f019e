# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard in the kernel: load, pin, attach by link, swap, unload.

Everything lives under one folder of a BPF file system: `link-NAME` for each
attachment and `v<ABI>/NAME` for each map and hand-run program. Pins outlive every
process, so the guard does too; another contract version gets another folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from guard import abi, libbpf
from guard.errors import AbiMismatch, GuardError, KernelError, NotCgroup, NotLoaded
from guard.needs import explained
from guard.neighbours import keeps_out
from guard.pins import (
    DEFAULT_PIN_DIR,
    FOR_THE_ACCOUNT,
    ensure_bpffs,
    hand_over,
    pin,
    pin_anew,
)
from guard.policy import DEFAULT_FILE
from guard.ringbuf import ring_backlog
from guard.tables import KEY0, MAPS, Tables, netns_cookie

OBJECT = Path(__file__).with_name("guard.bpf.o")

# Attach types, include/uapi/linux/bpf.h. The order matters: what reports a
# connection is in place before what judges it.
HOOKS = {
    "guard_sockops": 3,
    "guard_release": 34,
    "guard_create": 2,
    "guard_peername4": 29,
    "guard_peername6": 30,
    "guard_connect4": 10,
    "guard_connect6": 11,
}
DENYING = ("guard_connect4", "guard_connect6")
HAND_RUN = ("identify", "judge")
SUCCEEDS = "succeeds"  # of about(): another guard was in force until it came
_CGROUP_LINK = 3  # BPF_LINK_TYPE_CGROUP, include/uapi/linux/bpf.h
_BESIDE_V1 = (  # systemd(1)
    "boot without systemd.legacy_systemd_cgroup_controller, systemd then mounts it "
    "beside v1; until then, with no unit known: mkdir /run/cgroup2 && mount -t cgroup2 "
    "none /run/cgroup2"
)


@dataclass(frozen=True)
class Attachment:
    """One pinned link: which program runs at which cgroup."""

    name: str
    program_id: int
    cgroup_id: int


def remains(pin_dir: Path) -> bool:
    """Tell whether links are pinned there, of a whole guard or not.

    Raises KernelError where this process may not look: that is no answer, and
    Path.glob() would say no.
    """
    try:
        return any(name.startswith("link-") for name in os.listdir(pin_dir))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise KernelError(
            f"cannot look into {pin_dir}",
            error.errno or 0,
            hint=FOR_THE_ACCOUNT,
        ) from None


def take_out(pin_dir: Path) -> None:
    """Detach and forget all that is pinned there, whole or not, of any version."""
    _silence_lsm(pin_dir)
    for link in pin_dir.glob("link-*"):
        _clear(link)
    for folder in pin_dir.glob("v*"):
        _remove(folder)
    with contextlib.suppress(OSError):  # somebody else's pins are in it
        pin_dir.rmdir()


def _silence_lsm(pin_dir: Path) -> None:
    """Have the lock in the LSM guard no cgroup any more.

    The kernel lets go of its programs some time after their pins, and until then
    they would judge what no connect program judges any more.
    """
    for words in pin_dir.glob("v*/lsm"):
        with contextlib.suppress(KernelError):
            table = libbpf.Map(libbpf.get_pinned(words))
            table.put(KEY0, bytes(table.value_size))


def policy_file(pin_dir: Path) -> Path:
    """Give the policy file of the guard that is pinned there, else the usual one."""
    try:
        return Path(Guard(pin_dir).about()["policy"])
    except (GuardError, KeyError):
        return DEFAULT_FILE


def usual_ring_bytes() -> int:
    """Give the size of a new ring: a 64th of the memory, 4 to 64 MiB.

    64 MiB hold 20,000 connections made within seconds, and their ends, however
    slow journald is meanwhile (tests/kernel/test_storm.py). A power of two.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = 64 << 20
    while size > 4 << 20 and size > memory // 64:
        size >>= 1
    return size


def is_loaded(pin_dir: Path) -> bool:
    """Tell whether a whole guard of this contract version is pinned there.

    One that lacks a pin is loaded anew, beside what is in force meanwhile.
    """
    home = pin_dir / f"v{abi.ABI}"
    return all((home / pin).exists() for pin in (*MAPS.values(), *HAND_RUN))


def find_cgroup2() -> Path:
    """Give the mount point of cgroup v2, also beside v1. Raises KernelError."""
    mounts = psutil.disk_partitions(all=True)
    for part in mounts:
        mount = Path(part.mountpoint)
        # the root has no type, cgroups(7); a folder that is mounted has
        if part.fstype == "cgroup2" and not (mount / "cgroup.type").exists():
            return mount
    raise KernelError(
        "no cgroup2 file system is mounted",
        errno.ENODEV,
        hint=_BESIDE_V1
        if any(part.fstype == "cgroup" for part in mounts)
        else "mount -t cgroup2 none /sys/fs/cgroup",
    )


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


class Guard(Tables):
    """The guard that is pinned under a folder: its maps, rows and links."""

    def __init__(self, pin_dir: Path = DEFAULT_PIN_DIR) -> None:
        """Open a loaded guard. Raises NotLoaded when there is none."""
        if not is_loaded(pin_dir):
            hint = "load it: guardctl load, or start guardd"
            if remains(pin_dir):
                hint = (
                    "parts of one are: guardctl load makes it whole, guardctl unload "
                    "takes them out"
                )
            raise NotLoaded(pin_dir, hint=hint)
        home = pin_dir / f"v{abi.ABI}"
        super().__init__(home, libbpf.get_pinned(home / "identify"))
        self.pin_dir = pin_dir
        self.abandoned = 0  # bytes of findings a load could not read any more
        self.retired: list[str] = []  # hooks of another version that were taken out

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
        they hold. ring_bytes (a power of two; None: the usual size) only counts
        for a ring that does not exist yet. Raises KernelError or AbiMismatch.
        """
        ensure_bpffs(pin_dir)
        home = pin_dir / f"v{abi.ABI}"
        fresh = not is_loaded(pin_dir)
        unread = 0
        if fresh and home.exists():  # a load that died half-way, or pins removed
            unread = _unread(home)
            _remove(home)
        home.mkdir(mode=0o700, exist_ok=True)
        hand_over(home)
        try:
            with libbpf.Object(object_path) as obj:
                check_layouts(obj.layouts())
                for name, place in MAPS.items():
                    obj.set_pin_path(name, home / place)
                if not fresh:
                    ring = libbpf.Map(libbpf.get_pinned(home / "ring"))
                    ring_bytes = ring.max_entries
                obj.set_max_entries("ring", ring_bytes or usual_ring_bytes())
                try:
                    obj.load()
                except KernelError as error:
                    raise explained(error) from None
                for place in MAPS.values():
                    hand_over(home / place)
                if fresh:
                    _begin(home)
                for name in (*HOOKS, *HAND_RUN):
                    pin_anew(obj.program(name), home / name)
            guard = cls(pin_dir)
            guard.abandoned = unread
        except BaseException:
            if fresh:
                _remove(home)
            raise
        return guard

    def _retire_others(self) -> None:
        """Forget what other versions left, now that all of ours is in force.

        What waited in their rings cannot be read any more; `abandoned` counts it.
        Links of hooks that we do not know, but for the LSM's (lsm.py), would go on
        judging by rows that nobody can change any more; `retired` names them.
        """
        for link in self.pin_dir.glob("link-*"):
            hook = link.name.removeprefix("link-")
            if hook not in HOOKS and not hook.startswith("lsm_"):
                with contextlib.suppress(KernelError):  # a folder is no link
                    _clear(link)
                    self.retired.append(hook)
        for folder in self.pin_dir.glob("v*"):
            if folder != self.home:
                self.abandoned += _unread(folder)
                _remove(folder)

    def attach(self, cgroup: Path) -> None:
        """Put the loaded programs in force, the policy's rows being in place.

        Links that exist get the new programs by LINK_UPDATE, so that nothing
        slips by; the others are made at the cgroup2 folder and pinned. Raises
        KernelError, also for links that are at another folder; links that this
        call made are then taken back: half a guard is none.
        """
        folder = open_cgroup(cgroup)
        made: list[Path] = []
        try:
            live = self._links_at(folder, cgroup)
            for hook in HOOKS:
                with _opened(self.home / hook) as program:
                    if hook in live:
                        with _opened(self.link_path(hook)) as link:
                            libbpf.swap(link, program)
                        continue
                    _clear(self.link_path(hook))
                    with _closing(_attach(program, folder, cgroup, hook)) as link:
                        pin(link, self.link_path(hook))
                    made.append(self.link_path(hook))
        except BaseException:
            for path in reversed(made):
                path.unlink()
            raise
        finally:
            os.close(folder)
        self._retire_others()

    def _links_at(self, folder: int, cgroup: Path) -> set[str]:
        """Give the hooks whose links are attached at an open cgroup2 folder.

        A link outlives its cgroup, attached nowhere (cgroup id 0): not among
        them. Raises KernelError for one that is attached elsewhere.
        """
        # the inode number of a cgroup2 folder is its cgroup id (kernfs, 64 bit)
        here = os.fstat(folder).st_ino
        links = {link.name: link.cgroup_id for link in self.attachments()}
        if {*links.values()} - {0, here}:
            raise KernelError(
                f"the guard is attached to another cgroup than {cgroup}",
                errno.EBUSY,
                hint="name that one, or take the guard out first: guardctl unload",
            )
        return {name for name, at in links.items() if at}

    def forget(self) -> None:
        """Take back a load(): what is attached stays as it is."""
        _remove(self.home)
        with contextlib.suppress(OSError):
            self.pin_dir.rmdir()

    def detach(self) -> None:
        """Detach every hook: from here on the host is open."""
        _silence_lsm(self.pin_dir)
        for link in self.pin_dir.glob("link-lsm_*"):  # else it goes on alone
            link.unlink()
        for hook in reversed(HOOKS):
            with contextlib.suppress(KernelError), _opened(self.link_path(hook)) as fd:
                libbpf.detach(fd)
            self.link_path(hook).unlink(missing_ok=True)

    def unload(self) -> None:
        """Detach everything and forget it, findings that wait included."""
        take_out(self.pin_dir)

    def missing_hooks(self) -> list[str]:
        """Give the hooks that are attached nowhere: [] is a guard in force.

        A link outlives its cgroup and a forced detachment, with cgroup id 0.
        """
        attached = {link.name for link in self.attachments() if link.cgroup_id}
        return [hook for hook in HOOKS if hook not in attached]

    def attachments(self) -> list[Attachment]:
        """Give the links that are pinned, with the program each one runs."""
        found = []
        for hook in HOOKS:
            try:
                with _opened(self.link_path(hook)) as fd:
                    link = libbpf.info(fd, libbpf.LinkInfo)
            except KernelError:
                continue
            # of a pin that is no link these words are others
            if (link.type, link.attach_type) == (_CGROUP_LINK, HOOKS[hook]):
                found.append(Attachment(hook, link.prog_id, link.cgroup_id))
        return found


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _begin(home: Path) -> None:
    """Set what a new set of maps starts from, before the guard counts as whole."""
    control = abi.Control(abi=abi.ABI, home_netns=netns_cookie())
    # so that numbers of connections go on rising over an unload and a load
    connection = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    start = {"control": bytes(control), "state": struct.pack("=QQ", 1, connection)}
    for name, value in start.items():
        libbpf.Map(libbpf.get_pinned(home / name)).put(KEY0, value)


def _attach(program: int, folder: int, cgroup: Path, hook: str) -> int:
    try:
        return libbpf.attach(program, folder, HOOKS[hook])
    except KernelError as error:
        if error.errno == errno.EPERM:
            has_room(cgroup, hook)
        raise


def has_room(cgroup: Path, *hooks: str) -> None:
    """Raise KernelError (EBUSY) where others keep our programs from being attached."""
    for hook in hooks or HOOKS:
        if other := keeps_out(cgroup, HOOKS[hook]):
            raise KernelError(
                f"{hook} cannot be attached beside {other}",
                errno.EBUSY,
                hint="that one takes no other: `bpftool cgroup tree` shows it; have it "
                "attached with BPF_F_ALLOW_MULTI, or not at all",
            )


def open_cgroup(cgroup: Path) -> int:
    """Open a cgroup2 folder; the caller owns the descriptor. Raises NotCgroup."""
    hint = f"name a folder of cgroup v2, mounted at {find_cgroup2()}"
    try:
        folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        what = f"cannot open {cgroup}"
        raise NotCgroup(what, error.errno or 0, hint=hint) from None
    if not (cgroup / "cgroup.controllers").exists():  # cgroups(7): only in v2
        os.close(folder)
        what = f"{cgroup} is no cgroup2 folder"
        raise NotCgroup(what, errno.EINVAL, hint=hint)
    return folder


def _opened(path: Path) -> contextlib.AbstractContextManager[int]:
    return _closing(libbpf.get_pinned(path))


def _clear(pin: Path) -> None:
    try:
        pin.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(
            f"cannot remove {pin}",
            error.errno or 0,
            hint="it is no pin of the guard: take it away by hand",
        ) from None


def _unread(folder: Path) -> int:
    """Give how many bytes wait in a ring that nobody will read any more."""
    with contextlib.suppress(KernelError), _opened(folder / "ring") as ring:
        return ring_backlog(ring)
    return 0


def _remove(folder: Path) -> None:
    """Remove a folder of pins, or a link of its name, but nothing behind a link.

    Root calls this too, and the folder above is guardd's user's, who could put one.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with _closing(here):
        for name in os.listdir(here):
            os.unlink(name, dir_fd=here)
    folder.rmdir()
