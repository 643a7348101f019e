# SPDX-License-Identifier: GPL-2.0-or-later
"""What a policy is, once read: frozen facts, names turned into numbers.

In a Rule, None means that the rule does not name this dimension. An empty
tuple means that it names something which does not exist here (the user of a
package that is not installed): such a rule matches nobody.
"""

from __future__ import annotations

import ipaddress
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path

from guard.abi import Direction, Mode, Protection, Verdict
from guard.policy.units import UnitPattern
from guard.text import printable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 6052 section 2.1: the same IPv4 destination, through a NAT64.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

DEFAULT_FILE = Path("/etc/smtp-guard/policy.toml")
DEFAULT_PORTS = frozenset({25, 465, 587})


def excerpt(value: object, limit: int = 80) -> str:
    """Give what a policy's author wrote as harmless text, cut after limit."""
    try:
        text = str(value)
    except ValueError:  # int beyond sys.get_int_max_str_digits()
        text = "a very large number"
    return printable(text if len(text) <= limit else text[:limit] + "...")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a policy: where, what, and what to do about it."""

    severity: str  # error, warning
    file: str
    line: int | None  # from 1; None: not known
    rule: str | None  # 'rule "postfix"', 'rule 3'
    message: str
    remedy: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        what = f"{self.rule}: {self.message}" if self.rule else self.message
        head = f"{place}: {self.severity}: {what}"
        return "\n".join(_wrap(head, "") + _wrap(self.remedy, "  "))

    def as_json(self) -> dict[str, object]:
        """Give the fields as a JSON object."""
        return asdict(self)


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        79,
        initial_indent=indent,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One [[rule]] or [[local.rule]]; all that it names must hold."""

    number: int  # index into Policy.rules
    name: str
    direction: Direction
    verdict: Verdict
    units: tuple[UnitPattern, ...] | None = None
    exes: tuple[Path, ...] | None = None
    uids: tuple[int, ...] | None = None  # effective
    gids: tuple[int, ...] | None = None  # effective
    to: tuple[Network, ...] | None = None  # no IPv4-mapped IPv6 among them
    ports: tuple[int, ...] | None = None
    journal: bool | None = None  # None: not said
    optional: bool = False
    login: bool | None = None  # LOCAL: the mail server asks for one; None: not said
    folders: tuple[Path, ...] | None = None  # LOCAL: where login is not asked for
    file: str = ""
    line: int | None = None
    smart: bool = False  # to and ports are the smart host's

    @property
    def label(self) -> str:
        """Name the rule for a message."""
        kind = "local rule" if self.direction is Direction.LOCAL else "rule"
        return f'{kind} "{self.name}"'

    @property
    def names_somebody(self) -> bool:
        """Tell whether it says who, and not only where to."""
        who = (self.units, self.exes, self.uids, self.gids)
        return who != (None,) * 4

    @property
    def vouches(self) -> bool:
        """Tell whether who it lets pass to our own mail server need not log in there.

        Of one with folders only who works in one of these.
        """
        if not self.reaches_us:
            return False
        return self.names_somebody if self.login is None else not self.login

    @property
    def reaches_us(self) -> bool:
        """Tell whether it lets somebody pass to the host's own mail server."""
        if self.direction is Direction.LOCAL:
            return self.verdict is Verdict.ALLOW
        return self.verdict is Verdict.REDIRECT

    @property
    def rows(self) -> int:
        """Count the row bits that the rule takes: one, or one a unit."""
        return max(1, len(self.units or ()))


@dataclass(frozen=True, slots=True)
class Fold:
    """How many findings come at once before repeats are only counted."""

    window_ns: int = 5_000_000_000  # 0: never fold
    denied: int = 5  # per identity, verdict, destination and window
    local: int = 1000


@dataclass(frozen=True, slots=True)
class Before:
    """What becomes of connections older than the guard that the policy denies."""

    end: bool = False  # under enforce; False: they are told, and left open
    grace_ns: int = 60_000_000_000  # in which they may finish by themselves


@dataclass(frozen=True, slots=True)
class Backstop:
    """The second lock, in netfilter: which, and what it needs to know."""

    kind: str = "auto"  # nftables, iptables, off
    mark: int = 0x0800_0000  # bits of SO_MARK that judged sockets carry
    forward: tuple[Network, ...] = ()  # sources whose forwarded SMTP may leave
    uplinks: tuple[str, ...] | None = None  # None: those that lead out
    group: int = 2525  # NFLOG group, host-wide

    @property
    def socket_mark(self) -> int:
        """The bits that the kernel programs put on a judged socket; 0: none."""
        return 0 if self.kind == "off" else self.mark


@dataclass(frozen=True, slots=True)
class Limit:
    """One [[mta.limit]]: what an origin may send in a minute and in an hour."""

    name: str
    by: str  # user, unit, folder: what an origin is
    action: str  # defer, hold, reject, notify: what becomes of what is beyond
    messages: tuple[int | None, int | None]  # a minute, an hour; None: any number
    recipients: tuple[int | None, int | None]
    below: Path | None = None  # by folder: whose subfolders are told apart
    rules: tuple[str, ...] | None = None  # local rules that let it pass; None: all


@dataclass(frozen=True, slots=True)
class Mta:
    """What the guard and the host's own mail server tell each other."""

    socket: Path | None = None  # where Postfix asks; None: nowhere
    mode: Mode = Mode.OBSERVE  # enforce: its answers refuse and hold
    relay_mynetworks: bool = True  # False: processes of this host log in, or are named
    unknown: str = "pass"  # pass, defer, reject: of whom nothing is known
    limits: tuple[Limit, ...] = ()
    token_keys: Path | None = None  # of the header that leads back; None: no header


@dataclass(frozen=True, slots=True)
class SmartHost:
    """The one relay by which all mail leaves; str() writes it as Postfix does."""

    host: str  # in lower case, or an address
    port: int
    mx: bool  # its mail exchangers are meant: not in brackets
    source: str  # policy, postfix

    def __str__(self) -> str:
        """Write it as relayhost has it."""
        return f"{self.host if self.mx else f'[{self.host}]'}:{self.port}"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a smart host's addresses."""

    addresses: tuple[Address, ...] = ()  # in order, IPv4 first
    error: str = ""  # why the last try to look it up failed
    # of each, seconds: the longest TTL that it was given with; no news if it changes
    ttls: tuple[float, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Policy:
    """All that a policy file and its includes say."""

    mode: Mode
    ports: frozenset[int]
    rules: tuple[Rule, ...]  # outbound first, then local, each in match order
    local_audit: bool = True
    local_default: Verdict = Verdict.ALLOW
    redirect4: tuple[str, int] | None = None  # None: IPv4 is denied instead
    redirect6: tuple[str, int] | None = None
    fold: Fold = Fold()
    backstop: Backstop = Backstop()
    before: Before = Before()
    mta: Mta = Mta()
    repair: bool = True  # what somebody changes in the kernel is put back
    protection: Protection = Protection.OFF  # of who changes it, by the LSM
    needs_bpf: bool = False  # without kernel programs it is not put in force
    smart_host: SmartHost | None = None  # None too where no rule asks for it
    known: Known | None = None  # None: no rule asks for it
    sha256: bytes = bytes(32)  # of all files, in the order read
    files: tuple[Path, ...] = ()  # the policy file first, then its includes
    exes: frozenset[Path] = frozenset()  # as named, and every link on the way
    watch: frozenset[Path] = frozenset()  # a change of these calls for refresh()
    warnings: tuple[Problem, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()  # name and content of each file

    def rule_name(self, number: int) -> str | None:
        """Name the rule of an event; None for NO_RULE or an unknown number."""
        return self.rules[number].name if 0 <= number < len(self.rules) else None

    @property
    def rule_names(self) -> tuple[str, ...]:
        """Give what rule_name() gives, by number."""
        return tuple(rule.name for rule in self.rules)

    @property
    def mta_enforces(self) -> bool:
        """Tell whether answers to the mail server refuse and hold."""
        return self.mode is Mode.ENFORCE and self.mta.mode is Mode.ENFORCE

    def quiet(self, rule: Rule) -> bool:
        """Tell whether what this rule lets pass makes no finding."""
        if rule.verdict is not Verdict.ALLOW:
            return False
        if rule.journal is not None:
            return not rule.journal
        return rule.direction is Direction.OUTBOUND or not self.local_audit

    @property
    def default_quiet(self) -> bool:
        """Tell whether a local connection without a rule makes no finding."""
        return self.local_default is Verdict.ALLOW and not self.local_audit
