# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd where our kernel programs cannot be loaded: it serves ownerrules.py.

What the rules record is looked up in /proc. The rules stay in force when this ends.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time

from guard.backstop.witness import Witness
from guard.errors import BackstopError, GuardError, KernelError, NoPrograms, PolicyError
from guard.filewatch import FileWatch
from guard.force import policy_notice, refusal_notice
from guard.incident import Incidents, Subject
from guard.ownerrules import OwnerRules, one_line, only_one_owner, programs_notice
from guard.policy import Policy, load, refresh
from guard.scribe import Clerk
from guard.service import Service
from guard.told import is_news
from guard.trial import Trial
from guard.waiting import pause, tries
from guard.watch import Clock, Files


class Unaided(Service):
    """One run of guardd without our kernel programs."""

    def __init__(
        self, options: argparse.Namespace, why: str, passing: bool = False
    ) -> None:
        """Keep the options, and why there are no kernel programs.

        passing: there may be in a while, so that they are tried again.
        """
        super().__init__(options)
        self._why = why
        self._passing = passing
        self._tries = tries()
        self._try_at = 0.0
        self._trial: Trial | None = None

    def start(self) -> None:
        """Put the rules in force. Raises GuardError, with nothing half done."""
        options = self._options
        self.catch_signals()
        with contextlib.ExitStack() as stack:
            stack.enter_context(only_one_owner(options.pin_dir))
            self._rules = OwnerRules(options.pin_dir, options.policy, self._why)
            self._rules.served = True
            self._rules.passing = self._passing
            notices = self._rules.bring_up()
            self._only = stack.pop_all()  # for as long as this process lives
        self._keeper = self._rules.keeper
        self._scribe = Clerk(self.echo)
        self._witness = Witness(self._naming, self._scribe.tell)
        self._files = FileWatch()
        self._listen()
        self._incidents = Incidents()
        self._file = Files(options.policy, self._policy)
        if self._rules.refusal:
            self._file.read(self._policy, refused=True)
        self._subjects = [
            Subject(self._keeper.look, self._keeper.put_back),
            Subject(self._file.look),
        ]
        self._clock = Clock()
        self.begin(self._scribe)
        # not each time that programs were tried in vain
        if is_news(options.pin_dir, self._why) or not tries():
            for notice in notices:
                self._scribe.tell(notice)
        self.relay_by(self._policy)
        self._wait_for_programs()
        self.register(self._files, self._on_files)

    @property
    def _policy(self) -> Policy:
        return self._rules.policy

    def _listen(self) -> None:
        self.heed(self._policy)
        self.follow(self._policy)

    def _put(self, policy: Policy) -> None:
        self._rules.put(policy)
        self._listen()
        self.relay_by(policy)

    def _on_files(self) -> None:
        """Follow an account that was made or changed."""
        if not self._files.changed():
            return
        self.follow(self._policy)
        try:
            self._put(refresh(self._policy))
        except GuardError as error:
            self._scribe.tell(refusal_notice(error, self._options.policy))

    def reload(self) -> None:
        """Read the policy file again and put it in force, or keep the old one."""
        path = self._options.policy
        try:
            policy = load(path)
            self._put(policy)
        except (PolicyError, KernelError, BackstopError, NoPrograms) as error:
            self._rules.refusal = error
            self._file.read(self._policy, refused=True)
            self._scribe.tell(refusal_notice(error, path))
        else:
            self._rules.refusal = None
            self._file.read(policy)
            self._scribe.tell(policy_notice(policy, path))
        self._rules.record()

    def _wait_for_programs(self) -> None:
        seconds = pause(self._tries) if self._passing else math.inf
        self._try_at = time.monotonic() + seconds

    def _try_programs(self) -> None:
        """Where the kernel takes our programs by now, have another run load them.

        These rules stay until it has, see daemon.py.
        """
        if self._trial is None:
            try:
                self._trial = Trial(self._options.cgroup)
            except OSError:  # what there is none of was why, most likely
                self._tries += 1
                self._wait_for_programs()
            return
        if not self._trial.over():
            return
        why, passing = self._trial.result()
        self._trial = None
        if not why:
            self._scribe.tell(programs_notice(self._why))
            self.anew = True
            return
        self._tries += 1
        self._why, self._passing = one_line(why), passing
        self._rules.why, self._rules.passing = self._why, passing
        self._rules.record()
        self._wait_for_programs()

    def tick(self) -> None:
        """Look at everything, and say how it is."""
        now = time.monotonic()
        if now >= self._try_at:
            self._try_programs()
        notices = self._clock.look()
        for subject in self._subjects:
            notices += self._incidents.examine(subject, now, self._policy.repair)
        for notice in notices:
            self._scribe.tell(notice)
        if self._keeper.renewed:  # an uplink came or went, a unit began or ended
            self._rules.record()
        self._witness.tick()
        mode = self._policy.mode.name.lower()
        parts = [
            f"{mode}, without kernel programs: rules of {self._keeper.kind}",
            self._why,
        ]
        if wrong := self._incidents.unrepaired:
            parts.insert(0, f"changed by somebody: {', '.join(wrong)}")
        if self._passing:
            parts.append("kernel programs are tried again")
        if self._rules.refusal:
            parts.append("new policy refused, the old one is in force")
        self.say(parts)

    def stop(self) -> None:
        """End; the rules stay in force, with nobody to tell what they meet."""
        self.finish("findings are lost")
        if self._options.foreground and not self.anew:
            sys.stderr.write(
                "guardd: ended; the rules stay in force. To take them out:\n"
                f"  guardctl --pin-dir {self._options.pin_dir} unload\n"
            )
        sys.stderr.flush()
