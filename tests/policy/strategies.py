# SPDX-License-Identifier: GPL-2.0-or-later
"""Made-up policies and callers whose rules overlap and often match.

`random_case` draws from random.Random, `cases()` is the same as a hypothesis
strategy, and `ask` turns a case into what the kernel's judge program is
asked. Executables are made up too: `identify` stands for the kernel's answer.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from hypothesis import strategies as st

from guard import abi
from guard.abi import Direction, Mode, Verdict
from guard.policy import Caller, Destination, Executable, Policy, Rule, exe_id
from guard.policy.model import Address, Network
from guard.policy.units import UnitPattern, unit_pattern

T = TypeVar("T")


class Chooser(Protocol):
    """All that the generator needs of a source of chance."""

    def choice(self, items: Sequence[T]) -> T: ...

    def below(self, limit: int) -> int: ...


class _Random:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def choice(self, items: Sequence[T]) -> T:
        return self.random.choice(items)

    def below(self, limit: int) -> int:
        return self.random.randrange(limit)


class _Drawn:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def choice(self, items: Sequence[T]) -> T:
        return self.draw(st.sampled_from(items))

    def below(self, limit: int) -> int:
        return self.draw(st.integers(0, limit - 1))


UIDS = (0, 33, 102, 1000, 0xFFFFFFFE)
GIDS = (0, 33, 105, 1000, 0xFFFFFFFE)
PORTS = (25, 465, 587, 2525)

# path: (device, inode, generation, directory's inode); smtp and lmtp are one
# file under two names, as Debian ships them; the last is not there.
FILES = {
    Path("/usr/lib/postfix/sbin/smtp"): (1, 100, 7, 10),
    Path("/usr/lib/postfix/sbin/lmtp"): (1, 100, 7, 10),
    Path("/usr/sbin/exim4"): (1, 101, 7, 11),
    Path("/usr/sbin/smtpd"): (1, 102, 7, 11),
    Path("/opt/mta/smtpd"): (2, 102, 7, 11),
    Path("/opt/mta/" + "x" * (abi.NAME_LEN - 1)): (2, 103, 0, 11),
}
MISSING = Path("/usr/bin/missing")

NETWORKS: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/0", "203.0.113.0/24", "203.0.113.128/25", "203.0.113.200"),
        *("203.0.0.0/16", "198.51.100.0/24", "127.0.0.0/8", "128.0.0.0/1"),
        *("::/0", "::/64", "::/96", "2001:db8::/32", "2001:db8:1::/48"),
        *("2001:db8:1::1", "::1", "64:ff9b::/96", "64:ff9b::cb00:7100/120"),
    )
)
ADDRESSES: tuple[Address, ...] = tuple(
    ipaddress.ip_address(text)
    for text in (
        *("203.0.113.1", "203.0.113.200", "203.0.113.201", "203.0.7.1"),
        *("198.51.100.9", "127.0.0.1", "8.8.8.8", "0.0.0.0", "255.255.255.255"),
        *("2001:db8::1", "2001:db8:1::1", "2001:db8:1::2", "::1", "::", "fe80::1"),
        *("64:ff9b::cb00:7101", "64:ff9b::c633:6409", "::ffff:203.0.113.200"),
    )
)

LONGEST = "n" * (abi.NAME_LEN - 1)
NAMES = (
    *("system.slice", "user.slice", "postfix.service", "postfix@-.service"),
    *("postfix@a.service", "post", "p", "postfix", "session-1.scope", ".service"),
    *("system-postfix.slice", "user-1000.slice", "a.mount", LONGEST),
    LONGEST[:-8] + ".service",
)
TOO_LONG = (LONGEST + "n", "postfix@" + "y" * 60 + ".service", "z" * 255)
GLOBS = (
    *("*", "*.service", "*.slice", "p*", "post*", "postfix*.service", "postfix@*"),
    *("postfix@*.service", "system*.slice", "session-*.scope", "n*", ".service*"),
    LONGEST[:-1] + "*",
)


def identify(path: Path) -> tuple[abi.ExeKey, abi.ExeKey]:
    """Give the keys of a made-up file, as the kernel's identify program would."""
    if path not in FILES:
        raise FileNotFoundError(errno.ENOENT, "made up as missing", str(path))
    device, inode, generation, directory = FILES[path]
    return (
        abi.ExeKey(inode, device, generation, 0, 0, b""),
        abi.ExeKey(directory, device, 0, 0, 0, path.name.encode()),
    )


def _some(choose: Chooser, items: Sequence[T]) -> tuple[T, ...]:
    count = choose.choice((1, 1, 2, 3))
    return tuple(dict.fromkeys(choose.choice(items) for _ in range(count)))


def _named(choose: Chooser, items: Sequence[T], one_in: int) -> tuple[T, ...] | None:
    """Name a dimension in one of so many rules, now and then with no value."""
    if choose.below(one_in):
        return None
    return () if choose.below(12) == 0 else _some(choose, items)


def _unit(choose: Chooser) -> UnitPattern:
    depth = choose.choice((1, 1, 2, 2, 2, 3, abi.UNIT_DEPTH))
    names = [
        choose.choice(GLOBS if choose.below(3) == 0 else NAMES[:7])
        for _ in range(depth)
    ]
    return unit_pattern("/" + "/".join(names))


def make_policy(choose: Chooser, rules: int) -> Policy:
    """Make a policy of so many rules, out of few values so that they overlap."""
    directions = sorted(
        choose.choice((Direction.OUTBOUND, Direction.OUTBOUND, Direction.LOCAL))
        for _ in range(rules)
    )
    made = []
    for number, direction in enumerate(directions):
        verdicts = list(Verdict)[: 2 if direction is Direction.LOCAL else 3]
        units = _named(choose, range(3), 2)
        patterns = None if units is None else tuple(_unit(choose) for _ in units)
        made.append(
            Rule(
                number,
                f"r{number}",
                direction,
                choose.choice(verdicts),
                patterns,
                _named(choose, (*FILES, MISSING), 3),
                _named(choose, UIDS, 3),
                _named(choose, GIDS, 4),
                _named(choose, NETWORKS, 3),
                _named(choose, PORTS, 4),
                choose.choice((None, None, True, False)),
            )
        )
    while sum(rule.rows for rule in made) > abi.MAX_ROWS:
        made.pop()
    return Policy(
        choose.choice(list(Mode)),
        frozenset(PORTS),
        tuple(made),
        local_audit=choose.choice((True, False)),
        local_default=choose.choice((Verdict.DENY, Verdict.ALLOW)),
        sha256=bytes(range(32)),
    )


def make_question(choose: Chooser, policy: Policy) -> tuple[Caller, Destination]:
    """Make a caller that some rule was meant for, often off by one value."""
    plain = Rule(0, "", Direction.OUTBOUND, Verdict.DENY)
    rule = choose.choice(policy.rules) if policy.rules else plain
    direction = rule.direction if choose.below(8) else choose.choice(list(Direction))
    caller = Caller(
        _near(choose, rule.uids, UIDS),
        _near(choose, rule.gids, GIDS),
        _executable(choose, _near(choose, rule.exes, (*FILES,))),
        _cgroup(choose, rule.units),
    )
    address = choose.choice(ADDRESSES)
    if rule.to and choose.below(4):
        network = choose.choice(rule.to)
        address = network[choose.choice((0, -1, min(1, network.num_addresses - 1)))]
    return caller, Destination(address, _near(choose, rule.ports, PORTS), direction)


def _near(choose: Chooser, wanted: Sequence[T] | None, others: Sequence[T]) -> T:
    return choose.choice(wanted if wanted and choose.below(8) else others)


def _executable(choose: Chooser, path: Path) -> Executable | None:
    if path not in FILES or choose.below(16) == 0:
        return None
    inode, name = map(exe_id, identify(path))
    if choose.below(8) == 0:  # replaced by an upgrade: new inode, same name
        inode = (inode[0], inode[1] + 1000, 1, b"")
    elif choose.below(8) == 0:  # the same file under another name
        name = (name[0], name[1], 0, b"elsewhere")
    return Executable(inode, name, trusted=choose.below(10) != 0)


def _cgroup(choose: Chooser, units: Sequence[UnitPattern] | None) -> str:
    names: list[str] = []
    if units and choose.below(8):
        for component in choose.choice(units).components:
            name = component.head.decode()
            if component.star:
                name += choose.choice(("", "-", "@x"))
                tail = choose.choice(list(abi.UnitTail))
                tail = component.tail if component.tail and choose.below(8) else tail
                name += ("", ".service", ".slice", ".scope")[tail]
            names.append(name[:255])
    for _ in range(choose.choice((0, 0, 0, 1, 2, abi.UNIT_DEPTH))):
        names.append(choose.choice(NAMES))
    if names and choose.below(10) == 0:
        names[choose.below(len(names))] = choose.choice(TOO_LONG)
    if names and choose.below(10) == 0:
        names.pop(choose.below(len(names)))
    return "/" + "/".join(name for name in names if name)


Case = tuple[Policy, list[tuple[Caller, Destination]]]


def random_case(seed: int, rules: int = 12, questions: int = 50) -> Case:
    """Make a policy and questions to it; the same seed gives the same case."""
    choose = _Random(seed)
    policy = make_policy(choose, rules)
    return policy, [make_question(choose, policy) for _ in range(questions)]


@st.composite
def cases(draw: st.DrawFn, rules: int = 8, questions: int = 8) -> Case:
    """Draw a policy of at most so many rules, and questions to it."""
    choose = _Drawn(draw)
    policy = make_policy(choose, choose.below(rules + 1))
    return policy, [make_question(choose, policy) for _ in range(questions)]


def ask(caller: Caller, destination: Destination, slot: int = 0) -> abi.Question:
    """Put a case into the words of the kernel's judge program.

    A component of NAME_LEN bytes or more fills its field with no NUL: the sign
    of a name too long to compare. uid and gid must be known.
    """
    assert caller.uid is not None and caller.gid is not None
    question = abi.Question(
        slot=slot,
        direction=destination.direction,
        uid=caller.uid,
        gid=caller.gid,
        port=destination.port,
        address=(ctypes.c_uint8 * 16)(*abi.pack_address(str(destination.address))),
    )
    if caller.executable:
        for key, identity in (
            (question.inode, caller.executable.inode),
            (question.name, caller.executable.name),
        ):
            key.device, key.inode, key.generation, key.name = identity
            key.slot = slot
        question.trusted = caller.executable.trusted
    names = [name for name in (caller.unit or "").encode().split(b"/") if name]
    question.depth = min(len(names), abi.UNIT_DEPTH)
    for field, name in zip(question.component, names, strict=False):
        field.value = name[: abi.NAME_LEN]
    return question
