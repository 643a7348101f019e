# SPDX-License-Identifier: GPL-2.0-or-later
"""A lock as two tables of nftables, through libnftables.

One table of the family inet (what this host sends and forwards), one of netdev (what
leaves by an uplink without having passed there: packet sockets). Both go in by one
transaction, and no table of anybody else is touched.

In libnftables' own language, not its JSON: as Debian 12 has it, JSON knows neither
the level of a cgroup nor a chain at several interfaces. Nothing but numbers, names
checked for it and our own words is put into the text.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterable, Iterator
from typing import Any

from guard.abi import Verdict
from guard.backstop.lock import Design, Lock
from guard.backstop.owner import Term
from guard.errors import BackstopError
from guard.kernel import find_cgroup2
from guard.policy import Network

# After the chains of others (filter is 0) and after every DNAT, so that what is
# compared is where the packet goes. Their accept ends their own chain only.
_PRIORITY = 10
_SYN = "tcp flags & (syn|ack|rst) == syn"
_CGROUPS = "/sys/fs/cgroup"  # libnftables looks for cgroups below it
_INSTALL = 'apt install python3-nftables, or kind = "iptables" in [backstop]'


class Nftables:
    """The tables of one guard in this network namespace."""

    kind = "nftables"
    look_seconds = 60.0  # news can be lost

    def __init__(self, name: str) -> None:
        """Name the tables; raises BackstopError where there is no nftables."""
        self.name = name
        try:
            import nftables
        except ImportError:
            raise BackstopError(
                "python3-nftables is not installed", hint=_INSTALL
            ) from None
        try:
            self._nft: Any = nftables.Nftables()
        except OSError as error:  # no libnftables.so.1
            raise BackstopError(str(error), hint=_INSTALL) from None
        self._nft.set_stateless_output(True)
        self._nft.set_numeric_proto_output(True)
        self._run("list tables")

    def check(self, lock: Lock) -> None:
        """Raise BackstopError if the kernel would refuse the lock."""
        self._nft.set_dry_run(True)
        try:
            self._run(self._text(lock))
        finally:
            self._nft.set_dry_run(False)

    def put(self, lock: Lock) -> None:
        """Put the lock in force in place of what is there, in one transaction."""
        self._run(self._text(lock))

    def state(self) -> str:
        """Give what is in force, as text that only changes when that does."""
        return "".join(
            self._run(f"list table {family} {self.name}")
            for family in ("inet", "netdev")
            if self._has(family)
        )

    def what(self, state: str) -> str:
        """Say what somebody did, by the state it left."""
        return "changed" if state else "flushed"

    def remove(self) -> bool:
        """Take the tables out; False: there were none."""
        there = [family for family in ("inet", "netdev") if self._has(family)]
        self._run("\n".join(f"delete table {family} {self.name}" for family in there))
        return bool(there)

    def _has(self, family: str) -> bool:
        tables = self._run(f"list tables {family}").splitlines()
        return f"table {family} {self.name}" in tables

    def _run(self, commands: str) -> str:
        status, output, said = self._nft.cmd(commands)
        if status:
            raise _error(said)
        return str(output)

    def _text(self, lock: Lock) -> str:
        return "\n".join(_ruleset(self.name, lock))


def _error(said: str) -> BackstopError:
    first = next(filter(None, said.splitlines()), "no reason given")
    hint = "guardctl doctor tells what this kernel lacks"
    if os.strerror(errno.EPERM) in said:
        hint = "run it with CAP_NET_ADMIN"
    return BackstopError(first.partition("Error: ")[2] or first, hint=hint)


def _ruleset(name: str, lock: Lock) -> Iterator[str]:
    """Give the lines of a transaction: what is there goes, the lock comes."""
    for family in ("inet", "netdev"):
        yield f"add table {family} {name}"
        yield f"delete table {family} {name}"
    if not lock.ports:
        return
    yield f"table inet {name} {{"
    yield from _judged("output", lock)
    yield from _chain("output", "output", lock, "oiftype != loopback")
    if lock.design is Design.OWNER:
        yield from _terms("local", lock, lock.local)
        yield from _chain("local", "output", lock, "oiftype loopback")
    if lock.uplinks:
        out = f"oifname {_set(map(_quoted, lock.uplinks))}"
        yield from _judged("forward", lock)
        yield from _chain("forward", "forward", lock, out)
    yield "}"
    if lock.uplinks and lock.design is Design.MARK:
        yield f"table netdev {name} {{"
        devices = f"devices = {_set(map(_quoted, lock.uplinks))}"
        # only what a socket of this host sends: the rest was met as forwarded
        yield from _judged("egress", lock)
        yield from _chain("egress", f"egress {devices}", lock, "meta skuid >= 0")
        yield "}"


def _chain(name: str, hook: str, lock: Lock, where: str) -> Iterator[str]:
    """Give a base chain that sends each first packet on to be judged.

    What goes to other ports pays for one comparison.
    """
    yield f"chain {name}_first {{"
    yield f"{_SYN} goto {name}_judged"
    # The ports in a first fragment, the flags in the next: RFC 1858. No TCP of a
    # kernel is cut like that, so its flags need not be known.
    yield f"ip frag-off & 0x3fff == 0x2000 goto {name}_judged"
    yield f"exthdr frag exists goto {name}_judged"
    yield "}"
    ports = _set(sorted(lock.ports))
    if name == "egress":
        yield from _tagged(name, ports)
    yield f"chain {name} {{"
    yield f"type filter hook {hook} priority {_PRIORITY}; policy accept;"
    yield f"tcp dport {ports} {where} jump {name}_first"
    if name == "egress":
        yield f"oiftype ether @ll,96,16 {{ 0x8100, 0x88a8 }} {where} jump {name}_tagged"
        # a packet socket may call its frame something else than it is
        for ethertype, called, rest in (
            ("0x0800", "ip", "@ll,184,8 6"),
            ("0x86dd", "ip6", ""),
        ):
            frame = (
                f"oiftype ether meta protocol != {called} @ll,96,16 {ethertype} {rest}"
            )
            yield f"{frame} {where} goto {name}_judged"
    yield "}"


def _tagged(name: str, ports: str) -> Iterator[str]:
    """Give the chain for frames that have a VLAN tag in them (IEEE 802.1Q).

    Only a packet socket makes those: what the kernel tags is tagged later. A tag of
    no VLAN is no tag to who receives it. nft looks behind none, so this does: type,
    protocol, port and flags at their places, which the header's length moves.
    """
    yield f"chain {name}_tagged {{"
    for words in range(5, 16):
        at = 18 + 4 * words  # bytes: hardware addresses, tag, type, IPv4 header
        yield (
            f"@ll,128,16 0x0800 @ll,144,8 {0x40 | words:#x} @ll,216,8 6 "
            f"{_first(at, ports)} goto {name}_judged"
        )
    yield f"@ll,128,16 0x86dd @ll,192,8 6 {_first(58, ports)} goto {name}_judged"
    # Cut, or with headers in between: where the port is, no place tells. Whichever
    # it is, no program of good will sends that with a tag of its own.
    cut = "@ll,192,16 & 0x3fff == 0x2000"
    yield f"@ll,128,16 0x0800 @ll,216,8 6 {cut} goto {name}_judged"
    yield f"@ll,128,16 0x86dd @ll,192,8 {{ 0, 43, 44, 60 }} goto {name}_judged"
    yield f"@ll,128,16 {{ 0x8100, 0x88a8 }} goto {name}_judged"  # a tag in a tag
    yield "}"


def _first(at: int, ports: str) -> str:
    """Match a first packet whose TCP header begins at this byte of the frame."""
    return f"@ll,{8 * at + 16},16 {ports} @ll,{8 * at + 104},8 & 0x16 == 0x02"


def _judged(name: str, lock: Lock) -> Iterator[str]:
    """Give the chain that lets a first packet pass, or records and refuses it."""
    if lock.design is Design.OWNER and name == "output":
        yield from _terms(name, lock, lock.outbound)
        return
    yield f"chain {name}_judged {{"
    if name == "forward":
        for match in _addresses("saddr", lock.forward):
            yield f"{match} accept"
    else:
        for mark in lock.marks:
            judged = f"mark & {mark:#x} == {mark:#x}"
            if name == "output":
                # the socket's, which no rule of anybody and no single message can
                # change; the packet's own from here on, for where it leaves
                yield f"socket {judged} meta mark set meta mark | {mark:#x} accept"
            else:
                yield f"meta {judged} accept"
    yield _record(name, "deny" if lock.enforce else "would-deny", lock)
    if lock.enforce:
        # egress knows no reject; there a sender need not be told anything
        yield "counter drop" if name == "egress" else "counter reject with tcp reset"
    elif name == "output" and lock.marks:
        # recorded once: not again where it leaves
        yield f"meta mark set meta mark | {lock.marks[0]:#x}"
    yield "}"


def _terms(name: str, lock: Lock, terms: tuple[Term, ...]) -> Iterator[str]:
    """Give the chain of a policy's rules, for the owner design."""
    yield f"chain {name}_judged {{"
    for term in terms:
        for match in _matches(term):
            yield from _verdict(name, match, term.verdict, term.quiet, lock, term)
    default, quiet = Verdict.DENY, False
    if name == "local":
        default, quiet = lock.local_default, not lock.local_audit
    yield from _verdict(name, "", default, quiet, lock)
    yield "}"


def _verdict(
    name: str,
    match: str,
    verdict: Verdict,
    quiet: bool,
    lock: Lock,
    term: Term | None = None,
) -> Iterator[str]:
    if verdict is Verdict.ALLOW:
        record = "" if quiet else _record(name, "allow", lock, term)
        yield f"{match} {record} accept"
        return
    word = "deny" if lock.enforce else "would-deny"
    yield f"{match} {_record(name, word, lock, term)}"
    how = "counter reject with tcp reset" if lock.enforce else "accept"
    yield f"{match} {how}"


def _matches(term: Term) -> Iterator[str]:
    """Give the matches of a term, one for each family and cgroup; none: nobody."""
    plain = []
    for key, values in (
        ("meta skuid", term.uids),
        ("meta skgid", term.gids),
        ("tcp dport", term.ports),
    ):
        if values is not None:
            if not values:
                return
            plain.append(f"{key} {_set(values)}")
    to = [""] if term.to is None else list(_addresses("daddr", term.to))
    cgroups = [""]
    if term.cgroups is not None:
        cgroups = [_cgroup(path) for path, _ in term.cgroups]
    for address in to:
        for cgroup in cgroups:
            yield " ".join(filter(None, [*plain, address, cgroup]))


def _cgroup(path: str) -> str:
    there = os.path.relpath(find_cgroup2() / path, _CGROUPS)
    return f"socket cgroupv2 level {path.count('/') + 1} {_quoted(there)}"


def _record(chain: str, verdict: str, lock: Lock, term: Term | None = None) -> str:
    # 160 bytes hold a frame's, an IPv6 and a TCP header, and some options
    rule = f" {term.number}" if term else ""
    prefix = _quoted(f"smtp-guard {chain} {verdict}{rule}")
    return f"log prefix {prefix} group {lock.group} snaplen 160"


def _addresses(which: str, networks: Iterable[Network]) -> Iterator[str]:
    """Give a match for each family that is named."""
    networks = tuple(networks)
    for kind, family in ((ipaddress.IPv4Network, "ip"), (ipaddress.IPv6Network, "ip6")):
        # collapsed: a set of intervals takes none twice
        found = [n for n in networks if isinstance(n, kind)]
        same = sorted(ipaddress.collapse_addresses(found))  # type: ignore[type-var]
        if same:
            yield f"{family} {which} {_set(same)}"


def _set(values: Iterable[object]) -> str:
    return f"{{ {', '.join(map(str, values))} }}"


def _quoted(text: str) -> str:
    """Put it in quotes; the language has no escape for one inside."""
    if '"' in text or not text.isprintable():
        raise BackstopError(f"{text!a} cannot stand in a rule")
    return f'"{text}"'
