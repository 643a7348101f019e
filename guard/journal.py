# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings to journald's fields and back: writer and reader of one table.

systemd.journal-fields(7) names the fields that are not ours; the protocol is
systemd's "Native Journal Protocol". Everything a process can choose (comm,
paths, arguments) goes in and comes out byte for byte; only MESSAGE, which is
for eyes, is escaped. The entry is trusted because journald itself says who
wrote it, never because of a field of ours: see query.py.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import select
import socket
import termios
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeAlias

from guard.errors import JournalError
from guard.finding import MAIL, Finding, Kind, Message, Notice
from guard.lists import (
    makers_json,
    parents_json,
    read_args,
    read_makers,
    read_parents,
)
from guard.mailfields import RENAMED, message_lines, read_message
from guard.message import mail_message, mail_priority, message, priority
from guard.text import printable
from guard.values import end, number, text, time_us

Found: TypeAlias = Finding | Notice | Message
Told: TypeAlias = Found | Callable[[], Message]  # which makes it when its turn comes

IDENTIFIER = "guardd"  # SYSLOG_IDENTIFIER of every entry
PREFIX = "SMTPGUARD_"
WRITER = f"{PREFIX}WRITER"  # which run of guardd wrote the entry, see delivery.py
SOCKET = "/run/systemd/journal/socket"  # systemd-journald.service(8)

# For ever: they stand in journals, in catalogs and in other people's filters.
MESSAGE_IDS: dict[Kind, str] = {
    Kind.DENIED: "10c8cbef3d034b5a93fd889cab56f023",
    Kind.WOULD_DENY: "ee7b46da256542b784f31524e4bc287d",
    Kind.REDIRECTED: "d27bc177ca954998a574ca4f8ec9093e",
    Kind.ALLOWED: "5cacca56eeb245e1b20d37dbb0d4a0b3",
    Kind.LOCAL: "3924feeafe614abb82321717b03ce2b8",
    Kind.CLOSED: "9bade6fdfb564bf1ae48ae119ad00e0f",
    Kind.SUMMARY: "f59ed7927a2c4abb88dd13bb5df9a528",
    Kind.LOST: "76825f3f61d4469a98b0eac221d00e89",
    Kind.POLICY_LOADED: "80ec0216f35148d7b37960e2083bd7fc",
    Kind.POLICY_REFUSED: "6ab33f87ce3b4d0e988fd0b5a56a5459",
    Kind.LOADED: "e17b4d252d2b4933aaee4cc48e4119b6",
    Kind.UNLOADED: "94be9a9417484aec871d92002d87d0f3",
    Kind.PRE_EXISTING: "2e81d0002b9d4b37a678d7ed15d274f5",
    Kind.BACKSTOP: "138c733d10e6450b9ae98887935fa6c1",
    Kind.ENDED: "2e7d7470d7244e3ca7f5430adf2a58e9",
    Kind.TAMPERED: "8bbc2060b12341fabdaeb1efefcb50e1",
    Kind.ENROLLED: "1c8ad267a41a4662b3ee6a058f6e4deb",
    Kind.CLOCK_SET: "c07b04c833ab4f4188486a8ea8bce614",
    Kind.MESSAGE: "9ae8204ec22246afa6005ebf718d0d10",
    Kind.SMART_HOST: "2169f63050b74e59aa52ccc8e48b6e51",
    Kind.REJECTED: "d82993ec3dab48c19a4cbf0a326cc3e7",
    Kind.WOULD_REJECT: "35f2ff00b54a4bc2aec247953618fae0",
    Kind.LIMITED: "0edaabf43b544256aea99c6779cefd6b",
    Kind.HANDED_IN: "e533fbaffb064b92ad5b61a3f6c9b106",
    Kind.FAILED: "c41f1e4256024363b0e4a0f1b0dae388",
}
NOTICES = frozenset(
    (Kind.LOST, Kind.POLICY_LOADED, Kind.POLICY_REFUSED, Kind.LOADED, Kind.UNLOADED)
    + (Kind.TAMPERED, Kind.ENROLLED, Kind.CLOCK_SET, Kind.LIMITED)
    + (Kind.HANDED_IN, Kind.SMART_HOST, Kind.FAILED)
)
_KINDS = {kind.value: kind for kind in Kind}

# journald drops longer names (64 with the prefix) and other letters unasked.
_FIELD_NAME = re.compile("[A-Z0-9][A-Z0-9_]{0,53}")
_SEALS = (
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
)
_REMEDY = "is journald running? systemctl status systemd-journald"


# ---- the table: attribute of Finding, field, and what reads the field


# For fields that say the same in most entries: reading one is half of a query.
_word = lru_cache(maxsize=4096)(text)
_count = lru_cache(maxsize=4096)(number)

_COLUMNS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("time_us", "SMTPGUARD_TIME_US", time_us),
    ("seq", "SMTPGUARD_SEQ", number),
    ("connection", "SMTPGUARD_CONNECTION", text),
    ("verdict", "SMTPGUARD_VERDICT", _word),
    ("mode", "SMTPGUARD_MODE", _word),
    ("direction", "SMTPGUARD_DIRECTION", _word),
    ("rule", "SMTPGUARD_RULE", _word),
    ("outcome", "SMTPGUARD_OUTCOME", _word),
    ("pid", "SMTPGUARD_PID", number),
    ("tid", "SMTPGUARD_TID", number),
    ("ppid", "SMTPGUARD_PPID", _count),
    ("start_us", "SMTPGUARD_START_US", time_us),
    ("uid", "SMTPGUARD_UID", _count),
    ("user", "SMTPGUARD_USER", _word),
    ("gid", "SMTPGUARD_GID", _count),
    ("group", "SMTPGUARD_GROUP", _word),
    ("real_uid", "SMTPGUARD_REAL_UID", _count),
    ("real_gid", "SMTPGUARD_REAL_GID", _count),
    ("loginuid", "SMTPGUARD_LOGINUID", _count),
    ("session", "SMTPGUARD_SESSION", _count),
    ("comm", "SMTPGUARD_COMM", _word),
    ("exe", "SMTPGUARD_EXE", _word),
    ("exe_device", "SMTPGUARD_EXE_DEVICE", _word),
    ("exe_inode", "SMTPGUARD_EXE_INODE", _count),
    ("exe_nlink", "SMTPGUARD_EXE_NLINK", _count),
    ("cwd", "SMTPGUARD_CWD", _word),
    ("script", "SMTPGUARD_SCRIPT", _word),
    ("script_from", "SMTPGUARD_SCRIPT_FROM", _word),
    ("pool", "SMTPGUARD_POOL", _word),
    ("request_method", "SMTPGUARD_REQUEST_METHOD", _word),
    ("request_uri", "SMTPGUARD_REQUEST_URI", text),
    ("unit", "SMTPGUARD_UNIT", _word),
    ("container", "SMTPGUARD_CONTAINER", _word),
    ("cgroup", "SMTPGUARD_CGROUP", _word),
    ("netns", "SMTPGUARD_NETNS", _count),
    ("error", "SMTPGUARD_ERROR", _word),
    ("bytes_sent", "SMTPGUARD_BYTES_SENT", _count),
    ("bytes_received", "SMTPGUARD_BYTES_RECEIVED", _count),
    ("duration_us", "SMTPGUARD_DURATION_US", number),
    ("lock", "SMTPGUARD_LOCK", _word),
    ("destinations", "SMTPGUARD_DESTINATIONS", _word),
)
# Those of which Finding says that None means not known: the field is absent.
_MAY_MISS = frozenset(
    ("rule", "ppid", "user", "group", "loginuid", "session", "exe", "unit")
    + ("container", "error", "duration_us", "lock", "destinations")
    + ("script", "script_from", "pool", "request_method", "request_uri")
)
_REQUIRED = tuple((a, f, how) for a, f, how in _COLUMNS if a not in _MAY_MISS)
_OPTIONAL = tuple((a, f, how) for a, f, how in _COLUMNS if a in _MAY_MISS)
# Those that are the same for each connection that a process makes, and two lists.
_OF_PROCESS = frozenset(
    ("pid", "tid", "ppid", "uid", "user", "gid", "group", "real_uid", "real_gid")
    + ("loginuid", "session", "comm", "exe", "exe_device", "exe_inode", "exe_nlink")
    + ("cwd", "script", "script_from", "pool", "unit", "container", "cgroup", "netns")
)
_OF_CONNECTION = tuple((a, f) for a, f, _ in _COLUMNS if a not in _OF_PROCESS)
_values = attrgetter(*(attribute for attribute, _ in _OF_CONNECTION))
_FORMS = tuple(f"{field}=%s" for _, field in _OF_CONNECTION)
_ORIGIN_FORMS = tuple(f"{RENAMED.get(field, field)}=%s" for _, field in _OF_CONNECTION)
_process = attrgetter(
    *(a for a, _, _ in _COLUMNS if a in _OF_PROCESS), "args", "ancestors"
)
_PROCESS_FORMS = tuple(f"{f}=%s" for a, f, _ in _COLUMNS if a in _OF_PROCESS)


# ---- writing


def lines(found: Found) -> list[str]:
    """Give the entry's "NAME=value" texts; bytes of processes as surrogates."""
    if isinstance(found, Notice):
        return _notice_lines(found)
    return _mail_lines(found) if isinstance(found, Message) else _finding_lines(found)


def _finding_lines(finding: Finding) -> list[str]:
    # A string per field and one encode for all: half the time of bytes.
    kind = finding.kind
    entry = [
        f"MESSAGE={message(finding)}",
        f"MESSAGE_ID={MESSAGE_IDS[kind]}",
        f"PRIORITY={priority(finding)}",
        "SYSLOG_IDENTIFIER=guardd",
        # journald adds the OBJECT_* it knows of this PID, if we are root; of a
        # process that is gone it may be another's by now. Ours are the truth.
        f"OBJECT_PID={finding.pid}",
        f"SMTPGUARD_KIND={kind.value}",
    ]
    entry += _named(_FORMS, finding)
    return entry


def _named(forms: tuple[str, ...], finding: Finding) -> list[str]:
    """Give what is known of a connect(), its columns by these names."""
    entry = [
        form % value
        for form, value in zip(forms, _values(finding), strict=True)
        if value is not None
    ]
    entry += _process_lines(_process(finding))
    entry.append(f"SMTPGUARD_DST_ADDR={finding.dst[0]}")
    entry.append(f"SMTPGUARD_DST_PORT={finding.dst[1]}")
    if finding.src:
        entry.append(f"SMTPGUARD_SRC_ADDR={finding.src[0]}")
        entry.append(f"SMTPGUARD_SRC_PORT={finding.src[1]}")
    if finding.via:
        entry.append(f"SMTPGUARD_VIA_ADDR={finding.via[0]}")
        entry.append(f"SMTPGUARD_VIA_PORT={finding.via[1]}")
    if finding.makers:
        entry.append(f"SMTPGUARD_MAKERS={makers_json(finding.makers)}")
    if finding.count != 1:
        entry.append(f"SMTPGUARD_COUNT={finding.count}")
    if finding.last_us:
        entry.append(f"SMTPGUARD_LAST_US={finding.last_us}")
    if finding.incomplete:
        entry.append(f"SMTPGUARD_INCOMPLETE={','.join(finding.incomplete)}")
    return entry


@lru_cache(maxsize=256)  # a connection, its end and its messages have one process
def _process_lines(values: tuple[Any, ...]) -> tuple[str, ...]:
    """Give what is known of a process, of what _process() gives."""
    *plain, args, ancestors = values
    entry = [
        form % value
        for form, value in zip(_PROCESS_FORMS, plain, strict=True)
        if value is not None
    ]
    if args:
        entry.append(f"SMTPGUARD_ARGS={json.dumps(args)}")
    if ancestors:
        entry.append(f"SMTPGUARD_ANCESTORS={parents_json(ancestors)}")
    return tuple(entry)


def _mail_lines(found: Message) -> list[str]:
    return [
        f"MESSAGE={mail_message(found)}",
        f"MESSAGE_ID={MESSAGE_IDS[found.kind]}",
        f"PRIORITY={mail_priority(found)}",
        f"SYSLOG_IDENTIFIER={IDENTIFIER}",
        f"SMTPGUARD_KIND={found.kind.value}",
        *message_lines(found),
        *(_origin_lines(found.origin) if found.origin else ()),
    ]


def _origin_lines(origin: Finding) -> list[str]:
    """Give a finding's own lines, by other names where the message needs the name."""
    kind = f"{RENAMED['SMTPGUARD_KIND']}={origin.kind.value}"
    return [kind, f"OBJECT_PID={origin.pid}", *_named(_ORIGIN_FORMS, origin)]


def _notice_lines(notice: Notice) -> list[str]:
    said = "\n".join(map(printable, notice.message.split("\n")))
    entry = [
        f"MESSAGE={said}",
        f"MESSAGE_ID={MESSAGE_IDS[notice.kind]}",
        f"PRIORITY={notice.priority}",
        f"SYSLOG_IDENTIFIER={IDENTIFIER}",
        f"SMTPGUARD_KIND={notice.kind.value}",
        f"SMTPGUARD_TIME_US={notice.time_us}",
    ]
    for name, value in notice.fields.items():
        name = name.upper().removeprefix(PREFIX)
        if not _FIELD_NAME.fullmatch(name) or name in ("KIND", "TIME_US", "WRITER"):
            raise JournalError(f"{name!r} is no name for a field of a notice")
        entry.append(f"{PREFIX}{name}={value}")
    return entry


def frame(entry: list[str]) -> bytes:
    """Serialize an entry for journald's socket.

    A value with a newline in it goes as name, newline, 64-bit little-endian
    length and bytes ("Native Journal Protocol"), so it can forge no field.
    """
    # the last newline counts: without it journald drops the last field
    datagram = "\n".join([*entry, ""]).encode("utf-8", "surrogateescape")
    if datagram.count(b"\n") == len(entry):
        return datagram
    parts = []
    for line in entry:
        raw = line.encode("utf-8", "surrogateescape")
        if b"\n" in raw:
            name, _, value = raw.partition(b"=")
            raw = name + b"\n" + len(value).to_bytes(8, "little") + value
        parts.append(raw)
    return b"\n".join(parts) + b"\n"


class JournalWriter:
    """Writes findings to journald, and knows when one was not taken.

    sd_journal_sendv(3) cannot serve here: it reports success when journald's
    socket is missing, blocks without limit when its queue is full, and
    python3-systemd 235 holds the GIL meanwhile. So the datagram goes out on a
    socket of our own, connected and never blocking.
    """

    def __init__(self, path: str = SOCKET) -> None:
        """Connect lazily to the journald that serves path."""
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, found: Found, timeout: float) -> None:
        """Hand one entry to journald, waiting at most timeout seconds.

        Raises JournalError when it was not taken: journald is gone or does not
        read. Nothing was written then, and the same entry may be tried again.
        """
        self.send(frame(lines(found)), timeout)

    def send(self, datagram: bytes, timeout: float) -> None:
        """Hand over an entry that frame() made; as write()."""
        deadline = 0.0
        while True:
            try:
                self._send(datagram)
                return
            except (BlockingIOError, InterruptedError):
                trouble = "journald does not read its socket"
            except (ConnectionError, FileNotFoundError):
                # Restarted by hand, its socket is a new one.
                self.close()
                trouble = f"nobody serves {self._path}"
            except OSError as error:
                self.close()
                raise JournalError(
                    f"{self._path}: {error.strerror}", hint=_REMEDY
                ) from None
            now = time.monotonic()
            deadline = deadline or now + timeout
            if now >= deadline:
                raise JournalError(trouble, hint=_REMEDY)
            self._wait(deadline - now)

    def unread(self) -> bool:
        """Tell whether entries wait in the socket that journald has yet to read."""
        if self._socket is None:
            return False
        # SIOCOUTQ, unix(7): bytes of ours that no recvmsg(2) has taken out
        raw = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
        return any(raw)

    def _send(self, datagram: bytes) -> None:
        link = self._connected()
        try:
            link.send(datagram, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            # The protocol's way for what is larger than a datagram.
            with open(os.memfd_create("entry", os.MFD_ALLOW_SEALING), "wb") as file:
                file.write(datagram)
                file.flush()
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
                socket.send_fds(link, [b""], [file.fileno()], socket.MSG_DONTWAIT)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                link.connect(self._path)
            except OSError:
                link.close()
                raise
            self._socket = link
        return self._socket

    def _wait(self, seconds: float) -> None:
        """Wait for room in journald's queue, or a little for a journald."""
        if self._socket is None:
            time.sleep(min(seconds, 0.05))
            return
        room = select.poll()
        room.register(self._socket, select.POLLOUT)
        room.poll(min(seconds, 1.0) * 1000)

    def close(self) -> None:
        """Close the socket; the next write() opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


# ---- reading


def read(entry: Mapping[str, Any]) -> Found:
    """Make a Finding or a Notice of a journal entry.

    entry maps field names to bytes or str, as systemd.journal.Reader and
    _Reader give them. Raises JournalError when it is not one that guardd could
    have written: a field missing, given twice, or not what it must be. It does
    not ask who wrote it: query.py does.
    """
    try:
        kind = _KINDS[text(entry["SMTPGUARD_KIND"])]
        if kind in MAIL:
            return read_message(kind, entry, _origin)
        return _notice(kind, entry) if kind in NOTICES else _finding(kind, entry)
    except KeyError as error:
        raise JournalError(f"an entry without {printable(str(error))}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise JournalError(f"a torn entry: {printable(str(error))}") from None


def _origin(entry: Mapping[str, Any]) -> Finding:
    kind = _KINDS[text(entry["SMTPGUARD_KIND"])]
    if kind in NOTICES or kind in MAIL:
        raise ValueError(f"{kind.value} is no origin")
    return _finding(kind, entry)


def _finding(kind: Kind, entry: Mapping[str, Any]) -> Finding:
    known = {attribute: how(entry[name]) for attribute, name, how in _REQUIRED}
    for attribute, name, how in _OPTIONAL:
        value = entry.get(name)
        known[attribute] = None if value is None else how(value)
    return Finding(
        kind=kind,
        dst=end("DST", entry),
        src=end("SRC", entry) if "SMTPGUARD_SRC_ADDR" in entry else None,
        via=end("VIA", entry) if "SMTPGUARD_VIA_ADDR" in entry else None,
        args=read_args(text(entry.get("SMTPGUARD_ARGS", "[]"))),
        ancestors=read_parents(text(entry.get("SMTPGUARD_ANCESTORS", "[]"))),
        makers=read_makers(text(entry.get("SMTPGUARD_MAKERS", "[]"))),
        count=number(entry.get("SMTPGUARD_COUNT", b"1")),
        last_us=time_us(entry.get("SMTPGUARD_LAST_US", b"0")),
        incomplete=tuple(
            filter(None, text(entry.get("SMTPGUARD_INCOMPLETE", "")).split(","))
        ),
        **known,
    )


def _notice(kind: Kind, entry: Mapping[str, Any]) -> Notice:
    return Notice(
        kind=kind,
        time_us=time_us(entry["SMTPGUARD_TIME_US"]),
        message=text(entry["MESSAGE"]),
        priority=number(entry["PRIORITY"]),
        fields={
            name.removeprefix(PREFIX): text(value)
            for name, value in entry.items()
            if name.startswith(PREFIX)
            and name not in (f"{PREFIX}KIND", f"{PREFIX}TIME_US", WRITER)
        },
    )
