# SPDX-License-Identifier: GPL-2.0-or-later
"""What the mail server's own log says of a message: Postfix's, or Exim's.

Out of the journal, or out of files as syslog and the mail servers write them.
"""

from __future__ import annotations

import contextlib
import gzip
import pwd
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from guard.errors import MtaError
from guard.mta.listener import MAIL_OWNER
from guard.query.entries import Journal

_LATER_US = 86_400 * 1_000_000  # a log of the year before, not of tomorrow
# Who writes them, as journald saw: any user may send an entry that says so itself.
_UNITS = ("postfix@-.service", "postfix.service", "exim4.service")
_ACCOUNTS = (MAIL_OWNER, "Debian-exim")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log; its text is what follows program and process."""

    time_us: int  # CLOCK_REALTIME, of the second where the log has no more
    program: str  # postfix/submission/smtpd, exim
    text: str


@dataclass(frozen=True, slots=True)
class Logged:
    """What one line says of one message; None: this one does not say."""

    queue_id: str
    time_us: int
    message_id: str | None = None
    client: tuple[str, int | None] | None = None  # None: the port was not logged
    uid: int | None = None  # of whoever handed it to sendmail(1)
    sender: str | None = None
    sasl_user: str = ""
    before: str | None = None  # its queue id before `postsuper -r` queued it again


Log = Callable[[], Iterator[LogLine]]

_CLIENT = re.compile(
    r"([0-9A-Za-z]+): client=[^\[]*\[([^\]]+)\](?::([0-9]{1,5}))?(?:, (.*))?", re.DOTALL
)
_SASL = re.compile(r"(?:^|, )sasl_username=([^,]*)")
_CLEANUP = re.compile(r"([0-9A-Za-z]+): (?:resent-)?message-id=(.*)", re.DOTALL)
_PICKUP = re.compile(
    r"([0-9A-Za-z]+): uid=([0-9]{1,10}) from=<(.*)>(?: orig_id=([0-9A-Za-z]+))?",
    re.DOTALL,
)
# Exim's specification, "Log files": id, <=, sender, then X=value in any order.
_EXIM = re.compile(
    r"(?:\[[0-9]+\] )?([0-9A-Za-z]{6}-[0-9A-Za-z]{6,11}-[0-9A-Za-z]{2,4}) <= (\S+)(.*)",
    re.DOTALL,
)
_EXIM_HOST = re.compile(r" H=.*?\[([^\]]+)\](?::([0-9]{1,5}))?(?= |$)")
_EXIM_WORD = re.compile(r" (id|A|U)=(\S+)")


def parse_line(line: LogLine) -> Logged | None:
    """Read what a line says of a message; None: nothing that tells who sent it."""
    if line.program == "exim":
        return _exim(line)
    part = line.program.rpartition("/")[2]
    if part == "smtpd" and (found := _CLIENT.fullmatch(line.text)):
        sasl = _SASL.search(found[4] or "")
        return Logged(
            found[1],
            line.time_us,
            client=(found[2], int(found[3]) if found[3] else None),
            sasl_user=sasl[1] if sasl else "",
        )
    if part == "cleanup" and (found := _CLEANUP.fullmatch(line.text)):
        return Logged(found[1], line.time_us, message_id=found[2].strip("<>"))
    if part == "pickup" and (found := _PICKUP.fullmatch(line.text)):
        return Logged(
            found[1],
            line.time_us,
            uid=int(found[2]),
            sender=found[3],
            before=found[4],
        )
    return None


def _exim(line: LogLine) -> Logged | None:
    found = _EXIM.fullmatch(line.text)
    if not found:
        return None
    words = dict(_EXIM_WORD.findall(found[3]))
    host = _EXIM_HOST.search(found[3])
    uid = None
    if not host and "U" in words:
        with contextlib.suppress(KeyError):
            uid = pwd.getpwnam(words["U"]).pw_uid
    return Logged(
        found[1],
        line.time_us,
        message_id=words.get("id"),
        client=(host[1], int(host[2]) if host[2] else None) if host else None,
        uid=uid,
        sender=found[2],
        sasl_user=words.get("A", "").partition(":")[2],
    )


# ---- out of files

_SYSLOG = re.compile(
    r"([A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8}|[0-9]{4}-[0-9-]+T[0-9:.]+(?:Z|[+-][0-9:]+))"
    r" \S+ ([^\s\[]+)\[[0-9]+\]: (.*)",
    re.DOTALL,
)
_EXIM_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}(?:\.[0-9]+)?(?: [+-][0-9]{4})?) (.*)",
    re.DOTALL,
)


_WHICH = (
    "name the mail log: maillog_file of Postfix, or syslog's mail.log; without --log"
    " the journal is read"
)


def files(paths: Sequence[Path]) -> Log:
    """Read log files, packed by gzip(1) or not, in the order given.

    The log raises MtaError for a file that cannot be read, or is of another kind.
    """

    def lines() -> Iterator[LogLine]:
        now_us = time.time_ns() // 1000
        for path in paths:
            try:
                yield from _lines(path, now_us)
            except (OSError, EOFError, zlib.error) as error:
                raise _unread(path, error) from None

    return lines


def _lines(path: Path, now_us: int) -> Iterator[LogLine]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        known, raw = False, b""
        for raw in file:
            text = raw.rstrip(b"\n").decode("utf-8", "surrogateescape")
            if line := read_line(text, now_us):
                known = True
                yield line
    if raw and not known:
        raise MtaError(f"{path}: no line of it is of a mail log", hint=_WHICH)


def _unread(path: Path, error: Exception) -> MtaError:
    if isinstance(error, PermissionError):
        hint = "read it as root, or as a member of its group (adm)"
    elif isinstance(error, OSError) and error.errno:
        hint = _WHICH
    else:  # of gzip's own
        hint = f"see whether it is whole: gzip -t {path}"
    what = error.strerror if isinstance(error, OSError) and error.errno else error
    return MtaError(f"{path}: {what}", hint=hint)


def read_line(text: str, now_us: int) -> LogLine | None:
    """Read one line of a file; None: it is of no log that is known.

    now_us is for a time without a year, which is the last that has been.
    """
    try:
        if found := _SYSLOG.fullmatch(text):
            return LogLine(_time_us(found[1], now_us), found[2], found[3])
        if found := _EXIM_TIME.fullmatch(text):
            return LogLine(_time_us(found[1], now_us), "exim", found[2])
    except (ValueError, OverflowError, OSError):  # a day that no month has
        pass
    return None


def _time_us(text: str, now_us: int) -> int:
    if text[0].isdigit():
        return round(datetime.fromisoformat(text).timestamp() * 1_000_000)
    year = datetime.fromtimestamp(now_us / 1e6).year
    for guess in (year + 1, year, year - 1):
        with contextlib.suppress(ValueError):  # February 29
            then = datetime.strptime(f"{guess} {text}", "%Y %b %d %H:%M:%S")
            if (at := int(then.timestamp()) * 1_000_000) <= now_us + _LATER_US:
                return at
    raise ValueError(text)


# ---- out of the journal


def journalled(journal: Journal, since_us: int, until_us: int) -> Log:
    """Read what the mail server wrote to this journal in that time."""

    def lines() -> Iterator[LogLine]:
        for entry in journal.written_by(_UNITS, _ACCOUNTS, since_us, until_us):
            name, text = entry.get("SYSLOG_IDENTIFIER"), entry.get("MESSAGE")
            if isinstance(name, bytes) and isinstance(text, bytes):
                yield LogLine(
                    entry["_AT"],
                    name.decode("utf-8", "surrogateescape"),
                    text.decode("utf-8", "surrogateescape"),
                )

    return lines
