# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy file put in force, for the verbs that change one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from guard.cli.notices import tell_journal
from guard.errors import NotApplied, NotLoaded
from guard.force import keeper_of, only_one, policy_notice, put_in_force
from guard.kernel import Guard, policy_file
from guard.ownerrules import served_by
from guard.pins import roots_alone
from guard.policy import DEFAULT_FILE, Policy, load
from guard.serving import daemon_pid, signal_daemon

_SECONDS = 15.0  # that guardd may take
_LOCK_SECONDS = 60.0  # that others who apply may take


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for another apply to this folder: file and kernel must stay a pair.

    Not for ever: whoever may read the folder can hold that lock.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotApplied(f"{folder}: {error.strerror}") from None
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while not _locked(fd):
            if time.monotonic() > end:
                raise NotApplied(
                    f"{folder} is locked by another process",
                    hint=f"find it: lslocks; ls -di {shlex.quote(str(folder))} tells "
                    "the inode",
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def switch(guard: Guard, policy: Policy) -> None:
    """Put a policy, which is on the disk, in force; raises NotApplied."""
    pid = daemon_pid(guard)
    if pid is None:
        with only_one(guard.pin_dir):
            put_in_force(guard, policy, keeper_of(guard))
            guard.set_about(refused=None)
        tell_journal([policy_notice(policy, policy.files[0])])
        return
    before = guard.about().get("attempt", 0)
    signal_daemon(guard, signal.SIGHUP)
    end = time.monotonic() + _SECONDS
    while guard.about().get("attempt", 0) == before:
        if time.monotonic() > end:
            raise NotApplied(
                f"guardd (pid {pid}) did not answer",
                hint="journalctl -u smtp-guard tells why",
            )
        time.sleep(0.02)
    refused = guard.about().get("refused")
    if refused:
        raise NotApplied(f"guardd refused it: {refused}")
    if bytes(guard.policy().sha256) != policy.sha256:
        raise NotApplied("the file was changed meanwhile", hint="apply it again")


def loaded(pin_dir: Path) -> Guard:
    """Give the guard that is loaded; raises NotApplied for one without programs."""
    try:
        return Guard(pin_dir)
    except NotLoaded:
        pid = served_by(pin_dir)
        if pid is None:
            raise
        raise NotApplied(
            "this host is guarded without kernel programs",
            hint=f"kill -HUP {pid} has guardd read its policy file again",
        ) from None


class Loaded:
    """The guard pinned in a folder, for those who set up a mail server beside it."""

    def __init__(self, pin_dir: Path) -> None:
        """Do not look yet whether there is one."""
        self._pin_dir = pin_dir

    def file(self) -> Path:
        """Give its policy file; raises NotApplied where that is not root's word."""
        file = policy_file(self._pin_dir)
        if file != DEFAULT_FILE and not roots_alone(self._pin_dir):
            raise NotApplied(
                f"{file} is where guardd says that its policy file is, and it is not"
                " root's word",
                hint="change that policy by hand, then guardctl policy apply",
            )
        return file

    def is_loaded(self) -> bool:
        """Tell whether a guard is in force."""
        with contextlib.suppress(NotLoaded):
            Guard(self._pin_dir)
            return True
        return served_by(self._pin_dir) is not None

    def is_pending(self, file: Path) -> bool:
        """Tell whether that file says what is not in force; raises PolicyError."""
        with contextlib.suppress(NotLoaded):
            return bytes(Guard(self._pin_dir).policy().sha256) != load(file).sha256
        return False

    def put(self, file: Path) -> None:
        """Put its policy file in force, if it is loaded; raises GuardError."""
        policy = load(file)
        if self.is_loaded():
            switch(loaded(self._pin_dir), policy)

    def alone(self, file: Path) -> contextlib.AbstractContextManager[None]:
        """Wait for others who apply a policy of that folder; raises NotApplied."""
        return one_at_a_time(file.parent)
