# SPDX-License-Identifier: GPL-2.0-or-later
"""What every run of guardd does: wait for descriptors, signals and seconds.

daemon.py serves our kernel programs, unaided.py does without them; both keep a
policy in force, have a lock in netfilter and a thread that writes the journal.
"""

from __future__ import annotations

import argparse
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import ClassVar, Protocol

from systemd import daemon as sd

from guard.backstop.keeper import Keeper
from guard.backstop.witness import Witness
from guard.delivery import write_alone
from guard.errors import KernelError, ThreadDied
from guard.filewatch import FileWatch
from guard.finding import Kind, Message, Notice
from guard.journal import Found
from guard.message import mail_message, message
from guard.origin import Naming
from guard.policy import Policy
from guard.scribe import Clerk
from guard.smarthost import Follower
from guard.text import printable
from guard.worker import Worker

_TICK_SECONDS = 1.0  # status line and watchdog; systemd's limit is far longer
_STOP_SECONDS = 5.0
_ENDING = {signal.SIGTERM, signal.SIGINT}
CAUGHT = {*_ENDING, signal.SIGHUP}
_NEXT = "guardd ends, what is in force stays, and findings wait for the next one"


def complain(text: str) -> None:
    """Say something on standard error, where the unit's journal has it."""
    sys.stderr.write(f"guardd: {text}\n")


class _Source(Protocol):
    def fileno(self) -> int:
        """Give the descriptor to wait on."""


class Service:
    """One run of guardd; start(), then run() until told to stop, then stop()."""

    _keeper: Keeper
    _witness: Witness
    _scribe: Clerk
    _files: FileWatch
    _signals: ClassVar[set[int]] = set()  # of this process, whatever it serves

    def __init__(self, options: argparse.Namespace) -> None:
        """Keep the options; nothing is touched before start()."""
        self._options = options
        self._selector = selectors.DefaultSelector()
        self._naming = Naming()
        self._smart_host = Follower()
        self._unwatched = ""  # why files are not followed; "" when they are
        self.anew = False  # this run is over and another one is to begin
        self.asked = False  # because somebody changed something
        self._workers: list[Worker] = []

    def start(self) -> None:
        """Put what is guarded in force. Raises GuardError, with nothing half done."""
        raise NotImplementedError

    def reload(self) -> None:
        """Read the policy file again and put it in force, or keep the old one."""
        raise NotImplementedError

    def tick(self) -> None:
        """Look at everything, and say how it is."""
        raise NotImplementedError

    def stop(self) -> None:
        """End; what is in force stays in force."""
        raise NotImplementedError

    def catch_signals(self) -> None:
        """First of all: `guardctl policy apply` may send SIGHUP very early."""
        self._wake, wakened = socket.socketpair()
        for end in (self._wake, wakened):
            end.setblocking(False)
        self._wakened = wakened  # kept open
        signal.set_wakeup_fd(wakened.fileno())
        for number in CAUGHT:
            signal.signal(number, lambda number, _: self._signals.add(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)  # see begin_anew()
        self._selector.register(self._wake, selectors.EVENT_READ, None)

    def register(self, source: _Source | int, call: Callable[[], object]) -> None:
        """Have this called whenever the descriptor of source is readable."""
        self._selector.register(source, selectors.EVENT_READ, call)

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, or until another run is to begin."""
        for bell in self._keeper.bells():
            self.register(bell, self._keeper.rang)
        sd.notify("READY=1")
        tick_at = 0.0
        while not self.over:
            if signal.SIGHUP in self._signals:
                self._signals.discard(signal.SIGHUP)
                now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                sd.notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}")
                self.reload()
                sd.notify("READY=1")
            now = time.monotonic()
            if now >= tick_at:
                tick_at = now + _TICK_SECONDS
                self.tick()
            self.wait(tick_at - now)

    @property
    def over(self) -> bool:
        """Whether this run is to end."""
        return self.anew or not self._signals.isdisjoint(_ENDING)

    def wait(self, seconds: float) -> None:
        """Wait for a signal or a descriptor, and do what it is for."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._wake.recv(4096)
            else:
                key.data()

    def heed(self, policy: Policy) -> None:
        """Listen to what the lock in netfilter records, if there is one."""
        was = self._witness.fileno()
        if was >= 0:
            self._selector.unregister(was)
        self._witness.heed(self._keeper.lock, self._keeper.kind, policy)
        if self._witness.trouble:
            sys.stderr.write(f"guardd: {self._witness.trouble}\n")
        now = self._witness.fileno()
        if now >= 0:
            self.register(now, self._witness.read)

    def follow(self, policy: Policy) -> None:
        """Be told of changes of the files that a policy names."""
        try:
            self._files.watch(policy.watch)
            self._unwatched = ""
        except KernelError as error:
            if not self._unwatched:
                sys.stderr.write(f"guardd: {error.report()}\n")
            self._unwatched = str(error)

    def relay_by(self, policy: Policy) -> None:
        """Have the smart host of a policy that was put in force looked up."""
        for notice in self._smart_host.put(policy):
            self._scribe.tell(notice)

    def say(self, parts: list[str]) -> None:
        """Tell systemd how it is, and that this process is alive."""
        for notice in self._smart_host.look():
            self._scribe.tell(notice)
        if self._smart_host.trouble:
            parts.append(f"smart host: {self._smart_host.trouble}")
        if self._witness.trouble:
            parts.append(f"nobody listens to netfilter: {self._witness.trouble}")
        if self._unwatched:
            parts.append(f"replaced files are not followed: {self._unwatched}")
        if self._scribe.trouble:
            parts.append(f"journald does not take findings: {self._scribe.trouble}")
        sd.notify(f"STATUS={', '.join(parts)}\nWATCHDOG=1")
        for worker in self._workers:
            if worker.failure:
                raise ThreadDied(worker.task, worker.failure, hint=_NEXT)

    def begin(self, *workers: Worker) -> None:
        """Start threads; guardd ends when one of them has failed, see say()."""
        for worker in workers:
            worker.start()
            self._workers.append(worker)

    def give_up(self, error: ThreadDied) -> None:
        """Tell that a thread has failed, and end as ever: nothing waits for it."""
        notice = Notice(
            Kind.FAILED,
            time.time_ns() // 1000,
            f"{error}; {_NEXT}",
            2,
            {"TASK": str(error.args[0])},
        )
        if self._scribe.failure:
            write_alone([notice], complain)
        else:
            self._scribe.tell(notice)
        self.stop()

    def finish(self, what_stays: str) -> None:
        """Write what is left to write; what_stays tells of what journald hinders."""
        if not self.anew:
            sd.notify("STOPPING=1")
        self._witness.close()
        if not self._scribe.stop(_STOP_SECONDS):
            sys.stderr.write(f"guardd: {self._scribe.trouble}; {what_stays}\n")

    def echo(self, found: Found) -> None:
        """Print what is journalled, if that was asked for."""
        if self._options.foreground:
            if isinstance(found, Notice):
                text = found.message
            elif isinstance(found, Message):
                text = mail_message(found)
            else:
                text = message(found)
            clock = time.strftime("%H:%M:%S", time.localtime(found.time_us / 1e6))
            print(f"{clock} {printable(text)}", flush=True)
