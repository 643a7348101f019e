# SPDX-License-Identifier: GPL-2.0-or-later
"""What Postfix is answered: may this process of the host send this message?

The kernel has judged the connection by the [[local.rule]]s already, so who it is from
is not asked again: the rule that let it pass says whether it must log in.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from guard.abi import SCRIPT_LEN, Flag
from guard.errors import MtaError
from guard.event import Event
from guard.mta.delegation import DATA, END_OF_MESSAGE, Request
from guard.mta.limits import Counts, Met
from guard.origin import Naming, lasting_unit
from guard.policy.model import Limit, Policy, Rule
from guard.script import told_script

# Their texts go to SMTP clients: plain ASCII, and nothing that a process chose.
_TEXTS = {
    "no-login": "a program of this host is to log in (SASL, port 587) before it"
    " sends; the administrator may name it in a [[local.rule]] instead",
    "unknown-origin": "which program of this host sends this is not known; log in"
    " (SASL, port 587), or try again",
    "limit": "limit {}: so many messages or recipients are not sent in a minute or an"
    " hour",
}
# access(5), with the enhanced status codes of RFC 3463
_ACTIONS = {
    "defer": "DEFER 4.7.1 smtp-guard: {}",
    "reject": "REJECT 5.7.1 smtp-guard: {}",
    "hold": "HOLD smtp-guard: {}",
}
# Before MAIL a client may still log in; ETRN and VRFY send nothing.
_AFTER_LOGIN = ("MAIL", "RCPT", DATA, END_OF_MESSAGE)
# A path of a mount namespace that a user may have made is none of this host's: in a
# user namespace anybody mounts what he likes anywhere.
_DOUBTS = Flag.FOREIGN_MOUNTS | Flag.FOREIGN_USERNS


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policy says about a message, and whether Postfix is told so."""

    answer: str = "dunno"  # dunno, defer, hold, reject
    reason: str = ""  # no-login, unknown-origin, limit
    limit: str = ""  # its name
    in_force: bool = True
    met: list[Met] = field(default_factory=list)  # limits met the first time

    @property
    def refuses(self) -> bool:
        """Tell whether the message is not taken."""
        return self.in_force and self.answer in ("defer", "reject")

    @property
    def action(self) -> str:
        """Give what Postfix is told, in the words of access(5)."""
        if self.answer == "dunno" or not self.in_force:
            return "DUNNO"
        return _ACTIONS[self.answer].format(_TEXTS[self.reason].format(self.limit))


DUNNO = Answer()


def say(text: str) -> None:
    """Complain on standard error, if anybody reads that."""
    with contextlib.suppress(OSError):  # a journald that went away ends no answers
        sys.stderr.write(f"guardd: {text}\n")


class Admission:
    """Decides by the policy in force."""

    def __init__(
        self, naming: Naming, is_own: Callable[[str], bool], counts: Counts
    ) -> None:
        """is_own tells whether an address is the host's; naming knows the rules."""
        self._naming, self._is_own, self._counts = naming, is_own, counts
        self._policy: Policy | None = None
        self._vouching: dict[str, Rule] = {}
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """Why messages are not counted; "" when they are, or are not to be."""
        return self._trouble

    def follow(self, policy: Policy) -> None:
        """Decide by this policy from now on."""
        self._policy = policy
        self._vouching = {rule.name: rule for rule in policy.rules if rule.vouches}
        self._trouble = ""
        if policy.mta.limits:
            self._try_to(lambda: self._counts.put(policy))

    @property
    def decides(self) -> bool:
        """Tell whether there is anything to decide, at whatever state."""
        if self._policy is None:
            return False
        return bool(self._policy.mta.limits) or not self._policy.mta.relay_mynetworks

    def asks_at(self, state: str) -> bool:
        """Tell whether an answer at this state depends on who sends."""
        if self._policy is None:
            return False
        mta = self._policy.mta
        counts = state == END_OF_MESSAGE and bool(mta.limits)
        return counts or (state in _AFTER_LOGIN and not mta.relay_mynetworks)

    def decide(self, request: Request, event: Event | None) -> Answer:
        """Answer a request about the message of a connection; None: of nobody known.

        At the end of the message it is counted, too.
        """
        if self._policy is None:
            return DUNNO
        in_force = self._policy.mta_enforces
        answer, reason = self._login(request, event)
        if answer != "dunno" and in_force:
            return Answer(answer, reason)
        if request.state != END_OF_MESSAGE or event is None:
            return Answer(answer, reason, in_force=in_force)
        met, news = self._count(request, event)
        if answer == "dunno" and met and met.action != "notify":
            return Answer(met.action, "limit", met.name, in_force, news)
        return Answer(answer, reason, in_force=in_force, met=news)

    # ---- who must log in

    def _login(self, request: Request, event: Event | None) -> tuple[str, str]:
        assert self._policy
        mta = self._policy.mta
        if mta.relay_mynetworks or request.sasl_user:
            return "dunno", ""
        name = "" if event is None else self._naming.rule_of(event)
        if event is None or name == "":
            return self._unknown(request, event)
        rule = self._vouching.get(name) if name else None
        if rule and (rule.folders is None or _works_in(event, rule)):
            return "dunno", ""
        return "reject", "no-login"

    def _unknown(self, request: Request, event: Event | None) -> tuple[str, str]:
        """A client elsewhere is Postfix's to judge, as ever."""
        assert self._policy
        address = request.address
        if event is None and address is not None and not self._is_own(address):
            return "dunno", ""
        word = self._policy.mta.unknown
        return ("dunno" if word == "pass" else word), "unknown-origin"

    # ---- limits

    def _count(self, request: Request, event: Event) -> tuple[Limit | None, list[Met]]:
        assert self._policy
        name = self._naming.rule_of(event)
        limited = [
            (limit, _origin(limit, event))
            for limit in self._policy.mta.limits
            if limit.rules is None or name in limit.rules
        ]
        found: list[tuple[Limit | None, list[Met]]] = []
        enforce = self._policy.mta_enforces
        if limited:
            self._try_to(
                lambda: found.append(
                    self._counts.take(
                        request.instance, limited, request.recipients, enforce
                    )
                )
            )
        return found[0] if found else (None, [])

    def _try_to(self, count: Callable[[], None]) -> None:
        """No mail waits for a full disk: it is not counted, and that is told."""
        try:
            count()
            self._trouble = ""
        except MtaError as error:
            if str(error) != self._trouble:
                say(f"messages are not counted: {error.report()}")
            self._trouble = str(error)


def _works_in(event: Event, rule: Rule) -> bool:
    """Tell whether a rule's folders have the process, and the script that PHP told of.

    Both: that a process is in a folder the kernel knows, but any script may go into one
    that its user may enter; which script it is stands in the memory of its process, so
    that who runs a program of his own may lie, but a script cannot that PHP runs.
    """
    folders = [_working_folder(event)]
    if told_script(event.script):
        folders.append(_script_folder(event))
    return all(
        folder and any(folder.is_relative_to(one) for one in rule.folders or ())
        for folder in folders
    )


def _working_folder(event: Event) -> PurePosixPath | None:
    """Give the working directory; None: it is no folder of this host's, or cut."""
    doubts = event.flags & (_DOUBTS | Flag.CWD_CUT)
    return None if doubts else PurePosixPath(event.cwd)


def _script_folder(event: Event) -> PurePosixPath | None:
    """Give the folder of the script that PHP told of; None: that cannot be told.

    `..` behind a name may lead anywhere, and may stand in what was cut off.
    """
    script = PurePosixPath(told_script(event.script) or "..")
    is_cut = len(event.script.encode("utf-8", "surrogateescape")) >= SCRIPT_LEN - 1
    if event.flags & _DOUBTS or is_cut or ".." in script.parts:
        return None
    return script.parent


def _origin(limit: Limit, event: Event) -> str:
    """Name what is counted as one."""
    if limit.by == "unit":
        return f"unit {lasting_unit(event.cgroup) or event.cgroup}"
    user = f"uid {event.uid}"
    if limit.by == "user":
        return user
    assert limit.below
    # by what PHP says of itself: who may run anything else is a case for `by = "user"`
    folder = (
        _script_folder(event) if told_script(event.script) else _working_folder(event)
    )
    if folder is None or not folder.is_relative_to(limit.below):
        return f"{user}, elsewhere"
    depth = len(limit.below.parts)
    return f"folder {PurePosixPath(*folder.parts[: depth + 1])}"
