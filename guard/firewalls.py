# SPDX-License-Identifier: GPL-2.0-or-later
"""The other firewalls of this host, and what of theirs is at odds with the guard.

Their rules are read as their own programs print them; nothing of theirs is changed.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guard.checks import Check, State, good

_SECONDS = 10  # that a foreign command may take
_SHOWN = 3  # rules named

# Files that show a firewall manager with rules of its own.
_MANAGERS = {
    "firewalld": Path("/usr/sbin/firewalld"),
    "ufw": Path("/usr/sbin/ufw"),
    "CSF": Path("/usr/sbin/csf"),
    "Imunify360": Path("/usr/bin/imunify360-agent"),
    "Docker": Path("/usr/bin/dockerd"),
    "fail2ban": Path("/usr/bin/fail2ban-server"),
}
# iptables-extensions(8): MARK and CONNMARK, as iptables-save prints them
_SAVED_MARK = re.compile(r"-A (OUTPUT|POSTROUTING)\b.* -j (?:CONN)?MARK (.+)")
_MASKED = re.compile(r"--set-xmark 0x[0-9a-f]+/(0x[0-9a-f]+)|--nfmask (0x[0-9a-f]+)")
_ALL = 0xFFFFFFFF
_NFT_CHAIN = re.compile(r"type \w+ hook (output|postrouting)\b")
_NFT_MARK = re.compile(r"\bmeta mark set (?!meta mark\b)(?!mark\b)")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of somebody else."""

    place: str  # whose: "nft table inet filter", "iptables"
    hook: str  # output, postrouting, or "" where that is not known
    text: str


def firewalls(mark: int, ports: frozenset[int], group: int) -> Iterator[Check]:
    """Name the other firewalls, and each conflict with what the guard uses.

    mark is its bits of SO_MARK (0: no second lock), group its NFLOG group.
    """
    rules = list(_rules())
    places = list(dict.fromkeys(rule.place for rule in rules))
    found = [name for name, path in _MANAGERS.items() if path.exists()]
    if not found and not places:
        yield good("firewalls", "none besides the guard")
    else:
        yield Check(
            "firewalls",
            State.NOTE,
            f"also here: {', '.join([*found, *places])}",
            "the guard decides before a packet exists and changes none of them; a "
            "port 25 rule of theirs still applies to what the guard allows",
        )
    refusing = [rule for rule in rules if _refuses(rule, ports)]
    if refusing:
        yield Check(
            "refused",
            State.NOTE,
            f"rules of others about the same ports: {_some(refusing)}",
            "what they refuse stays refused, whatever the policy allows",
        )
    if not mark:
        return
    rewriting = [rule for rule in rules if _rewrites(rule, mark)]
    if rewriting:
        yield Check(
            "marks",
            State.WARN,
            f"packets lose the guard's mark {mark:#x}: {_some(rewriting)}",
            f"give them a mask without {mark:#x}, or set another mark in [backstop]; "
            "else the second lock may refuse lawful mail",
        )
    yield from _routing(mark)
    yield from _nflog(group)


def _some(rules: list[Rule]) -> str:
    shown = [f"{rule.place}: {rule.text}" for rule in rules[:_SHOWN]]
    more = len(rules) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _refuses(rule: Rule, ports: frozenset[int]) -> bool:
    """Tell whether a rule that names a guarded port refuses what it matches."""
    if not re.search(r"\b(drop|reject|DROP|REJECT)\b", rule.text):
        return False
    if not re.search(r"\bdports?\b", rule.text) or rule.hook not in ("", "output"):
        return False
    return any(re.search(rf"\b{port}\b", rule.text) for port in ports)


def _rewrites(rule: Rule, mark: int) -> bool:
    """Tell whether a rule may clear one of these bits of a packet's mark."""
    if saved := _SAVED_MARK.match(rule.text):
        if "--save-mark" in saved[2]:
            return False
        masked = _MASKED.search(saved[2])
        mask = int(masked[1] or masked[2], 16) if masked else _ALL
        return bool(mask & mark)
    return rule.hook != "" and bool(_NFT_MARK.search(rule.text))


def _rules() -> Iterator[Rule]:
    text = run(["nft", "--stateless", "list", "ruleset"]) or ""
    yield from _nft_rules(text)
    for family in ("ip", "ip6"):
        # asking legacy iptables where it is not used would load its modules
        with contextlib.suppress(OSError):
            if Path(f"/proc/self/net/{family}_tables_names").read_text().split():
                yield from _saved(f"{family}tables-legacy")
        if "xt target" in text:  # nft cannot read those of iptables-nft
            yield from _saved(f"{family}tables-nft")


def _saved(program: str) -> Iterator[Rule]:
    """Give the rules as iptables-save(8) prints them, but for the guard's."""
    for line in (run([f"{program}-save"]) or "").splitlines():
        if line.startswith("-A ") and "SMTP_GUARD" not in line:
            hook = line.split()[1].lower()
            hook = hook if hook in ("output", "postrouting") else ""
            yield Rule(program, hook, line)


def _nft_rules(text: str) -> Iterator[Rule]:
    """Give the rules in nft's own listing, but for the guard's tables."""
    table = hook = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("table ") and line.endswith("{"):
            table = line.removesuffix("{").strip()
        elif line.startswith(("chain ", "set ", "map ")):
            hook = ""
        elif chain := _NFT_CHAIN.match(line):
            hook = chain[1]
        elif "smtp_guard" in table or not line or line in ("{", "}"):
            continue
        else:
            yield Rule(f"nft {table}", hook, line)


def _routing(mark: int) -> Iterator[Check]:
    """Policy routing that compares our bits, ip-rule(8): another mark, another way."""
    wrong = []
    for family in ("-4", "-6"):
        try:
            rules = json.loads(run(["ip", family, "--json", "rule", "show"]) or "[]")
            for rule in rules:
                mask = int(rule.get("fwmask", hex(_ALL)), 16)
                if "fwmark" in rule and mask & mark:
                    wrong.append(f"fwmark {rule['fwmark']}/{mask:#x}")
        except (ValueError, AttributeError):
            continue
    if wrong:
        yield Check(
            "routing",
            State.WARN,
            f"routes are chosen by the guard's mark {mark:#x} too: "
            f"{', '.join(dict.fromkeys(wrong))}",
            f"give these rules a mask without {mark:#x} (ip rule ... fwmark N/MASK), "
            "or set another mark in [backstop]",
        )


def _nflog(group: int) -> Iterator[Check]:
    """Who listens to our group: nfnetlink_log's own list, a line a group."""
    try:
        lines = Path("/proc/self/net/netfilter/nfnetlink_log").read_text().splitlines()
    except OSError:
        return
    if not any(line.split()[0] == str(group) for line in lines):
        yield Check(
            "nflog",
            State.WARN,
            f"nobody listens to NFLOG group {group}: what the second lock meets is "
            "refused, not journalled",
            "systemctl start smtp-guard",
        )


def run(command: list[str]) -> str | None:
    """Give what a command printed; None when it failed, took too long, is missing."""
    program = shutil.which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
