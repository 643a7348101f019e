# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guard found: one Finding is one entry of the journal.

origin.py makes them from events, journal.py writes and reads them, query.py
and the verbs of guardctl show them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple


class Kind(enum.Enum):
    """The kinds of finding; the value stands in SMTPGUARD_KIND for ever."""

    DENIED = "denied"
    WOULD_DENY = "would-deny"
    REDIRECTED = "redirected"
    ALLOWED = "allowed"
    LOCAL = "local"
    CLOSED = "closed"
    SUMMARY = "summary"
    LOST = "lost"
    POLICY_LOADED = "policy-loaded"
    POLICY_REFUSED = "policy-refused"
    LOADED = "loaded"
    UNLOADED = "unloaded"
    PRE_EXISTING = "pre-existing"
    BACKSTOP = "backstop"
    ENDED = "ended"
    TAMPERED = "tampered"
    ENROLLED = "enrolled"
    CLOCK_SET = "clock-set"
    MESSAGE = "message"
    SMART_HOST = "smart-host"
    REJECTED = "rejected"
    WOULD_REJECT = "would-reject"
    LIMITED = "limited"
    HANDED_IN = "handed-in"
    FAILED = "failed"


class Process(NamedTuple):
    """A parent of the caller."""

    pid: int
    uid: int
    comm: str
    start_ns: int  # CLOCK_BOOTTIME


@dataclass(frozen=True, slots=True)
class Maker:
    """One of several processes that can have sent a packet."""

    pid: int
    uid: int
    comm: str
    exe: str | None
    args: tuple[str, ...]
    unit: str | None


@dataclass(slots=True)  # nobody changes one, but frozen takes four times as long
class Finding:
    """A connection that was judged, or the end of one.

    Texts are as the kernel gave them (surrogateescape for bytes that are not
    UTF-8); whoever prints one escapes it. None means not known, which only
    happens for the reasons named in `incomplete`.
    """

    kind: Kind
    time_us: int  # CLOCK_REALTIME, of the connect()
    seq: int
    connection: str  # unique: boot id and socket cookie
    verdict: str  # deny, allow, redirect: what the rule says, whatever the mode
    mode: str  # observe, enforce
    direction: str  # outbound, local
    rule: str | None  # its name; None: no rule matched
    # denied, syn-sent, closed, refused, timed-out, failed, not-sent; PRE_EXISTING:
    # established, syn-sent, to-end, left-open; ENDED: ended-by-guard, ended-itself,
    # not-ended
    outcome: str
    pid: int
    tid: int
    ppid: int | None
    start_us: int  # CLOCK_REALTIME, of the process
    uid: int
    user: str | None
    gid: int
    group: str | None
    real_uid: int
    real_gid: int
    loginuid: int | None
    session: int | None
    comm: str
    exe: str | None
    exe_device: str  # major:minor
    exe_inode: int
    exe_nlink: int
    args: tuple[str, ...]
    cwd: str
    unit: str | None  # systemd's, from the cgroup path
    container: str | None  # engine:id, from the cgroup path
    cgroup: str
    netns: int  # inode of /proc/PID/ns/net
    ancestors: tuple[Process, ...]
    src: tuple[str, int] | None  # None: the connection never got a source port
    dst: tuple[str, int]
    via: tuple[str, int] | None  # where it was redirected to
    error: str | None  # errno name that ended it, ECONNREFUSED
    bytes_sent: int
    bytes_received: int
    duration_us: int | None  # from connect() to the end
    count: int = 1  # SUMMARY: how many connects it stands for
    last_us: int = 0  # SUMMARY: CLOCK_REALTIME of the last of them
    # "many": a SUMMARY over all destinations that have none of their own; dst is
    # the first of them
    destinations: str | None = None
    lock: str | None = None  # of the second lock: nftables-output, iptables-forward
    makers: tuple[Maker, ...] = ()  # BACKSTOP, when it can have been several
    # args-cut, parent-request, ...; BACKSTOP: maker (of its socket, which another
    # may have been handed), one-of (see makers), maybe-others, no-process
    incomplete: tuple[str, ...] = field(default=())
    # of an interpreter, absolute; a folder and a slash where no more is known. What
    # its process says, and no proof: `..` in it may lead anywhere
    script: str | None = None
    script_from: str | None = None  # request, args, cwd; None: no script is known
    pool: str | None = None  # of php-fpm
    request_method: str | None = None  # of a web request that PHP is at
    request_uri: str | None = None  # without its query


@dataclass(slots=True)  # nobody changes one, but frozen takes four times as long
class Message:
    """A message that the mail server took by SMTP, as it told us, and who sent it.

    Texts are what a client said, any bytes (surrogateescape).
    """

    time_us: int  # CLOCK_REALTIME, at its end of data
    queue_id: str  # "" where a filter before the queue takes it
    sender: str
    recipients: int  # that were accepted
    size: int  # bytes
    sasl_user: str  # "": none
    sasl_method: str
    protocol: str  # SMTP, ESMTP
    state: str  # END-OF-MESSAGE
    helo: str
    client: tuple[str, int] | None  # as the mail server knows it; None: it does not
    server: tuple[str, int] | None  # likewise, of the host's own end
    origin: Finding | None  # the connection it came by; None: of no process known
    unknown: str = ""  # why that is so: one of UNKNOWN
    kind: Kind = Kind.MESSAGE  # or REJECTED, WOULD_REJECT
    answer: str = "dunno"  # or defer, hold, reject: the policy's, whatever the mode
    reason: str = ""  # of the answer: one of REASONS, "" where there is none
    limit: str = ""  # the name of the limit that it is beyond
    token: str = ""  # in its header
    messages: int = 1  # more: REJECTED, the first of so many of one origin
    last_us: int = 0  # likewise: CLOCK_REALTIME of the last of them


MAIL = frozenset((Kind.MESSAGE, Kind.REJECTED, Kind.WOULD_REJECT))

# Why a message is refused or held, or would be.
REASONS = {
    "no-login": "a program of this host that has not logged in and that no rule names",
    "unknown-origin": "a program of this host, not known which, that has not logged in",
    "limit": "beyond the limit",
}

# Why a message has no origin, and what that means.
UNKNOWN = {
    "no-port": "the mail server did not say from which port",
    "no-connection": "no connection of a process of this host had these ends",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about the guard itself: policy loaded, events lost."""

    kind: Kind
    time_us: int
    message: str
    priority: int = 5  # syslog(3) level
    fields: dict[str, str] = field(default_factory=dict)  # SMTPGUARD_ names, short
