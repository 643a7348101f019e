# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors a user can meet: the docstring is the message, with its remedy.

Every class carries the exit status of the program that ends with it, in the
numbers of sysexits.h, so that scripts can tell a bad policy from a kernel that
cannot run the guard.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

# sysexits.h
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_OSERR = 71
EX_CANTCREAT = 73
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


class GuardError(Exception):
    """Something failed."""

    exit_status = 1

    def __init__(self, *args: object, hint: str = "") -> None:
        """Fill the docstring's {} with args; hint says what to do about it."""
        super().__init__(*args)
        self.hint = hint

    def __str__(self) -> str:
        return (type(self).__doc__ or "").format(*self.args)

    def report(self) -> str:
        """Give the message and, on a line of its own, what to do."""
        return f"{self}\n  {self.hint}" if self.hint else str(self)


class NotPrivileged(GuardError):
    """{0} must be run as root, try sudo: it lacks {1}"""

    exit_status = EX_NOPERM


class KernelError(GuardError):
    """kernel: {0}: {1}"""

    exit_status = EX_OSERR

    def __init__(self, what: str, error: int, hint: str = "") -> None:
        """Tell what was tried and the errno (positive) it ended in."""
        super().__init__(what, os.strerror(error), hint=hint)
        self.errno = error


class NotBpffs(KernelError):
    """kernel: {0}: {1}"""


class NotCgroup(KernelError):
    """kernel: {0}: {1}"""


class NoPrograms(GuardError):
    """kernel programs cannot be loaded: {}"""

    exit_status = EX_UNAVAILABLE

    def __init__(self, *args: object, hint: str = "", passing: bool = False) -> None:
        """Tell why; passing: it may be another answer in a while."""
        super().__init__(*args, hint=hint)
        self.passing = passing


class AbiMismatch(GuardError):
    """the compiled object and this Python code disagree: {}"""

    exit_status = EX_UNAVAILABLE


class NotLoaded(GuardError):
    """no guard is loaded under {}"""

    exit_status = EX_UNAVAILABLE


class PolicyError(GuardError):
    """{}: {}"""

    exit_status = EX_CONFIG
    refused = "policy refused"

    def __init__(
        self, where: str, what: str, hint: str = "", problems: Iterable[object] = ()
    ) -> None:
        """Tell the file and its first error; problems: all that was found."""
        super().__init__(where, what, hint=hint)
        self.problems = tuple(problems)

    def report(self) -> str:
        """Give every problem with its place and remedy."""
        if not self.problems:
            return super().report()
        return "\n".join([*map(str, self.problems), f"{self.args[0]}: {self.refused}"])


class JournalError(GuardError):
    """journal: {}"""

    exit_status = EX_UNAVAILABLE


class TornEvent(GuardError):
    """an event from the kernel makes no sense: {}"""

    exit_status = EX_DATAERR


class AlreadyRunning(GuardError):
    """another guardd serves {}"""

    exit_status = EX_TEMPFAIL


class BadQuery(GuardError):
    """{0}: {1}"""

    exit_status = EX_USAGE


class NoAccess(GuardError):
    """cannot look at {}: permission denied"""

    exit_status = EX_NOPERM


class NotApplied(GuardError):
    """policy not applied, the old one is in force: {}"""

    exit_status = EX_TEMPFAIL


class NotWritten(GuardError):
    """not written: {}"""

    exit_status = EX_CANTCREAT


class SockDiagError(GuardError):
    """sock_diag, which lists connections: {}"""

    exit_status = EX_OSERR


class ThreadDied(GuardError):
    """the thread that {0} has ended by itself: {1}"""

    exit_status = EX_SOFTWARE


class BackstopError(GuardError):
    """second lock: {}"""

    exit_status = EX_UNAVAILABLE


class BadRequest(GuardError):
    """a policy request that Postfix cannot have made: {}"""

    exit_status = EX_DATAERR


class MtaError(GuardError):
    """mail server: {}"""

    exit_status = EX_UNAVAILABLE


class BadToken(GuardError):
    """not a token of this host's: {}"""

    exit_status = EX_DATAERR


class MailTableError(PolicyError):
    """{}: {}"""

    refused = "table refused"


class SrsError(GuardError):
    """SRS: {}"""

    exit_status = EX_CONFIG


class DnsError(GuardError):
    """name server: {}"""

    exit_status = EX_TEMPFAIL


class MailError(GuardError):
    """mail: {}"""

    exit_status = EX_CONFIG


class MailNotApplied(GuardError):
    """mail settings not applied, everything is as before: {}"""

    exit_status = EX_TEMPFAIL


class MailBusy(GuardError):
    """another guardctl mail works on {}"""

    exit_status = EX_TEMPFAIL
