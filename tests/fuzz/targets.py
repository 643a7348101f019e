# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of all that takes input: a name, and what is done with the bytes.

A target may end in a GuardError whose message is printable, and in nothing else: any
other exception is a bug, and so is what it asserts.
"""

from __future__ import annotations

import ipaddress
import mmap
import os
import random
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from guard import abi, filewatch, ringbuf
from guard.backstop.packet import unpack_head
from guard.cli.output import Table, as_json, cut, cut_front, notice_line
from guard.errors import BadQuery, GuardError, JournalError, PolicyError, TornEvent
from guard.event import unpack_event
from guard.finding import Finding, Message, Notice
from guard.journal import Found, frame, lines, read
from guard.message import mail_message, message
from guard.mta.admission import DUNNO, Admission
from guard.mta.delegation import answer, parse_request, take_requests
from guard.mta.limits import Counts
from guard.mta.maillog import parse_line, read_line
from guard.mta.telling import sent_message
from guard.origin import Naming, cgroup2_path, container_of, unit_of
from guard.policy import compile_rows, parse
from guard.policy.describe import policy_json
from guard.policy.files import stat_identify
from guard.query import Filter, parse_time
from guard.query.groups import FIELDS
from guard.tables import read_about
from guard.text import printable
from tests.fuzz.shown import HARMFUL, guardctl, show
from tests.journal.findings import PLAIN
from tests.policy.strategies import make_question
from tests.policy.test_rows import agree

CORPUS = Path(__file__).parent / "corpus"
POLICIES = Path(__file__).resolve().parents[2] / "policies"
T = TypeVar("T")


def survives(target: Callable[[bytes], None], data: bytes) -> None:
    """Run a target; anything but an error in our own words escapes."""
    try:
        target(data)
    except GuardError as error:
        report = error.report()
        assert report.strip() and not HARMFUL.search(report), report


# ---- what the kernel gives

NAMING = Naming()


def of_this_version(data: bytes) -> bytes:
    """Give an event the version of today, so that a kept one goes on being of use."""
    if data[:2] == b"\xff\xff":  # one that is of another
        return data
    return abi.ABI.to_bytes(2, "little") + data[2:]


def event(data: bytes) -> None:
    """One sample of the ring: torn, or a finding that the journal gives back."""
    try:
        made = unpack_event(of_this_version(data))
    except TornEvent as error:
        assert error.exit_status == 65
        raise
    finding = NAMING.finding(made)
    assert journalled(finding) == finding
    _harmless(finding)


class _Ring(ringbuf.RingBuffer):
    """The reader of a ring that is a file: positions, then the data twice."""

    def __init__(self, data: bytes) -> None:
        size = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create("ring")
        os.write(fd, bytes(2 * mmap.PAGESIZE) + data.ljust(size, b"\0") * 2)
        os.pwrite(fd, len(data).to_bytes(8, "little"), mmap.PAGESIZE)
        self._open(fd, size)

    def close(self) -> None:
        super().close()
        os.close(self._fd)


def ring(data: bytes) -> None:
    """The whole ring: it is read to its end, and gives no more than is in it."""
    if not data:
        return
    reader = _Ring(data)
    try:
        given = sum(8 + len(sample) for sample in reader.samples())
    finally:
        reader.close()
    assert given <= len(data) + 2 * -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE


def packet(data: bytes) -> None:
    """The first bytes of a packet, which its sender chose: a head of TCP, or none."""
    for framed in (False, True):
        head = unpack_head(data, framed)
        for host, port in (head.src, head.dst) if head else ():
            assert str(ipaddress.ip_address(host)) == host and 0 <= port < 1 << 16
            assert abi.unpack_address(abi.pack_address(host)) == host
    tcp = unpack_head(data[14:]) if data[12:14] in (b"\x08\x00", b"\x86\xdd") else None
    assert tcp is None or unpack_head(data, framed=True) == tcp


STRICT = Admission(NAMING, lambda address: True, Counts(Path("/proc/none")))
STRICT.follow(
    parse(
        'mode = "enforce"\n[mta]\nsocket = "/a/b/c"\nmode = "enforce"\n'
        'relay_mynetworks = false\nunknown = "reject"\n'
    )
)


def delegation(data: bytes) -> None:
    """What Postfix asks, with what a client said in it: refused, or journalled."""
    whole, _ = take_requests(data)
    for raw in whole:
        request = parse_request(raw)
        told = sent_message(request, None, NAMING, DUNNO, "", 1)
        assert journalled(told) == told
        _harmless(told)
        said = answer(STRICT.decide(request, None).action)
        assert said.isascii() and said.count(b"\n") == 2 and len(said) < 512


def maillog(data: bytes) -> None:
    """Lines of a mail log: of no use, or a queue id and who it says it was."""
    for raw in data.split(b"\n"):
        line = read_line(raw.decode("utf-8", "surrogateescape"), 1_795_335_789_549_780)
        found = parse_line(line) if line else None
        assert found is None or found.queue_id.replace("-", "").isalnum()


def about(data: bytes) -> None:
    """The record in the map `about`: refused, or of the types that verbs rely on."""
    try:
        record = read_about(data)
    except ValueError:
        return  # Tables.about() says it in our own words
    Path(record.get("policy", ""))
    assert str(record.get("refused") or "").splitlines() is not None
    assert time.time() - record.get("started", 0.0) < float("inf")
    assert sum(record.get("told", {}).values()) is not None


def inotify(data: bytes) -> None:
    """What inotify gives: read to its end, however it is cut."""
    filewatch.concerns(data, {1: {b"policy.toml"}, 2: {b"x" * 255}})


def cgroup(data: bytes) -> None:
    """/proc/PID/cgroup: the path is the kernel's line, whatever names hold."""
    path = cgroup2_path(data)
    given = [line[3:] for line in data.split(b"\n") if line.startswith(b"0::")]
    assert os.fsencode(path) == (given or [b"/"])[0]
    assert not HARMFUL.search(printable(f"{unit_of(path)} {container_of(path)}"))


# ---- what the journal gives


def fields_of(data: bytes) -> list[dict[str, Any]]:
    """Read entries as of `journalctl -o export`; bytes, or a list of them."""
    entries: list[dict[str, Any]] = [{}]
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not line:
            entries.append({})
            continue
        if not equals:
            size = min(int.from_bytes(data[:8], "little"), len(data))
            value, data = data[8 : 8 + size], data[9 + size :]
        text = name.decode("utf-8", "replace")
        if text in entries[-1]:
            before = entries[-1][text]
            given = before if isinstance(before, list) else [before]
            entries[-1][text] = [*given, value]
        else:
            entries[-1][text] = value
    return [entry for entry in entries if entry]


def journalled(found: Found) -> Found:
    """Send a finding as guardd does, and read what journald makes of it."""
    (entry,) = fields_of(frame(lines(found)))
    return read(entry)


def entry(data: bytes) -> None:
    """Entries of the journal: what can be read can be shown, and written again."""
    for one in fields_of(data):
        try:
            found = read(one)
        except JournalError as error:
            assert str(error).isprintable()
            continue
        if not isinstance(found, Notice):
            assert journalled(found) == found
        _harmless(found)


def _harmless(found: Found) -> None:
    as_json(found).encode("ascii")
    if isinstance(found, Message):
        shown = [mail_message(found), notice_line(found, 80)]
        assert not any(map(HARMFUL.search, shown)), shown
    if isinstance(found, Finding):
        shown = [message(found), *(Table(width).line(found) for width in (80, 140))]
        shown += [cut_front(str(value(found)), 40) for value in FIELDS.values()]
        assert not any(map(HARMFUL.search, shown)), shown


_VERBS: tuple[tuple[str, ...], ...] = (
    ("who-connected",),
    ("who-connected", "--json", "--reverse"),
    ("who-connected", "--csv", "--limit", "3"),
    ("who-sent", "4jZ0BV37cFz1f"),
    ("who-sent", "4jZ0BV37cFz1f", "--json"),
    ("watch",),
    ("watch", "--json"),
    ("plan", "--since", "@0"),
    ("plan", "--since", "@0", "--json"),
    *(("who-connected", "--group-by", field) for field in ("args", "to", "comm")),
    ("who-connected", "--group-by", "outcome", "--json"),
)


def verbs(data: bytes) -> None:
    """Entries of the journal through the verbs that show them; the first byte says
    which verb, 0xff all.
    """
    if not data:
        return
    entries = fields_of(data[1:])
    which = _VERBS if data[0] == 0xFF else [_VERBS[data[0] % len(_VERBS)]]
    for argv in which:
        show(entries, *argv)


# ---- what people write


class _Chance:
    """Questions to a policy that depend on its text alone."""

    def __init__(self, data: bytes) -> None:
        self.random = random.Random(zlib.crc32(data))

    def choice(self, items: Sequence[T]) -> T:
        return self.random.choice(items)

    def below(self, limit: int) -> int:
        return self.random.randrange(limit)


def policy(data: bytes) -> None:
    """A policy: refused, or rows that judge as its words do."""
    text = data.decode("utf-8", "ignore")
    try:
        made = parse(text)
    except PolicyError as error:
        assert error.problems and error.exit_status == 78
        raise
    assert not HARMFUL.search("".join(map(str, made.warnings)))
    compile_rows(made, 0, stat_identify)
    policy_json(made)
    chance = _Chance(data)
    agree(made, [make_question(chance, made) for _ in range(8)], slot=1)


def question(data: bytes) -> None:
    """A time and an address, as given to --since and --to."""
    first, _, second = data.decode("utf-8", "surrogateescape").partition("\n")
    try:
        assert 0 <= parse_time(first, now_us=1_795_335_789_549_780) < 1 << 55
    except BadQuery as error:
        assert error.hint and str(error).isprintable()
    wanted = Filter(to=(second,), exes=(first,), units=(second,))
    assert all(isinstance(match, str) for match in wanted.matches())
    wanted.accepts()(PLAIN)


def arguments(data: bytes) -> None:
    """guardctl's own command line: the first byte says the verb, the rest is what
    stands behind it, NUL between.
    """
    verbs: tuple[tuple[str, ...], ...] = (
        ("who-connected", "--directory", "/nonexistent"),
        ("plan", "--directory", "/nonexistent"),
        ("explain", "--policy", str(POLICIES / "default.toml")),
        ("policy", "check"),
        ("policy", "show"),
        ("status",),
        (),
    )
    if not data:
        return
    argv = [os.fsdecode(word) for word in data[1:].split(b"\0")]
    verb = verbs[data[0] % len(verbs)]
    # nothing that acts on this host, goes on for ever, or reads its real journal
    not_here = {"load", "unload", "apply", "watch", "--follow", "who-connected", "plan"}
    guardctl(*verb, *(word for word in argv if word not in not_here))


def finding(data: bytes) -> None:
    """A row of who-connected, as given to `explain --finding`."""
    default = str(POLICIES / "default.toml")
    guardctl("explain", "--policy", default, "--finding", "-", stdin=data)


def text(data: bytes) -> None:
    """Text of a process on its way to a terminal."""
    given = data.decode("utf-8", "surrogateescape")
    for made in (printable(given), cut(given, 20), cut_front(given, 20)):
        assert not HARMFUL.search(made), made
    assert printable(printable(given)) == printable(given)
    assert len(cut(given, 20)) <= 20 and len(cut_front(given, 20)) <= 20


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(event, ring, packet, about, inotify, cgroup, delegation, maillog),
        *(entry, verbs),
        *(policy, question, arguments, finding, text),
    )
}
