# SPDX-License-Identifier: GPL-2.0-or-later
"""A lock as chains of legacy iptables and ip6tables, through python-iptables.

For kernels without nftables. It meets what this host sends and forwards; packet
sockets, which have no hook here, it does not see. A first fragment that is cut
before the TCP flags is dropped by the kernel's own tcp match.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

from systemd import daemon as sd

from guard import child
from guard.abi import Verdict
from guard.backstop.lock import Design, Lock
from guard.backstop.owner import Term
from guard.errors import BackstopError
from guard.policy import Network

DROP_IN = "/usr/share/smtp-guard/examples/smtp-guard-iptables.conf"
_SECONDS = 20  # that iptables itself may take
# That python-iptables may, waiting for others included: it takes 0.7 s of processor, 20
# where that is emulated. Meanwhile systemd hears each so often that guardd lives.
_CHILD_SECONDS, _BEAT_SECONDS = 60, 5
_LISTINGS = {"4": "iptables-legacy-save", "6": "ip6tables-legacy-save"}
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # of root, whoever asks
_BEHIND = "behind"
_MULTIPORT = 15  # XT_MULTI_PORTS, include/uapi/linux/netfilter/xt_multiport.h
_SYN = ["tcp", {"tcp-flags": ["SYN,ACK,RST", "SYN"]}]
_BOTH = "46"
Rule = dict[str, Any]


def chain_prefix(name: str) -> str:
    """Give what the chains of a guard begin with.

    28 letters at most with their ends: XT_EXTENSION_MAXNAMELEN,
    include/uapi/linux/netfilter/x_tables.h.
    """
    return name.upper()[:20]


class Iptables:
    """The chains of one guard in this network namespace."""

    kind = "iptables"
    look_seconds = 10.0  # it sends no news of changes
    _tried = False  # that python-iptables works; once in a process, it takes its time

    def __init__(self, name: str) -> None:
        """Name the chains; raises BackstopError where there is no iptables."""
        self.name = chain_prefix(name)
        self._chains = [f"{self.name}_{end}" for end in ("OUTPUT", "LOCAL", "FORWARD")]
        if not Iptables._tried:
            self._ask("try")
            Iptables._tried = True
        self.state()

    def check(self, lock: Lock) -> None:
        """Raise BackstopError if the lock cannot be put into rules."""
        list(_rules(self.name, lock))

    def put(self, lock: Lock) -> None:
        """Put the lock in force in place of what is there, a family at a time."""
        self._ask("put", list(_rules(self.name, lock)))

    def state(self) -> str:
        """Give what is in force, as text that only changes when that does.

        A line a rule that is ours or leads to ours. What leads to ours is the first of
        its chain, or behind a rule of somebody else's that may let pass what ours would
        meet. Asked of iptables itself: python-iptables takes a hundred times as long,
        on a busy host longer than may be waited for, and than systemd waits for guardd
        (WatchdogSec).
        """
        return "\n".join(
            line
            for family, program in _LISTINGS.items()
            for line in _ours(_listing(program), self._chains, family)
        )

    def what(self, state: str) -> str:
        """Say what somebody did, by the state it left."""
        if any(line.split(" ", 3)[2] == _BEHIND for line in state.splitlines()):
            return "put rules of others before"
        return "changed" if state else "flushed"

    def remove(self) -> bool:
        """Take the chains out; False: there were none."""
        there = bool(self.state())
        self._ask("remove")
        return there

    def _ask(self, verb: str, rules: list[Rule] | None = None) -> None:
        question = {"verb": verb, "chains": self._chains, "rules": rules or []}
        try:
            out, said = _answered(json.dumps(question))
            answer = json.loads(out)
        except subprocess.TimeoutExpired:
            raise BackstopError(
                f"iptables: no answer within {_CHILD_SECONDS} s",
                hint="this host is very busy, or somebody holds the lock: "
                "fuser -v /run/xtables.lock",
            ) from None
        except OSError as error:
            raise BackstopError(f"iptables: {error}") from None
        except ValueError:
            last = (said.strip().splitlines() or ["no answer"])[-1]
            hint = "apt install python3-iptables" if "iptc" in last else ""
            raise BackstopError(f"iptables: {last}", hint=hint) from None
        if "error" in answer:
            raise _refused(answer["error"])


def _answered(question: str) -> tuple[str, str]:
    """Give what ipt.py printed on both streams; systemd is told that we only wait.

    Raises OSError or subprocess.TimeoutExpired.
    """
    end = time.monotonic() + _CHILD_SECONDS
    pipe = subprocess.PIPE
    argv = child.command("guard.backstop.ipt")
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as one:
        asked: str | None = question
        while True:
            try:
                return one.communicate(asked, timeout=_BEAT_SECONDS)
            except subprocess.TimeoutExpired:
                if time.monotonic() > end:
                    one.kill()
                    raise
            asked = None
            sd.notify("WATCHDOG=1")


def _refused(why: object) -> BackstopError:
    return BackstopError(
        f"iptables: {why}",
        hint="has this kernel legacy iptables? iptables-legacy -L tells; "
        f"the units need {DROP_IN} for it: smtp-guard.toml(5), kind",
    )


def _listing(program: str) -> list[str]:
    """Give the filter table as iptables-save(8) has it. Raises BackstopError."""
    try:
        done = subprocess.run(
            [program, "-t", "filter"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            env={"PATH": _PATH},
        )
    except FileNotFoundError as error:
        hint = "apt install iptables"
        raise BackstopError(f"iptables: {error}", hint=hint) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackstopError(f"iptables: {error}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise _refused(said[-1] if said else f"{program}: {done.returncode}")
    return done.stdout.splitlines()


def _words(line: str) -> tuple[str, list[str]]:
    """Give chain and words of a rule, also of one that a comment breaks in two."""
    try:
        _, chain, *words = shlex.split(line)
    except ValueError:
        _, chain, *words = line.split()
    return chain, words


def _ours(listing: list[str], chains: list[str], family: str) -> Iterator[str]:
    behind: set[str] = set()
    numbers: Counter[str] = Counter()
    for line in listing:
        if not line.startswith("-A "):
            continue
        chain, words = _words(line)
        leads = any(
            word in ("-j", "-g") and target in chains
            for word, target in pairwise(words)
        )
        if chain in chains:
            place = str(numbers[chain])
            numbers[chain] += 1
        elif leads:
            place = _BEHIND if chain in behind else "first"
        else:
            behind.add(chain)
            continue
        yield f"{family} {chain} {place} {shlex.join(words)}"


def _rule(
    chain: str,
    target: str,
    *matches: list[Any],
    families: str = _BOTH,
    src: str = "",
    dst: str = "",
    out: str = "",
    protocol: str = "",
    **parameters: str,
) -> Rule:
    """Give a rule as ipt.py takes it: names as in iptables-extensions(8)."""
    return {
        "chain": chain,
        "families": families,
        "protocol": protocol,
        "src": src,
        "dst": dst,
        "out": out,
        "matches": matches,
        "target": target,
        "parameters": {key.replace("_", "-"): text for key, text in parameters.items()},
    }


def _rules(name: str, lock: Lock) -> Iterator[Rule]:
    for ports in _ports(lock.ports):
        first = [["multiport", {"dports": ports}], _SYN]
        base = {"protocol": "tcp"}
        yield _rule("OUTPUT", f"{name}_OUTPUT", *first, out="!lo", **base)
        if lock.design is Design.OWNER:
            yield _rule("OUTPUT", f"{name}_LOCAL", *first, out="lo", **base)
        for uplink in lock.uplinks:
            yield _rule("FORWARD", f"{name}_FORWARD", *first, out=uplink, **base)
    if lock.design is Design.OWNER:
        yield from _terms(f"{name}_OUTPUT", "output", lock, lock.outbound)
        yield from _terms(f"{name}_LOCAL", "local", lock, lock.local)
    else:
        for mark in lock.marks:
            judged = ["mark", {"mark": f"{mark:#x}/{mark:#x}"}]
            yield _rule(f"{name}_OUTPUT", "RETURN", judged)
        yield from _refuse(f"{name}_OUTPUT", "output", lock)
    for network in lock.forward:
        families = "4" if isinstance(network, ipaddress.IPv4Network) else "6"
        chain = f"{name}_FORWARD"
        yield _rule(chain, "RETURN", families=families, src=str(network))
    yield from _refuse(f"{name}_FORWARD", "forward", lock)


def _terms(
    chain: str, where: str, lock: Lock, terms: tuple[Term, ...]
) -> Iterator[Rule]:
    for term in terms:
        for form in _matches(term):
            if term.verdict is Verdict.ALLOW:
                if not term.quiet:
                    yield _record(chain, where, "allow", lock, form)
                yield _rule(chain, "RETURN", *form["matches"], **form["where"])
            else:
                yield from _refuse(chain, where, lock, form)
    if where == "output" or lock.local_default is Verdict.DENY:
        yield from _refuse(chain, where, lock)
    elif lock.local_audit:
        yield _record(chain, where, "allow", lock)


_ANY: Rule = {"matches": [], "where": {}, "rule": None}


def _refuse(chain: str, where: str, lock: Lock, form: Rule = _ANY) -> Iterator[Rule]:
    yield _record(chain, where, "deny" if lock.enforce else "would-deny", lock, form)
    more = {"protocol": "tcp", "reject_with": "tcp-reset"}
    if lock.enforce:
        yield _rule(chain, "REJECT", *form["matches"], **form["where"], **more)
    elif form is not _ANY:
        yield _rule(chain, "RETURN", *form["matches"], **form["where"])


def _record(
    chain: str, where: str, verdict: str, lock: Lock, form: Rule = _ANY
) -> Rule:
    rule = "" if form["rule"] is None else f" {form['rule']}"
    log = {
        "nflog_group": str(lock.group),
        "nflog_prefix": f"smtp-guard {where} {verdict}{rule}",
    }
    return _rule(chain, "NFLOG", *form["matches"], **form["where"], **log)


def _matches(term: Term) -> Iterator[Rule]:
    """Give the matches of a term, one for each combination of single values."""
    owners = [
        {
            key: str(value)
            for key, value in (("uid-owner", u), ("gid-owner", g))
            if value is not None
        }
        for u in _each(term.uids)
        for g in _each(term.gids)
    ]
    ports = _each(None if term.ports is None else _ports(term.ports))
    for to in _each(term.to):
        where: dict[str, str] = {} if to is None else _to(to)
        for owner in owners:
            for cgroup, _ in (
                _each(term.cgroups) if term.cgroups is not None else [(None, 0)]
            ):
                for some in ports:
                    matches: list[Any] = [["owner", owner]] if owner else []
                    if cgroup is not None:
                        matches.append(["cgroup", {"path": cgroup}])
                    if some is not None:
                        matches.append(["multiport", {"dports": some}])
                        where = {**where, "protocol": "tcp"}
                    yield {"matches": matches, "where": where, "rule": term.number}


def _each(values: Iterable[Any] | None) -> list[Any]:
    return [None] if values is None else list(values)


def _to(network: Network) -> dict[str, str]:
    version4 = isinstance(network, ipaddress.IPv4Network)
    return {"families": "4" if version4 else "6", "dst": str(network)}


def _ports(ports: Iterable[int]) -> Iterator[str]:
    rest = iter(sorted(ports))
    while some := list(islice(rest, _MULTIPORT)):
        yield ",".join(map(str, some))
