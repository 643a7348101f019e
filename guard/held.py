# SPDX-License-Identifier: GPL-2.0-or-later
"""What guardd has open of the guard in the kernel, and puts back by it.

A link lives as long as somebody has it open, and so does a map or a program: with
guardd running, removing all pins detaches nothing, and the pins can be made again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from guard import libbpf
from guard.checks import Check, State
from guard.errors import KernelError
from guard.kernel import (
    DENYING,
    HAND_RUN,
    HOOKS,
    Guard,
    open_cgroup,
)
from guard.neighbours import program_label, runs_after
from guard.pins import (
    close_to_others,
    ensure_bpffs,
    hand_over,
    open_to_others,
    pin_anew,
)
from guard.tables import MAPS

_NAMES = 4  # of pins, in a finding
_AGAIN = "to load it again, restart guardd: systemctl restart smtp-guard"


class Held:
    """Descriptors of every link, program and map of a guard that is attached."""

    _programs: dict[str, int] = {}  # until they are open
    _links: dict[str, int] = {}

    def __init__(
        self, guard: Guard, cgroup: Path, new_folder: Callable[[], object]
    ) -> None:
        """Open all of it, as it is now.

        new_folder is called when the folder of the pins is another one than
        before, and makes it. Raises KernelError.
        """
        self._guard = guard
        self._cgroup = cgroup
        self._new_folder = new_folder
        self._programs = {
            name: libbpf.get_pinned(guard.home / name) for name in (*HOOKS, *HAND_RUN)
        }
        self._ids: dict[str, int] = {
            hook: libbpf.info(self._programs[hook], libbpf.ProgramInfo).id
            for hook in HOOKS
        }
        self._links = {hook: libbpf.get_pinned(guard.link_path(hook)) for hook in HOOKS}
        self._folder = guard.pin_dir.stat().st_ino
        self._inodes = self._listing()
        for pin in MAPS.values():
            guard.map(pin)

    def __del__(self) -> None:
        for fd in (*self._programs.values(), *self._links.values()):
            os.close(fd)

    # ---- looking

    def links(self) -> Iterator[Check]:
        """Are our programs attached, and is it ours that each link runs?"""
        detached, replaced = [], []
        for hook, fd in self._links.items():
            link = libbpf.info(fd, libbpf.LinkInfo)
            if not link.cgroup_id:
                detached.append(hook)
            elif link.prog_id != self._ids[hook]:
                name = program_label(link.prog_id) or f"gone (id {link.prog_id})"
                replaced.append(f"{hook} runs {name}")
        if detached:
            what = f"detached {', '.join(detached)}"
            yield Check("links", State.BAD, what, f"NOT IN FORCE; {_AGAIN}")
        if replaced:
            yield Check("programs", State.BAD, ", ".join(replaced), _AGAIN)

    def order(self) -> Iterator[Check]:
        """Does nobody else's program come after those that deny?"""
        others: set[str] = set()
        with contextlib.suppress(KernelError), self._opened_cgroup() as folder:
            for hook in DENYING:
                others |= set(runs_after(folder, HOOKS[hook], self._ids[hook]))
        if others:
            yield Check(
                "order",
                State.BAD,
                f"runs after the guard, and can take back a denial: "
                f"{', '.join(sorted(others))}",
                "find out who attached it: bpftool cgroup tree",
            )

    def pins(self) -> Iterator[Check]:
        """Is every pin there, and the one that we made?"""
        seen = self._listing()
        gone = sorted(self._inodes.keys() - seen.keys())
        others = sorted(
            name
            for name in self._inodes.keys() & seen.keys()
            if seen[name] != self._inodes[name]
        )
        parts = []
        if len(gone) == len(self._inodes):
            parts.append("all pins removed")
        elif gone:
            parts.append(f"removed {_some(gone)}")
        if others:
            parts.append(f"other objects pinned as {_some(others)}")
        with contextlib.suppress(FileNotFoundError):
            if open_to_others(self._guard.pin_dir) or open_to_others(self._guard.home):
                parts.append("the folder opened to others")
        if parts:
            yield Check(
                "pins",
                State.BAD,
                ", ".join(parts),
                "in force only as long as guardd runs; guardctl load and then "
                "systemctl restart smtp-guard pin it again, with no gap",
            )

    def _listing(self) -> dict[str, int]:
        """Give the inode of every pin: of another object, or pinned again, another."""
        found: dict[str, int] = {}
        for folder in (self._guard.pin_dir, self._guard.home):
            with (
                contextlib.suppress(FileNotFoundError, NotADirectoryError),
                os.scandir(folder) as entries,
            ):
                found |= {entry.name: entry.inode() for entry in entries}
        ours = (*self._programs, *MAPS.values(), *map(_link_name, HOOKS))
        return {name: found[name] for name in ours if name in found}

    # ---- putting back

    def attach(self) -> None:
        """Have every link attached, with our program. Raises KernelError.

        One that was only given another program gets ours by LINK_UPDATE.
        """
        with self._opened_cgroup() as folder:
            for hook, fd in list(self._links.items()):
                link = libbpf.info(fd, libbpf.LinkInfo)
                if not link.cgroup_id:
                    self._make_link(hook, folder)
                elif link.prog_id != self._ids[hook]:
                    libbpf.swap(fd, self._programs[hook])

    def come_last(self) -> None:
        """Move our programs behind all others of the cgroup. Raises KernelError.

        The new link is there before the old one goes: for that moment a connect()
        may be judged, and reported, twice, but never not at all. Programs of a
        cgroup above come after ours whatever we do.
        """
        with self._opened_cgroup() as folder:
            for hook in DENYING:
                if runs_after(folder, HOOKS[hook], self._ids[hook]):
                    self._make_link(hook, folder)

    def pin(self) -> None:
        """Make every pin again that is not the one we made. Raises KernelError."""
        guard = self._guard
        try:
            ensure_bpffs(guard.pin_dir)
            if guard.pin_dir.stat().st_ino != self._folder:
                self._new_folder()
                self._folder = guard.pin_dir.stat().st_ino
            guard.home.mkdir(mode=0o700, exist_ok=True)
            hand_over(guard.home)
            for folder in (guard.pin_dir, guard.home):
                if open_to_others(folder):
                    close_to_others(folder)
            seen = self._listing()
            for name in self._inodes:
                if seen.get(name) != self._inodes[name]:
                    self._pin(name)
        except OSError as error:
            raise KernelError(
                f"cannot pin under {guard.pin_dir}", error.errno or 0
            ) from None

    def _make_link(self, hook: str, folder: int) -> None:
        new = libbpf.attach(self._programs[hook], folder, HOOKS[hook])
        os.close(self._links[hook])
        self._links[hook] = new
        self._inodes[_link_name(hook)] = 0  # until it is pinned
        with contextlib.suppress(KernelError, OSError):  # pin() tries again
            self._pin(_link_name(hook))

    def _pin(self, name: str) -> None:
        if name in self._programs:
            fd, folder = self._programs[name], self._guard.home
        elif name in MAPS.values():
            fd, folder = self._guard.map(name).fd, self._guard.home
        else:
            fd, folder = self._links[name.removeprefix("link-")], self._guard.pin_dir
        pin_anew(fd, folder / name)
        self._inodes[name] = (folder / name).lstat().st_ino

    @contextlib.contextmanager
    def _opened_cgroup(self) -> Iterator[int]:
        folder = open_cgroup(self._cgroup)
        try:
            yield folder
        finally:
            os.close(folder)


def _link_name(hook: str) -> str:
    return f"link-{hook}"


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")
