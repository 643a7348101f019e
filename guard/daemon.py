# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd: puts the guard in force, keeps it current, and journals what it finds.

Wiring only. The main thread keeps the kernel's maps current (policy, executables,
the host's addresses); the scribe carries events to the journal. Neither ending
opens a port: programs and maps are pinned and stay in force. Where they cannot be
loaded it does without them, see unaided.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from systemd import daemon as sd

from guard import __version__, lastpolicy
from guard.abi import Counter
from guard.backstop.witness import Witness
from guard.errors import (
    BackstopError,
    GuardError,
    KernelError,
    NoPrograms,
    NotPrivileged,
    PolicyError,
    ThreadDied,
)
from guard.filewatch import FileWatch
from guard.force import (
    brief,
    bring_up,
    for_programs,
    policy_notice,
    put_in_force,
    record_daemon,
    refusal_notice,
)
from guard.hosts import AddressNews, is_own, own_addresses
from guard.makers import Makers
from guard.mta.handins import Handins
from guard.mta.limits import counts_file
from guard.mta.losses import messages_lost, not_answered
from guard.mta.owed import Owed, owed_file
from guard.mta.policy_service import PolicyService
from guard.ownerrules import no_programs, not_served, state_file
from guard.pins import DEFAULT_PIN_DIR
from guard.policy import DEFAULT_FILE, Policy, load, refresh
from guard.preexisting import Before
from guard.privileges import SERVICE, missing
from guard.requests import Requests
from guard.scribe import Scribe
from guard.service import Service
from guard.told import forget
from guard.unaided import Unaided
from guard.waiting import Waiting, begin_anew
from guard.watch import Watch, changed_meanwhile

_MAIL_SECONDS = 2.0  # at the end, to take Postfix's socket away; likewise its probe


class Daemon(Service):
    """One run of guardd that serves our kernel programs."""

    def start(self) -> None:
        """Put the guard in force. Raises GuardError, with nothing half done.

        NoPrograms is what Unaided is for.
        """
        options = self._options
        self.catch_signals()
        not_served(options.pin_dir)
        with contextlib.ExitStack() as stack:
            cgroup = stack.enter_context(for_programs(options.pin_dir, options.cgroup))
            changed = changed_meanwhile(options.pin_dir, options.policy)
            started = bring_up(
                options.pin_dir, cgroup, options.policy, options.ring_bytes
            )
            self._only = stack.pop_all()  # for as long as this process lives
        self._guard = started.guard
        forget(options.pin_dir)
        # what was in force without programs was replaced
        state_file(options.pin_dir).unlink(missing_ok=True)
        self._addresses = AddressNews()
        self._own = own_addresses()  # once more: now none is missed
        self._guard.set_hosts(self._own)
        self._files = FileWatch()
        self._policy = started.policy
        if started.policy:
            self._naming.use_rules(started.since_ns, started.policy.rule_name)
            self.follow(started.policy)
        record_daemon(self._guard)
        self._keeper = started.keeper
        self._watchman = Watch(
            self._guard, cgroup, options.policy, self._policy, self._keeper
        )
        self._refused = started.refused is not None
        if self._refused:
            self._watchman.refused()
        owed = Owed(owed_file(options.pin_dir))
        self._scribe = Scribe(self._guard, self._naming, self.echo, owed)
        self.begin(self._scribe)
        makers = Makers(self._guard)
        self._witness = Witness(self._naming, self._scribe.tell, makers)
        if started.policy:
            self.heed(started.policy)
        self._mail = PolicyService(
            self._guard.sender,
            self._naming,
            self._scribe,
            lambda address: is_own(address, self._own),
            counts_file(options.pin_dir),
        )
        if started.policy:
            self._mail.serve(started.policy)
        self._handins = Handins(self._naming, self._scribe.tell, self._guard.home)
        self.begin(self._mail, self._handins)
        self._mail_record: dict[str, Any] = {}
        for notice in (*changed, *started.notices(options.policy)):
            self._scribe.tell(notice)
        self._tell_lost(owed)
        if started.policy:
            self.relay_by(started.policy)
            self._guard.set_about(smart_host=self._smart_host.record())
        self.register(self._addresses, self._on_addresses)
        self.register(self._files, self._on_files)
        before = Before(self._guard, lambda: self._policy, self._scribe.tell)
        self._requests = Requests(self._guard)
        self.begin(before, self._requests)

    def _on_addresses(self) -> None:
        self._addresses.drain()
        try:
            self._own = own_addresses()
            self._guard.set_hosts(self._own)
        except KernelError as error:  # E2BIG: those that fit are in
            sys.stderr.write(f"guardd: addresses of this host: {error.report()}\n")

    def _on_files(self) -> None:
        """Follow an executable that was replaced, an account that was made.

        No mail waits for this: the kernel also knows an executable by its name
        in its directory, which holds from the moment of the rename.
        """
        if not self._files.changed() or self._policy is None:
            return
        self.follow(self._policy)
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
        put_in_force(self._guard, policy, self._keeper)
        # after, not before: the one store that switches is near the end of it
        since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        before, self._policy = self._policy, policy
        lastpolicy.keep(policy)
        # before Postfix is answered by them. Not for new addresses of the smart host or
        # a change of /etc/passwd: so many are remembered, and a connection may be old
        if before is None or before.rule_names != policy.rule_names:
            self._naming.use_rules(since_ns, policy.rule_name)
        self._mail.serve(policy)
        self._watchman.put(policy)
        self.heed(policy)
        self.follow(policy)
        self.relay_by(policy)
        self._guard.set_about(smart_host=self._smart_host.record())

    def reload(self) -> None:
        """Read the policy file again and put it in force, or keep the old one."""
        path = self._options.policy
        attempt = int(self._guard.about().get("attempt", 0)) + 1
        try:
            policy = load(path)
            self._apply(policy)
        except (PolicyError, KernelError, BackstopError) as error:
            self._refused = True
            self._watchman.refused()
            self._scribe.tell(refusal_notice(error, path))
            self._guard.set_about(refused=brief(error), attempt=attempt)
        else:
            self._refused = False
            self._scribe.tell(policy_notice(policy, path))
            self._guard.set_about(refused=None, attempt=attempt)

    def tick(self) -> None:
        """Look at everything, and say how it is."""
        for notice in self._watchman.round():
            self._scribe.tell(notice)
        try:
            if (policy := self._watchman.outdated()) is not None:
                self._apply(policy)
        except GuardError as error:
            self._not_renewed(error)
        if self._keeper.renewed:  # an uplink came or went
            self._guard.set_about(backstop=self._keeper.record())
        self._witness.tick()
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
        if self._mail.trouble:
            parts.append(f"Postfix is not answered: {self._mail.trouble}")
        parts += self._mail.doubts
        if self._handins.trouble:
            parts.append(f"sendmail(1) is not followed: {self._handins.trouble}")
        self._record_mail()
        if self._requests.trouble:
            parts.append(f"requests of PHP are not told: {self._requests.trouble}")
        if self._keeper.lacking:
            parts.append(f"no second lock: {self._keeper.why}")
        self.say(parts)

    def _tell_lost(self, owed: Owed) -> None:
        """Tell of messages that were not written when the last guardd was ended."""
        if owed.left:
            self._scribe.tell_expected(messages_lost(owed.left))
        elif owed.trouble:
            sys.stderr.write(f"guardd: {owed.trouble}: of messages within a second of")
            sys.stderr.write(" its end the next guardd will not know\n")
            if lost := self._guard.about().get("mail", {}).get("waiting"):
                self._scribe.tell(messages_lost(int(lost)))

    def _record_mail(self) -> None:
        """Have status, and the next guardd, know what became of messages."""
        refused = self._mail.refused
        if moved := refused - int(self._mail_record.get("refused", 0)):
            self._scribe.tell(not_answered(moved))
        mail = {
            "sendmail": self._handins.state,
            "refused": refused,
            "waiting": self._scribe.messages_waiting,
        }
        if mail != self._mail_record:
            self._guard.set_about(mail=mail)
            self._mail_record = mail

    def stop(self) -> None:
        """End; what is in force stays in force."""
        self._guard.set_about(pid=None, pid_ticks=None)
        self._mail.stop(_MAIL_SECONDS)
        self._handins.stop(_MAIL_SECONDS)
        self.finish("findings stay queued")
        self._record_mail()
        if self._options.foreground and "links" not in self._watchman.unrepaired:
            mode = self._guard.mode.name.lower()
            sys.stderr.write(
                f"guardd: ended; the guard stays in force ({mode}). To take it out:\n"
                f"  guardctl --pin-dir {self._options.pin_dir} unload\n"
            )
        sys.stderr.flush()


def command_line() -> argparse.ArgumentParser:
    """Make the parser of guardd's options."""
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
        default=DEFAULT_PIN_DIR,
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
        "--design",
        choices=("auto", "bpf", "owner"),
        default="auto",
        help="bpf: kernel programs; owner: rules of netfilter by user, group and unit; "
        "auto: the one, or the other where programs cannot be loaded (default "
        "%(default)s)",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="where nothing can be put in force, tell it and wait for the policy file "
        "to change, or SIGHUP, instead of ending",
    )
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="also print what is journalled on standard output",
    )
    parser.add_argument(
        "--resolve",
        action="store_true",
        help="do nothing but look up the smart host, for the guardd that asks for it; "
        "this needs no privilege, and is what smtp-guard-names.service does",
    )
    parser.add_argument(
        "--version", action="version", version=f"smtp-guard {__version__}"
    )
    return parser


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_line()
    options = parser.parse_args(arguments)
    size = options.ring_bytes
    if size is not None and (size < 4096 or size & (size - 1)):
        parser.error("--ring-bytes must be a power of two, at least 4096")
    return options


def _start(options: argparse.Namespace) -> Service:
    """Put the guard in force, in the design asked for or the best there is."""
    if lacking := missing(*SERVICE):
        raise NotPrivileged("guardd", ", ".join(lacking))
    service: Service
    why, passing = "asked for by --design owner", False
    if options.design != "owner":
        try:
            service = Daemon(options)
            service.start()
            return service
        except NoPrograms as error:
            if options.design == "bpf":
                raise
            why, passing = no_programs(error), error.passing
    service = Unaided(options, why, passing)
    service.start()
    return service


def main(arguments: list[str] | None = None) -> None:
    """Run guardd; exits with the status of errors.py on failure."""
    options = _options(arguments)
    if options.resolve:
        from guard import names  # guardd itself has no use for a library of DNS

        names.run()
        return
    try:
        try:
            daemon = _start(options)
        except GuardError as error:
            if not options.wait:
                raise
            daemon = Waiting(options, error)
            daemon.start()
        try:
            daemon.run()
        except ThreadDied as error:
            daemon.give_up(error)
            raise
    except GuardError as error:
        name = "" if isinstance(error, NotPrivileged) else "guardd: "
        sys.stderr.write(f"{name}{error.report()}\n")
        sd.notify(f"STATUS={error}\nERRNO=1")
        raise SystemExit(error.exit_status) from None
    daemon.stop()
    if daemon.anew:
        begin_anew(daemon.asked)
    # not sys.exit: a scribe that hangs must not be waited for, see Scribe.stop
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
