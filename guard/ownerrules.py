# SPDX-License-Identifier: GPL-2.0-or-later
"""The owner design in force: the policy as rules of netfilter, and their record.

By user, group and unit, where our kernel programs cannot be loaded. What is lost by
that is said: rules that name an executable (backstop/owner.py), senders that end
before they are found, connections that another namespace makes. The rules stay in
force when the process that put them ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard import __version__, lastpolicy
from guard.backstop.keeper import Keeper, compare
from guard.backstop.lock import Design
from guard.backstop.owner import lost
from guard.checks import Check, State, good
from guard.errors import AlreadyRunning, BackstopError, GuardError, NoPrograms
from guard.finding import Kind, Notice
from guard.force import policy_notice, refusal_notice
from guard.kernel import remains
from guard.policy import Policy
from guard.policy.describe import smart_host_json
from guard.serving import process_of, this_process

STATE_DIR = Path("/run/smtp-guard")


def state_file(pin_dir: Path) -> Path:
    """Give where it is recorded what is in force in this design."""
    return STATE_DIR / f"{pin_dir.name}.json"


def _lock_file(pin_dir: Path) -> Path:
    return state_file(pin_dir).with_suffix(".lock")


def write_anew(path: Path, text: str) -> None:
    """Write a file in STATE_DIR, in place of what is there. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    # x: root writes into a folder of guardd's user, who could put a link there
    with new.open("x") as stream:
        stream.write(text)
    new.rename(path)


def read_state(pin_dir: Path) -> dict[str, Any] | None:
    """Give what is recorded to be in force in this design; None: nothing."""
    try:
        return dict(json.loads(state_file(pin_dir).read_text()))
    except (OSError, ValueError):
        return None


def stands(pin_dir: Path) -> bool:
    """Tell whether anything guards this host, of either design, whole or not.

    Raises KernelError where this process may not look.
    """
    return remains(pin_dir) or state_file(pin_dir).exists()


def served_by(pin_dir: Path) -> int | None:
    """Give the pid of the guardd that serves such a record; None: it has ended."""
    record, lock = read_state(pin_dir) or {}, _lock_file(pin_dir)
    with process_of(record, STATE_DIR, lock) as found:
        return found[0] if found else None


def not_served(pin_dir: Path) -> None:
    """Raise AlreadyRunning while a guardd of this design serves the host."""
    if (pid := served_by(pin_dir)) not in (None, os.getpid()):
        raise AlreadyRunning(
            f"this host without kernel programs (pid {pid})",
            hint="stop it first: systemctl stop smtp-guard",
        )


def examine(state: dict[str, Any], pin_dir: Path) -> Iterator[Check]:
    """Answer what can be asked about rules that read_state() tells of."""
    mode, why = state.get("mode"), state.get("why")
    yield Check(
        "guard",
        State.NOTE,
        f"in force without kernel programs, {mode}: {why}",
        'require = "bpf" in the policy refuses this',
    )
    yield compare(state.get("backstop") or {}, pin_dir)
    pid = served_by(pin_dir)
    if pid is None:
        yield Check(
            "guardd",
            State.WARN,
            "not running: what is denied stays denied, but nobody journals",
            "systemctl start smtp-guard, or guardd by hand",
        )
    else:
        yield good("guardd", f"pid {pid}; a changed policy: kill -HUP {pid}")


@contextlib.contextmanager
def only_one_owner(pin_dir: Path) -> Iterator[None]:
    """Be the only process that changes the rules of this design.

    Raises AlreadyRunning, and BackstopError where kernel programs are in force.
    """
    if remains(pin_dir):
        raise BackstopError(
            f"a guard is loaded under {pin_dir}, which can do more",
            hint="guardd without --design owner serves it; or guardctl unload",
        )
    STATE_DIR.mkdir(mode=0o755, exist_ok=True)
    # no more than to read it: it may be another user's, root's or guardd's
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(_lock_file(pin_dir), flags, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise AlreadyRunning(
            "this host without kernel programs",
            hint="stop it first: systemctl stop smtp-guard",
        ) from None
    finally:
        os.close(lock)


class OwnerRules:
    """The rules of one host; nothing is touched before put()."""

    policy: Policy

    def __init__(self, pin_dir: Path, file: Path, why: str) -> None:
        """Say which policy file, and why there are no kernel programs."""
        self.keeper = Keeper(pin_dir, None)
        self.why = why
        self.refusal: GuardError | None = None  # why the file is not in force
        self.served = False  # by this process, which goes on
        self.passing = False  # why there are none may pass
        self._file = file.absolute()
        self._state_file = state_file(pin_dir)

    def bring_up(self) -> list[Notice]:
        """Put the policy file in force, or else the last good policy.

        Gives the findings of it. Raises PolicyError where there is neither, NoPrograms
        where the policy wants nothing but kernel programs, BackstopError.
        """
        policy, refused = lastpolicy.load_or_kept(self._file)
        self.refusal = refused
        self.put(policy)
        told = policy_notice(policy, self._file)
        if refused:
            told = refusal_notice(refused, self._file, kept=True)
        return [self._loaded(), told, self._weaker()]

    def put(self, policy: Policy) -> None:
        """Put a policy in force; on GuardError the old one stays, whole."""
        if policy.needs_bpf:
            raise NoPrograms(
                self.why,
                passing=self.passing,
                hint='the policy says require = "bpf"; guardctl doctor tells what '
                "this host lacks",
            )
        self.keeper.try_out(policy, Design.OWNER)
        self.keeper.put(policy, Design.OWNER)
        self.policy = policy
        lastpolicy.keep(policy)
        self.record()

    def record(self) -> None:
        """Write down what is in force, for guardctl and the next guardd."""
        write_anew(self._state_file, json.dumps(self._state()))

    def _state(self) -> dict[str, Any]:
        served: dict[str, int | None] = {"pid": None, "pid_ticks": None}
        if self.served:
            served.update(this_process())
        return {
            "design": "owner",
            "why": self.why,
            "mode": self.policy.mode.name.lower(),
            "policy": str(self._file),
            "policy_sha256": self.policy.sha256.hex(),
            "ports": sorted(self.policy.ports),
            "backstop": self.keeper.record(),
            "refused": str(self.refusal) if self.refusal else None,
            "weaker": [
                {"rule": name, "what": what} for name, what in lost(self.policy)
            ],
            "smart_host": smart_host_json(self.policy),
            **served,
            "version": __version__,
        }

    def _loaded(self) -> Notice:
        kind = self.keeper.kind
        return Notice(
            Kind.LOADED,
            time.time_ns() // 1000,
            f"guard in force without kernel programs: smtp-guard {__version__}, "
            f"rules of {kind} by user, group and unit; {self.why}"[:2000],
            priority=4,
            fields={"VERSION": __version__, "DESIGN": "owner"},
        )

    def _weaker(self) -> Notice:
        """Make the finding of what the policy says and netfilter cannot compare."""
        parts = [f"{name} {what}" for name, what in lost(self.policy)]
        text = "; ".join(parts) or "nothing is lost by it"
        return Notice(
            Kind.LOADED,
            time.time_ns() // 1000,
            f"what this design cannot say: {text}"[:2000],
            priority=4 if parts else 6,
            fields={"WEAKER": str(len(parts))},
        )


def load_owner_rules(
    pin_dir: Path, file: Path, why: str
) -> tuple[list[Notice], GuardError | None]:
    """Put the rules in force for a guardd to serve later.

    Gives the findings, and why the file is not what is in force. Raises GuardError,
    see only_one_owner() and OwnerRules.bring_up().
    """
    with only_one_owner(pin_dir):
        rules = OwnerRules(pin_dir, file, why)
        return rules.bring_up(), rules.refusal


def programs_notice(why: str) -> Notice:
    """Make the finding that kernel programs can be loaded now, which could not be."""
    return Notice(
        Kind.LOADED,
        time.time_ns() // 1000,
        f"kernel programs can be loaded by now, and are (before: {why}); the rules of "
        "netfilter stay until then"[:2000],
        fields={"VERSION": __version__, "DESIGN": "owner"},
    )


def no_programs(error: GuardError) -> str:
    """Say in one line why the owner design is what there is."""
    return one_line(str(error.args[0]))


def one_line(why: str) -> str:
    """Shorten a reason for records and the status."""
    return why.splitlines()[0][:300]
