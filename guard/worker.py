# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread of guardd's, whose failure ends guardd: systemd then starts another one.

A guardd that lives on without one of its parts looks well and is not. Whatever a thread
is to survive (a journald that went away, a guard that is being unloaded) it survives
itself; what ends it is a fault, told on standard error and in a finding.
"""

from __future__ import annotations

import threading
import traceback


class Worker(threading.Thread):
    """Runs work(), and keeps what ended it."""

    task = ""  # what is not done any more when it has failed

    def __init__(self, name: str) -> None:
        """Make a thread that no end of the process waits for."""
        super().__init__(name=name, daemon=True)
        self.failure = ""  # the exception that ended it; "": none did

    def run(self) -> None:
        """Thread body."""
        try:
            self.work()
        except BaseException as error:
            self.failure = f"{type(error).__name__}: {error}"
            traceback.print_exc()

    def work(self) -> None:
        """Do what the thread is for, until it is told to stop."""
        raise NotImplementedError
