# SPDX-License-Identifier: GPL-2.0-or-later
"""Which guardd serves a guard: what a record says, as far as the kernel bears it out.

The record belongs to the account that guardd runs as. Root, who reads it in guardctl,
is to signal no process that this account could not signal itself: what a record names
is either that account's own process, or holds the lock that a guardd holds.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guard.kernel import Guard

_LOCK = re.compile(
    r"^lock:\s+\d+: FLOCK +\S+ +WRITE +\d+ +([0-9a-f]+):([0-9a-f]+):(\d+) ",
    re.MULTILINE,
)


def this_process() -> dict[str, int]:
    """Give what a record says of the guardd that writes it."""
    pid = os.getpid()
    return {"pid": pid, "pid_ticks": start_ticks(pid)}


def start_ticks(pid: int) -> int:
    """Give when a process started, in clock ticks since boot: proc_pid_stat(5).

    Not psutil's create_time(), which moves when the clock is set.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    state, *rest = fields.rpartition(")")[2].split()
    if state == "Z":  # killed, and nobody has asked how it ended
        raise ProcessLookupError(pid)
    return int(rest[18])


def daemon_pid(guard: Guard) -> int | None:
    """Give the pid of the guardd that serves the guard; None: none runs."""
    with _daemon(guard) as found:
        return found[0] if found else None


def signal_daemon(guard: Guard, number: signal.Signals) -> int | None:
    """Send a signal to the guardd that serves the guard, and to no other process.

    Gives its pid; None: none runs.
    """
    with _daemon(guard) as found:
        if found is None:
            return None
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(found[1], number)
        return found[0]


def _daemon(
    guard: Guard,
) -> contextlib.AbstractContextManager[tuple[int, int] | None]:
    return process_of(guard.about(), guard.pin_dir, guard.pin_dir)


@contextlib.contextmanager
def process_of(
    record: Mapping[str, Any], folder: Path, lock: Path
) -> Iterator[tuple[int, int] | None]:
    """Give pid and pidfd of the guardd that a record names; None: it does not run.

    folder is whose owner may write the record, lock what a guardd holds locked,
    flock(2). A guardd that was killed leaves its record, and its number may be another
    process's by now: the time of its start tells.
    """
    pidfd = -1
    try:
        pid = int(record["pid"])
        # before all that is asked of /proc: what comes after it is of that process, or
        # the descriptor is of one that has ended
        pidfd = os.pidfd_open(pid)
        known = start_ticks(pid) == record["pid_ticks"] and _is_ours(pid, folder, lock)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        known = False
    try:
        yield (pid, pidfd) if known else None
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _is_ours(pid: int, folder: Path, lock: Path) -> bool:
    """Tell whether a process may be the one that the owner of folder recorded.

    Raises OSError when that cannot be looked at.
    """
    owner = folder.stat().st_uid
    if os.geteuid() or not owner:
        return True  # its word is that of who asks, or of root
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    real = status.partition("\nUid:")[2].split()[0]
    return int(real) == owner or _holds(pid, lock)


def _holds(pid: int, lock: Path) -> bool:
    """Tell whether a process has a file locked; raises OSError."""
    there = lock.stat()
    wanted = (os.major(there.st_dev), os.minor(there.st_dev), there.st_ino)
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            for major, minor, inode in _LOCK.findall(info.read_text()):
                if (int(major, 16), int(minor, 16), int(inode)) == wanted:
                    return True
    return False
