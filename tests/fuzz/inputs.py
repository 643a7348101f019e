# SPDX-License-Identifier: GPL-2.0-or-later
"""Made-up inputs that get past the first check: structured, then damaged."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from guard import abi
from guard.event import HEADER_SIZE
from guard.journal import frame, lines
from tests.fuzz.targets import CORPUS
from tests.journal.findings import findings, messages, notices
from tests.policy.test_hostile import KEYS, VALUES, toml

# What steers terminals, hides text, ends lines, or looks like a field of ours.
NASTY = (
    *("\x1b[2J", "\x9b2J", "\u202e", "\u2066", "\u200b", "\u3164", "\ufe0f", "\x85"),
    *("\r", "\n", "\x0b0::/", "\nSMTPGUARD_UID=0", "MESSAGE=", "\udc80", "=", "\x7f"),
    *("\U000e0041", "a" * 300, "{0}", "%s", "'", '"', "\\", "*", "::ffff:0:1.2.3.4"),
)
texts = st.lists(st.sampled_from(NASTY) | st.text(max_size=6), max_size=6).map("".join)
raw_texts = texts.map(lambda text: text.encode("utf-8", "surrogateescape"))
_edge = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])


_requests = st.lists(raw_texts.map(lambda raw: raw.replace(b"\0", b"")),
    min_size=3, max_size=3,
).map(lambda texts: b"".join(text + b"\0" for text in texts))  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """Draw an event whose version, enums and lengths hold, with any numbers."""
    head = bytearray(draw(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE)))
    small = [draw(st.integers(0, limit)) for limit in (1, 1, 1, 7, abi.ANCESTORS)]
    kind = draw(st.integers(1, 2))
    head[:8] = abi.ABI.to_bytes(2, "little") + bytes([kind, *small])
    for field in ("exe_inode", "time_ns", "ended_ns", "bytes_sent", "seq", "start_ns"):
        at = getattr(abi.RawEvent, field).offset
        head[at : at + 8] = draw(_edge).to_bytes(8, "little")
    at = abi.RawEvent.act.offset
    head[at : at + 4] = draw(st.sampled_from(list(abi.Act))).to_bytes(4, "little")
    parts = [draw(raw_texts) for _ in range(4)]
    parts.append(draw(st.just(b"") | _requests))
    at = abi.RawEvent.exe_len.offset
    head[at : at + 10] = b"".join(len(part).to_bytes(2, "little") for part in parts)
    return bytes(head) + b"".join(parts)


entries = st.lists(findings | notices | messages, min_size=1, max_size=4).map(
    lambda found: b"\n".join(frame(lines(one)) for one in found)
)
records = st.dictionaries(
    st.sampled_from(["policy", "refused", "pid", "told", "loaded", "x"]) | texts,
    st.none() | texts | st.integers() | st.floats() | st.lists(texts, max_size=2),
    max_size=5,
).map(lambda made: json.dumps(made).encode().ljust(600, b"\0"))
policies = st.tuples(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), max_size=3),
).map(
    lambda made: "\n".join(
        [
            'mode = "enforce"',
            *(f"{key} = {toml(value)}" for key, value in made[0].items()),
            *(
                f'[[rule]]\nname = "r{n}"\n'
                + "\n".join(f"{key} = {toml(value)}" for key, value in rule.items())
                for n, rule in enumerate(made[1])
            ),
        ]
    ).encode("utf-8", "surrogatepass")
)
_words = st.sampled_from(
    ["--since", "--until", "--to", "--user", "--exe", "--unit", "--port", "--limit"]
    + ["--json", "--csv", "--group-by", "--help", "--local", "--reverse", "--pid", "-"]
    + ["now", "-1h", "@5", "today", "10:00", "127.0.0.1", "::1/64", "9" * 30, "cwd"]
)
arguments = st.tuples(
    st.integers(0, 255).map(lambda verb: bytes([verb])),
    st.lists((_words | texts).map(lambda word: word.replace("\0", "")), max_size=6),
).map(lambda made: made[0] + "\0".join(made[1]).encode("utf-8", "surrogateescape"))
_times = st.lists(
    st.sampled_from(
        ["now", "@", "-", "+", " ago", "1", "h", "2026-11-22", "10:00", "9"]
    )
    | st.sampled_from([" UTC", "mon ", "yesterday", ".", "²", "1e9", " ", "25:61"]),
    max_size=5,
).map("".join)
_addresses = st.lists(
    st.sampled_from(["::", "ffff:", "1.2.3.4", "/", "32", "129", "[", "]", "%"]),
    max_size=5,
).map("".join)
questions = st.tuples(_times | texts, _addresses | texts).map(
    lambda made: "\n".join(made).encode("utf-8", "surrogateescape")
)
_samples = st.lists(
    st.tuples(st.sampled_from([0, 1 << 30, 1 << 31]), st.integers(0, 5000)), max_size=9
).map(
    lambda made: b"".join(
        (flags | size).to_bytes(8, "little") + bytes(-(-size // 8) * 8)
        for flags, size in made
    )
)
cgroups = st.lists(
    st.sampled_from([b"0::/", b"5:devices:/", b"\n", b"\x0b", b"\r", b"\xc2\x85"])
    | st.sampled_from([b"system.slice/", b"postfix.service", b"docker-" + b"a" * 64])
    | raw_texts,
    max_size=8,
).map(b"".join)

_ends = st.sampled_from([b"\xcb\0\x71\x09", b"\x7f\0\0\1"])
_ends16 = st.sampled_from([bytes(10) + b"\xff\xff\1\2\3\4", b"\xfe\x80" + bytes(14)])
_ipv4 = st.tuples(
    st.just(b"\x45"),
    st.binary(min_size=5, max_size=5),
    st.sampled_from([bytes(2), b"\0\1"]),
    st.just(b"\x40\x06\0\0"),
    _ends,
    _ends,
).map(b"".join)
_next = st.sampled_from([b"\0", b"\x06", b"\x2b", b"\x2c", b"\x3b", b"\x3c"])
_ipv6 = st.tuples(
    st.just(b"\x60" + bytes(5)),
    _next,
    st.just(b"\x40"),
    _ends16,
    _ends16,
    st.binary(max_size=40),
).map(b"".join)
_frames = st.sampled_from(
    [b"", b"\x45" + bytes(8) + b"\x06" + bytes(2) + b"\x08\0", bytes(12) + b"\x86\xdd"]
    + [bytes(12) + b"\x81\0\0\5\x08\0"]
)
packets = st.tuples(_frames, _ipv4 | _ipv6, st.binary(max_size=24)).map(b"".join)

_attributes = st.lists(
    st.tuples(
        st.sampled_from(
            ["sender", "helo_name", "queue_id", "size", "recipient_count", "x"]
            + ["client_address", "client_port", "server_address", "server_port"]
        ),
        texts | st.sampled_from(["127.0.0.1", "::1%lo", "25", "65536", "4jZ0"]),
    ).map(lambda made: "=".join(made).replace("\n", "\r")),
    max_size=9,
)
delegations = st.lists(_attributes, max_size=3).map(
    lambda made: "".join(
        "\n".join(
            ["request=smtpd_access_policy", "protocol_state=END-OF-MESSAGE", *lines]
        )
        + "\n\n"
        for lines in made
    ).encode("utf-8", "surrogateescape")
)
_log_heads = st.sampled_from(
    ["Nov 24 23:44:40 host ", "2026-11-24T23:44:40.1+01:00 host ", "Feb 30 1:1:1 h "]
    + ["2026-11-24 23:44:40 ", "2026-11-24 23:44:40.123 +0100 [12] ", ""]
)
_log_bodies = st.sampled_from(
    ["postfix/smtpd[1]: 4jZ0: client=x[127.0.0.1]:37634, sasl_username=a"]
    + [
        "postfix/cleanup[1]: 4jZ0: message-id=<",
        "postfix/pickup[1]: 4jZ0: uid=33 from=<",
    ]
    + ["1vNQ2k-000000-A7 <= a@b H=(c) [127.0.0.1]:37634 P=esmtp id=", "U=root", " A=b:"]
)
logs = st.lists(st.tuples(_log_heads, _log_bodies, texts).map("".join), max_size=4).map(
    lambda made: "\n".join(made).encode("utf-8", "surrogateescape")
)

STRUCTURED: dict[str, st.SearchStrategy[bytes]] = {
    "event": events(),
    "ring": _samples,
    "packet": packets,
    "about": records,
    "cgroup": cgroups,
    "delegation": delegations,
    "maillog": logs,
    "entry": entries,
    "verbs": st.tuples(st.binary(min_size=1, max_size=1), entries).map(b"".join),
    "policy": policies,
    "question": questions,
    "arguments": arguments,
    "text": raw_texts,
}


def seeds(name: str) -> list[Path]:
    """Give the kept inputs of a target."""
    return sorted((CORPUS / name).glob("*"))


@st.composite
def _damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw an input, and change some of its bytes."""
    raw = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4) | raw_texts)
    return bytes(raw)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Give a target's made-up inputs: whole ones, kept ones, and damaged ones."""
    kept = [path.read_bytes() for path in seeds(name)]
    whole = STRUCTURED.get(name, st.binary(max_size=200))
    if kept:
        whole |= st.sampled_from(kept)
    return whole | _damaged(whole) | st.binary(max_size=60)
