# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings for tests: a plain one to vary, and hypothesis's hostile ones."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

from hypothesis import strategies as st

from guard.finding import (
    MAIL,
    REASONS,
    UNKNOWN,
    Finding,
    Kind,
    Maker,
    Message,
    Notice,
    Process,
)
from guard.journal import NOTICES, Found, lines

BOOT = "c3e7caf302f84c289c136585bbc253b9"
_numbers = itertools.count(1)


def now_us() -> int:
    """Give the time of day in microseconds."""
    return time.time_ns() // 1000


PLAIN = Finding(
    kind=Kind.DENIED,
    time_us=1_795_335_789_549_780,
    seq=5,
    connection=f"{BOOT}-0",
    verdict="deny",
    mode="enforce",
    direction="outbound",
    rule=None,
    outcome="denied",
    pid=4711,
    tid=4711,
    ppid=4000,
    start_us=1_795_335_789_540_000,
    uid=33,
    user="www-data",
    gid=33,
    group="www-data",
    real_uid=33,
    real_gid=33,
    loginuid=None,
    session=None,
    comm="php8.2",
    exe="/usr/bin/php8.2",
    exe_device="254:0",
    exe_inode=1_234_567,
    exe_nlink=1,
    args=("php", "-f", "/srv/www/shop/mail.php"),
    cwd="/srv/www/shop",
    unit="php8.2-fpm.service",
    container=None,
    cgroup="/system.slice/php8.2-fpm.service",
    netns=4_026_531_840,
    ancestors=(Process(4000, 0, "php-fpm8.2", 123_456_789), Process(1, 0, "init", 0)),
    src=None,
    dst=("203.0.113.9", 25),
    via=None,
    error=None,
    bytes_sent=0,
    bytes_received=0,
    duration_us=None,
)


def fields(found: Found) -> list[bytes]:
    """Give an entry as sd_journal_sendv(3) takes it: b"NAME=value" each."""
    return [line.encode("utf-8", "surrogateescape") for line in lines(found)]


def finding(kind: Kind = Kind.DENIED, **changes: Any) -> Finding:
    """Give a plain finding of now; what a kind implies is set as guardd does."""
    implied: dict[str, Any] = {
        "time_us": now_us(),
        "connection": f"{BOOT}-{next(_numbers)}",
    }
    if kind is Kind.WOULD_DENY:
        implied |= {"mode": "observe", "outcome": "syn-sent"}
    elif kind is Kind.ALLOWED:
        implied |= {"verdict": "allow", "rule": "mta", "outcome": "syn-sent"}
    elif kind is Kind.REDIRECTED:
        implied |= {"verdict": "redirect", "rule": "turn", "outcome": "syn-sent"}
        implied |= {"via": ("127.0.0.1", 25)}
    elif kind in (Kind.LOCAL, Kind.CLOSED, Kind.PRE_EXISTING, Kind.ENDED):
        implied |= {"verdict": "allow", "direction": "local", "outcome": "syn-sent"}
        implied |= {"dst": ("127.0.0.1", 25)}
    elif kind is Kind.BACKSTOP:
        implied |= {"lock": "nftables-output"}
    if kind is Kind.ENDED:
        implied |= {"verdict": "deny", "outcome": "ended-by-guard"}
    if kind is Kind.CLOSED:
        implied |= {"outcome": "closed", "bytes_sent": 345, "bytes_received": 678}
        implied |= {"duration_us": 1_234_567}
    if implied.get("outcome", "denied") != "denied":
        implied["src"] = ("127.0.0.1", 37634)
    return dataclasses.replace(PLAIN, kind=kind, **(implied | changes))


def mail(origin: Finding | None, **changes: Any) -> Message:
    """Give a message of now that came by this connection."""
    plain = Message(
        time_us=now_us(),
        queue_id="4jZ0BV37cFz1f",
        sender="app@host.example.net",
        recipients=2,
        size=345,
        sasl_user="",
        sasl_method="",
        protocol="ESMTP",
        state="END-OF-MESSAGE",
        helo="shop.example",
        client=("127.0.0.1", 37634),
        server=("127.0.0.1", 25),
        origin=origin,
        unknown="" if origin else "no-connection",
    )
    return dataclasses.replace(plain, **changes)


def refused() -> Message:
    """Give a message with every field that one may have."""
    return mail(
        finding(Kind.LOCAL),
        kind=Kind.REJECTED,
        answer="defer",
        reason="limit",
        limit="users",
        token="a" * 40,
        messages=17,
        last_us=now_us(),
    )


# What the kernel can hand over: any bytes without NUL, decoded as abi.py does.
hostile = st.binary(max_size=60).map(
    lambda raw: raw.replace(b"\0", b"\n").decode("utf-8", "surrogateescape")
)
_u32 = st.integers(0, 2**32 - 1)
_u63 = st.integers(0, 2**63 - 1)
_time = st.integers(0, 2**55 - 1)
_end = st.tuples(st.sampled_from(["127.0.0.1", "::1", "2001:db8::25"]), _u32.map(
    lambda number: number & 0xFFFF
))  # fmt: skip
_name = st.none() | hostile

findings = st.builds(
    Finding,
    kind=st.sampled_from(
        [kind for kind in Kind if kind not in NOTICES and kind not in MAIL]
    ),
    time_us=_time,
    seq=_u63,
    connection=hostile,
    verdict=st.sampled_from(["deny", "allow", "redirect"]),
    mode=st.sampled_from(["observe", "enforce"]),
    direction=st.sampled_from(["outbound", "local"]),
    rule=_name,
    outcome=st.sampled_from(["denied", "syn-sent", "closed", "timed-out"]),
    pid=_u32,
    tid=_u32,
    ppid=st.none() | _u32,
    start_us=_time,
    uid=_u32,
    user=_name,
    gid=_u32,
    group=_name,
    real_uid=_u32,
    real_gid=_u32,
    loginuid=st.none() | _u32,
    session=st.none() | _u32,
    comm=hostile,
    exe=_name,
    exe_device=st.just("254:0"),
    exe_inode=_u63,
    exe_nlink=_u32,
    args=st.lists(hostile, max_size=5).map(tuple),
    cwd=hostile,
    unit=_name,
    container=_name,
    cgroup=hostile,
    netns=_u32,
    ancestors=st.lists(
        st.builds(Process, pid=_u32, uid=_u32, comm=hostile, start_ns=_u63), max_size=8
    ).map(tuple),
    src=st.none() | _end,
    dst=_end,
    via=st.none() | _end,
    error=st.none() | st.sampled_from(["ECONNREFUSED", "ETIMEDOUT"]),
    bytes_sent=_u63,
    bytes_received=_u63,
    duration_us=st.none() | _u63,
    lock=st.none() | st.just("nftables-egress"),
    count=_u32,
    last_us=_time,
    destinations=st.none() | st.just("many"),
    makers=st.lists(
        st.builds(
            Maker,
            pid=_u32,
            uid=_u32,
            comm=hostile,
            exe=_name,
            args=st.lists(hostile, max_size=2).map(tuple),
            unit=_name,
        ),
        max_size=3,
    ).map(tuple),
    incomplete=st.sets(st.sampled_from(["args-cut", "no-exe"])).map(tuple),
    script=_name,
    script_from=st.none() | st.sampled_from(["request", "args", "cwd"]),
    pool=_name,
    request_method=_name,
    request_uri=_name,
)
messages = st.builds(
    mail,
    st.none() | findings,
    time_us=_time,
    queue_id=st.sampled_from(["", "8045F2AB23", "4jZ0BV37cFz1f"]),
    sender=hostile,
    recipients=_u32,
    size=_u63,
    sasl_user=hostile,
    sasl_method=hostile,
    protocol=hostile,
    state=hostile,
    helo=hostile,
    client=st.none() | _end,
    server=st.none() | _end,
    kind=st.sampled_from([kind for kind in Kind if kind in MAIL]),
    answer=st.sampled_from(["dunno", "defer", "hold", "reject"]),
    reason=st.sampled_from(["", *REASONS]),
    limit=st.sampled_from(["", "users"]),
    token=st.sampled_from(["", "a" * 40]),
).map(
    lambda made: (
        made
        if made.origin
        else dataclasses.replace(
            made, unknown=sorted(UNKNOWN)[made.size % len(UNKNOWN)]
        )
    )
)
notices = st.builds(
    Notice,
    kind=st.sampled_from([kind for kind in Kind if kind in NOTICES]),
    time_us=_time,
    message=st.text("abc \n:", max_size=40),
    priority=st.integers(0, 7),
    fields=st.dictionaries(
        st.sampled_from(["SHA256", "MODE", "CAUSE", "A_9"]), hostile, max_size=3
    ),
)


def whole() -> Finding:
    """Give a finding of which everything is known, so that it has every field."""
    return finding(
        Kind.CLOSED,
        rule="r", loginuid=1, session=2, container="docker:x", error="ETIMEDOUT",
        via=("127.0.0.1", 25), count=2, last_us=3, lock="nftables-output",
        incomplete=("args-cut",), destinations="many",
        script="/srv/www/shop/", script_from="cwd", pool="shop",
        request_method="POST", request_uri="/mail.php",
        makers=(Maker(7, 33, "nc", "/usr/bin/nc", ("nc", "-x"), None),),
    )  # fmt: skip
