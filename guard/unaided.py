# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd where our kernel programs cannot be loaded: the owner design.

The policy as rules of netfilter by user, group and unit; what it records is looked
up in /proc. What is lost by that is said: rules that name an executable (owner.py),
senders that end before they are found, connections that another namespace makes.
The rules stay in force when this ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard import __version__
from guard.backstop.keeper import Keeper, compare
from guard.backstop.lock import Design
from guard.backstop.owner import untold
from guard.backstop.witness import Witness
from guard.checks import Check, State, good
from guard.errors import (
    AlreadyRunning,
    BackstopError,
    GuardError,
    KernelError,
    PolicyError,
)
from guard.filewatch import FileWatch
from guard.finding import Kind, Notice
from guard.force import policy_notice, refusal_notice, start_ticks
from guard.incident import Incidents, Subject
from guard.kernel import is_loaded
from guard.policy import Policy, load, refresh
from guard.scribe import Clerk
from guard.service import Service
from guard.watch import Clock, Files

STATE_DIR = Path("/run/smtp-guard")


def state_file(pin_dir: Path) -> Path:
    """Give where a guardd of this design says what it has put in force."""
    return STATE_DIR / f"{pin_dir.name}.json"


def read_state(pin_dir: Path) -> dict[str, Any] | None:
    """Give what a guardd of this design has put in force; None: nothing."""
    try:
        return dict(json.loads(state_file(pin_dir).read_text()))
    except (OSError, ValueError):
        return None


def served_by(path: Path) -> int | None:
    """Give the pid of the guardd that wrote this state; None: it has ended."""
    try:
        state = json.loads(path.read_text())
        pid = int(state["pid"])
        return pid if start_ticks(pid) == state["pid_ticks"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def examine(state: dict[str, Any], pin_dir: Path) -> Iterator[Check]:
    """Answer what can be asked about rules that read_state() tells of."""
    mode = state.get("mode")
    yield Check("guard", State.NOTE, f"in force without kernel programs, {mode}")
    yield compare(state.get("backstop") or {}, pin_dir)
    pid = served_by(state_file(pin_dir))
    if pid is None:
        yield Check(
            "guardd",
            State.WARN,
            "not running: what is denied stays denied, but nobody journals",
            "start guardd --design owner again",
        )
    else:
        yield good("guardd", f"pid {pid}; a changed policy: kill -HUP {pid}")


class Unaided(Service):
    """One run of guardd without our kernel programs."""

    def start(self) -> None:
        """Put the rules in force. Raises GuardError, with nothing half done."""
        options = self._options
        self.catch_signals()
        if is_loaded(options.pin_dir):
            raise BackstopError(
                f"a guard is loaded under {options.pin_dir}, which can do more",
                hint="guardd without --design owner serves it; or guardctl unload",
            )
        self._be_only_one()
        policy = load(options.policy)
        self._keeper = Keeper(options.pin_dir, None)
        self._scribe = Clerk(self.echo)
        self._witness = Witness(self._naming, self._scribe.tell)
        self._files = FileWatch()
        self._refused = ""
        self._put(policy)
        self._incidents = Incidents()
        self._file = Files(options.policy, policy)
        self._subjects = [
            Subject(self._keeper.look, self._keeper.put_back),
            Subject(self._file.look),
        ]
        self._clock = Clock()
        self._scribe.start()
        self._scribe.tell(_loaded(self._keeper))
        self._scribe.tell(policy_notice(policy, options.policy))
        self._scribe.tell(_weaker(policy))
        self.register(self._files, self._on_files)

    def _be_only_one(self) -> None:
        STATE_DIR.mkdir(mode=0o755, exist_ok=True)
        place = state_file(self._options.pin_dir).with_suffix(".lock")
        self._only = place.open("w")  # for as long as this process lives
        try:
            fcntl.flock(self._only, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                "this host without kernel programs",
                hint="stop it first: systemctl stop smtp-guard",
            ) from None

    def _put(self, policy: Policy) -> None:
        """Put a policy in force; on BackstopError the old one stays, whole."""
        self._keeper.try_out(policy, Design.OWNER)
        self._keeper.put(policy, Design.OWNER)
        self._policy = policy
        self.heed(policy)
        self.follow(policy)
        self._record()

    def _record(self) -> None:
        path = state_file(self._options.pin_dir)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self._state()))
        new.rename(path)

    def _state(self) -> dict[str, Any]:
        return {
            "design": "owner",
            "mode": self._policy.mode.name.lower(),
            "policy": str(Path(self._options.policy).absolute()),
            "policy_sha256": self._policy.sha256.hex(),
            "ports": sorted(self._policy.ports),
            "backstop": self._keeper.record(),
            "refused": self._refused or None,
            "weaker": [
                {"rule": rule.label, "what": what}
                for rule, what in untold(self._policy)
            ],
            "pid": os.getpid(),
            "pid_ticks": start_ticks(os.getpid()),
            "version": __version__,
        }

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
        except (PolicyError, KernelError, BackstopError) as error:
            self._refused = str(error)
            self._file.read(self._policy, refused=True)
            self._scribe.tell(refusal_notice(error, path))
        else:
            self._refused = ""
            self._file.read(policy)
            self._scribe.tell(policy_notice(policy, path))
        self._record()

    def tick(self) -> None:
        """Look at everything, and say how it is."""
        now = time.monotonic()
        notices = self._clock.look()
        for subject in self._subjects:
            notices += self._incidents.examine(subject, now, self._policy.repair)
        for notice in notices:
            self._scribe.tell(notice)
        if self._keeper.renewed:  # an uplink came or went, a unit began or ended
            self._record()
        self._witness.tick()
        mode = self._policy.mode.name.lower()
        parts = [f"{mode}, without kernel programs: rules of {self._keeper.kind}"]
        if wrong := self._incidents.unrepaired:
            parts.insert(0, f"changed by somebody: {', '.join(wrong)}")
        if self._refused:
            parts.append("new policy refused, the old one is in force")
        self.say(parts)

    def stop(self) -> None:
        """End; the rules stay in force, with nobody to tell what they meet."""
        self.finish("findings are lost")
        if self._options.foreground:
            sys.stderr.write(
                "guardd: ended; the rules stay in force. To take them out:\n"
                f"  guardctl --pin-dir {self._options.pin_dir} unload\n"
            )
        sys.stderr.flush()


def _loaded(keeper: Keeper) -> Notice:
    return Notice(
        Kind.LOADED,
        time.time_ns() // 1000,
        f"guard in force without kernel programs: smtp-guard {__version__}, "
        f"rules of {keeper.kind} by user, group and unit",
        priority=4,
        fields={"VERSION": __version__, "DESIGN": "owner"},
    )


def _weaker(policy: Policy) -> Notice:
    """Make the finding of what the policy says and netfilter cannot compare."""
    parts = [f"{rule.label} {what}" for rule, what in untold(policy)]
    text = "; ".join(parts) or "nothing is lost by it"
    return Notice(
        Kind.LOADED,
        time.time_ns() // 1000,
        f"what this design cannot say: {text}"[:2000],
        priority=4 if parts else 6,
        fields={"WEAKER": str(len(parts))},
    )
