# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd: puts the guard in force, keeps it current, and journals what it finds.

Wiring only. The main thread keeps the kernel's maps current (policy, executables,
the host's addresses); the scribe carries events to the journal. Neither ending
opens a port: programs and maps are pinned and stay in force.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

from systemd import daemon as sd

from guard import __version__, kernel
from guard.abi import Counter
from guard.errors import (
    GuardError,
    KernelError,
    NotRoot,
    PolicyError,
    ScribeDied,
)
from guard.filewatch import FileWatch
from guard.finding import Finding, Notice
from guard.force import (
    brief,
    bring_up,
    only_one,
    policy_notice,
    put_in_force,
    record_daemon,
    refusal_notice,
)
from guard.hosts import AddressNews, own_addresses
from guard.message import message
from guard.origin import Naming
from guard.policy import DEFAULT_FILE, Policy, load, refresh
from guard.scribe import Scribe
from guard.text import printable
from guard.watch import Watch, changed_meanwhile

_TICK_SECONDS = 1.0  # status line and watchdog; systemd's limit is far longer
_STOP_SECONDS = 5.0


class Daemon:
    """One run of guardd."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Keep the options; nothing is touched before start()."""
        self._options = options
        self._selector = selectors.DefaultSelector()
        self._signals: set[int] = set()
        self._naming = Naming()
        self._unwatched = ""  # why files are not followed; "" when they are

    def start(self) -> None:
        """Put the guard in force. Raises GuardError, with nothing half done."""
        options = self._options
        self._catch_signals()
        self._only = only_one(options.pin_dir)
        self._only.__enter__()  # for as long as this process lives
        changed = changed_meanwhile(options.pin_dir, options.policy)
        started = bring_up(
            options.pin_dir, options.cgroup, options.policy, options.ring_bytes
        )
        self._guard = started.guard
        self._addresses = AddressNews()
        self._guard.set_hosts(own_addresses())  # once more: now none is missed
        self._files = FileWatch()
        self._policy = started.policy
        if started.policy:
            self._naming.use_rules(started.since_ns, started.policy.rule_name)
            self._watch(started.policy)
        record_daemon(self._guard)
        self._watchman = Watch(
            self._guard, options.cgroup, options.policy, self._policy
        )
        self._refused = started.refused is not None
        self._scribe = Scribe(self._guard, self._naming, self._echo)
        self._scribe.start()
        for notice in (*changed, *started.notices(options.policy)):
            self._scribe.tell(notice)
        for finding in started.before:
            self._scribe.tell(finding)

    def _catch_signals(self) -> None:
        """First of all: `guardctl policy apply` may send SIGHUP very early."""
        self._wake, wakened = socket.socketpair()
        for end in (self._wake, wakened):
            end.setblocking(False)
        self._wakened = wakened  # kept open
        signal.set_wakeup_fd(wakened.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _: self._signals.add(number))
        self._selector.register(self._wake, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Work until SIGTERM or SIGINT."""
        self._selector.register(
            self._addresses, selectors.EVENT_READ, self._on_addresses
        )
        self._selector.register(self._files, selectors.EVENT_READ, self._on_files)
        sd.notify("READY=1")
        tick_at = 0.0
        while not self._signals & {signal.SIGTERM, signal.SIGINT}:
            if signal.SIGHUP in self._signals:
                self._signals.discard(signal.SIGHUP)
                self._reload()
            now = time.monotonic()
            if now >= tick_at:
                tick_at = now + _TICK_SECONDS
                self._tick()
            for key, _ in self._selector.select(tick_at - now):
                if key.data is None:
                    self._wake.recv(4096)
                else:
                    key.data()

    def _on_addresses(self) -> None:
        self._addresses.drain()
        try:
            self._guard.set_hosts(own_addresses())
        except KernelError as error:  # E2BIG: those that fit are in
            sys.stderr.write(f"guardd: addresses of this host: {error.report()}\n")

    def _on_files(self) -> None:
        """Follow an executable that was replaced, an account that was made.

        No mail waits for this: the kernel also knows an executable by its name
        in its directory, which holds from the moment of the rename.
        """
        if not self._files.changed() or self._policy is None:
            return
        self._watch(self._policy)
        try:
            self._apply(refresh(self._policy))
        except GuardError as error:
            self._not_renewed(error)

    def _not_renewed(self, error: GuardError) -> None:
        """The rows that are there stay; the next change is looked at again."""
        self._scribe.tell(refusal_notice(error, self._options.policy))

    def _apply(self, policy: Policy) -> None:
        """Put a policy in force, name its rules from now on, watch its files."""
        self._watchman.make_ready()
        put_in_force(self._guard, policy)
        # after, not before: the one store that switches is near the end of it
        since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._policy = policy
        self._watchman.put(policy)
        self._naming.use_rules(since_ns, policy.rule_name)
        self._watch(policy)

    def _watch(self, policy: Policy) -> None:
        try:
            self._files.watch(policy.watch)
            self._unwatched = ""
        except KernelError as error:
            if not self._unwatched:
                sys.stderr.write(f"guardd: {error.report()}\n")
            self._unwatched = str(error)

    def _reload(self) -> None:
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        sd.notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}")
        path = self._options.policy
        attempt = int(self._guard.about().get("attempt", 0)) + 1
        try:
            policy = load(path)
            self._apply(policy)
        except (PolicyError, KernelError) as error:
            self._refused = True
            self._watchman.refused()
            self._scribe.tell(refusal_notice(error, path))
            self._guard.set_about(refused=brief(error), attempt=attempt)
        else:
            self._refused = False
            self._scribe.tell(policy_notice(policy, path))
            self._guard.set_about(refused=None, attempt=attempt)
        sd.notify("READY=1")

    def _tick(self) -> None:
        for notice in self._watchman.round():
            self._scribe.tell(notice)
        try:
            if (policy := self._watchman.outdated()) is not None:
                self._apply(policy)
        except GuardError as error:
            self._not_renewed(error)
        wrong = self._watchman.unrepaired
        counters = self._guard.counters()
        mode = self._guard.mode.name.lower()
        parts = [
            f"{mode}: {counters[Counter.JUDGED]} connects judged",
            f"{counters[Counter.DENIED]} denied",
            f"{counters[Counter.LOST_RING]} lost",
        ]
        if "links" in wrong:
            parts.insert(0, f"NOT IN FORCE: {wrong['links']}")
        elif wrong:
            parts.insert(0, f"changed by somebody: {', '.join(wrong)}")
        if self._refused:
            parts.append("new policy refused, the old one is in force")
        if self._unwatched:
            parts.append(f"replaced files are not followed: {self._unwatched}")
        if self._scribe.trouble:
            parts.append(f"journald does not take findings: {self._scribe.trouble}")
        sd.notify(f"STATUS={', '.join(parts)}\nWATCHDOG=1")
        if not self._scribe.is_alive():
            raise ScribeDied(hint="findings wait in the kernel for the next guardd")

    def _echo(self, found: Finding | Notice) -> None:
        if self._options.foreground:
            text = message(found) if isinstance(found, Finding) else found.message
            clock = time.strftime("%H:%M:%S", time.localtime(found.time_us / 1e6))
            print(f"{clock} {printable(text)}", flush=True)

    def stop(self) -> None:
        """End; what is in force stays in force."""
        sd.notify("STOPPING=1")
        self._guard.set_about(pid=None, pid_ticks=None)
        if not self._scribe.stop(_STOP_SECONDS):
            sys.stderr.write(f"guardd: {self._scribe.trouble}; findings stay queued\n")
        if self._options.foreground and "links" not in self._watchman.unrepaired:
            mode = self._guard.mode.name.lower()
            sys.stderr.write(
                f"guardd: ended; the guard stays in force ({mode}). To take it out:\n"
                f"  guardctl --pin-dir {self._options.pin_dir} unload\n"
            )
        sys.stderr.flush()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="guardd",
        description="Deny, attribute and journal SMTP connections of this host.",
        epilog="SIGHUP reloads the policy. Stopping guardd does not open the host: "
        "what it loaded stays in force until `guardctl unload`.",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        default=DEFAULT_FILE,
        metavar="FILE",
        help="policy to put in force (default %(default)s)",
    )
    parser.add_argument(
        "--cgroup",
        type=Path,
        metavar="DIR",
        help="cgroup2 folder to guard (default: the root, that is everything)",
    )
    parser.add_argument(
        "--pin-dir",
        type=Path,
        default=kernel.DEFAULT_PIN_DIR,
        metavar="DIR",
        help="where the guard is pinned (default %(default)s)",
    )
    parser.add_argument(
        "--ring-bytes",
        type=int,
        metavar="N",
        help="size of a new ring, a power of two (default: a 64th of the memory, "
        "4 to 64 MiB)",
    )
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="also print what is journalled on standard output",
    )
    parser.add_argument(
        "--version", action="version", version=f"smtp-guard {__version__}"
    )
    options = parser.parse_args(arguments)
    size = options.ring_bytes
    if size is not None and (size < 4096 or size & (size - 1)):
        parser.error("--ring-bytes must be a power of two, at least 4096")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run guardd; exits with the status of errors.py on failure."""
    options = _options(arguments)
    try:
        if os.geteuid():
            raise NotRoot("guardd")
        if options.cgroup is None:
            options.cgroup = kernel.find_cgroup2()
        daemon = Daemon(options)
        daemon.start()
        daemon.run()
    except GuardError as error:
        name = "" if isinstance(error, NotRoot) else "guardd: "
        sys.stderr.write(f"{name}{error.report()}\n")
        sd.notify(f"STATUS={error}\nERRNO=1")
        raise SystemExit(error.exit_status) from None
    daemon.stop()
    # not sys.exit: a scribe that hangs must not be waited for, see Scribe.stop
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
