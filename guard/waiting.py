# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd that could put nothing in force: says so, begins anew when that may help.

Ending, to be started again two seconds later, would tell the same for ever. What was
in force before stays so meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from systemd import daemon as sd

from guard.delivery import write_alone
from guard.errors import GuardError, KernelError, NoPrograms, PolicyError
from guard.filewatch import FileWatch
from guard.force import nothing_notice
from guard.ownerrules import stands
from guard.policy.files import links_on_the_way
from guard.service import CAUGHT, Service, complain
from guard.told import is_news

_FIRST, _LONGEST = 2.0, 300.0  # seconds between two tries
_SETTLED = 1.0  # seconds after a file was changed: it may not be whole yet
_TRIES = "SMTP_GUARD_TRIES"  # by itself, without anybody having changed anything


def tries() -> int:
    """Give how often this process began anew by itself, in vain."""
    count = os.environ.get(_TRIES, "")
    return int(count) if count.isdecimal() and len(count) < 9 else 0


def pause(count: int) -> float:
    """Give the seconds to wait after so many tries in vain."""
    return float(min(_FIRST * 2 ** min(count, 20), _LONGEST))


def begin_anew(asked: bool) -> NoReturn:
    """Run the same program again in this process: of this run nothing is left.

    asked: somebody changed something, so that it is a first try. Signals that come
    meanwhile wait for Service.catch_signals().
    """
    sd.notify("WATCHDOG=1")  # which goes on counting while the next run begins
    os.environ[_TRIES] = "0" if asked else str(tries() + 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # not all libraries' close at exec
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Waiting(Service):
    """One run of guardd that has nothing to serve."""

    def __init__(self, options: argparse.Namespace, error: GuardError) -> None:
        """Keep the options, and why there is nothing."""
        super().__init__(options)
        self._error = error

    def start(self) -> None:
        """Say what is wrong, unless that was said; watch what may change it."""
        self.catch_signals()
        lasting = isinstance(self._error, NoPrograms) and not self._error.passing
        self._try_at = time.monotonic() + (math.inf if lasting else pause(tries()))
        # before it is told: who reads that may change the file at once
        with contextlib.suppress(KernelError):  # no more inotify: by time and SIGHUP
            self._files = FileWatch()
            self._files.watch(frozenset(self._watched()))
            self.register(self._files, self._on_files)
        if is_news(self._options.pin_dir, str(self._error)):
            sys.stderr.write(f"guardd: {self._error.report()}\n")
            if not self._stands():
                self._tell()

    def _watched(self) -> set[Path]:
        files = {self._options.policy.absolute()}
        if isinstance(self._error, PolicyError):  # what it includes may be wrong
            named = [str(getattr(one, "file", "")) for one in self._error.problems]
            files |= {Path(name) for name in named if name.startswith("/")}
        return links_on_the_way(files)

    def _tell(self) -> None:
        notice = nothing_notice(self._error, self._options.policy.absolute())
        self.echo(notice)
        write_alone([notice], complain)

    def _stands(self) -> bool:
        """Tell whether something was put in force before, as far as one may look."""
        try:
            return stands(self._options.pin_dir)
        except GuardError:
            return True

    def _on_files(self) -> None:
        if self._files.changed():
            self.asked = True
            self._try_at = time.monotonic() + _SETTLED

    def run(self) -> None:
        """Wait until it is worth another try, or for SIGTERM or SIGINT."""
        what = "NOT IN FORCE, outbound SMTP is open to every process"
        if stood := self._stands():
            what = "what is in force stays, and nobody journals"
        sd.notify(f"STATUS={what}: {self._error}")
        sd.notify("READY=1")
        while not self.over:
            sd.notify("WATCHDOG=1")
            self.wait(1.0)
            loaded = not stood and self._stands()  # by guardctl, and to be served
            if loaded or signal.SIGHUP in self._signals:
                self.asked = self.anew = True
            elif time.monotonic() >= self._try_at:
                self.anew = True

    def stop(self) -> None:
        """End; there is nothing to write."""
        if not self.anew:
            sd.notify("STOPPING=1")
