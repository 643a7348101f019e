# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory the guard's maps have, and a limit for those who make them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from guard.kernel import Guard
from guard.tables import MAPS
from tests.journald import until
from tests.lab.lab import cgroup2_mount

_STEP = 32 << 10  # bytes; of a limit that is brought down


def map_bytes(guard: Guard) -> int:
    """Add up the maps' memory: memlock in proc_pid_fdinfo(5)."""
    total = 0
    for name in MAPS.values():
        text = Path(f"/proc/self/fdinfo/{guard.map(name).fd}").read_text()
        total += int(text.partition("memlock:")[2].split()[0])
    return total


class MemoryGroup:
    """A cgroup of the memory controller: of v2 where it hands that on, else of v1."""

    def __init__(self, name: str) -> None:
        """Make it. Raises LookupError where no memory controller is to be had."""
        unified = cgroup2_mount()
        if "memory" in (unified / "cgroup.subtree_control").read_text().split():
            self.version, base = 2, unified
            self._limit, self._usage = "memory.max", "memory.current"
            self._events = "memory.events"
        else:
            self.version, base = 1, _v1_mount()
            self._limit, self._usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
            self._events = "memory.oom_control"
        self.path = base / name
        self.path.mkdir()

    def limit(self, size: int) -> None:
        """Let it have so many bytes; OSError when it cannot be brought down to that."""
        (self.path / self._limit).write_text(str(size))

    def fill(self) -> None:
        """Let it have no more than it needs: nothing that the kernel could take back.

        That is page cache, and what each CPU has been charged for in advance, 256 KiB:
        both differ from run to run, and rows without end would fit into them.
        """
        size = self.usage
        if self.version == 2:
            with contextlib.suppress(OSError):  # EAGAIN: not all of it
                (self.path / "memory.reclaim").write_text(str(size))
            self.limit(self.usage)
            return
        with contextlib.suppress(OSError):  # EBUSY: the limit before it stays
            while size > 0:
                self.limit(size)
                size -= _STEP

    def no_limit(self) -> None:
        """Let it have all there is."""
        (self.path / self._limit).write_text("max" if self.version == 2 else "-1")

    @property
    def usage(self) -> int:
        """Bytes that are charged to it."""
        return int((self.path / self._usage).read_text())

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has killed."""
        events = (self.path / self._events).read_text().split()
        return int(events[events.index("oom_kill") + 1])

    def leave(self, pid: int) -> None:
        """Move a process out of it; what is charged for it stays."""
        (self.path.parent / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Remove it; nobody runs in it any more."""
        procs = self.path / "cgroup.procs"
        until(lambda: not procs.read_text(), f"the end of all in {self.path}")
        os.rmdir(self.path)


def _v1_mount() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(mount)
    raise LookupError("no memory controller: neither handed on by v2 nor mounted as v1")
