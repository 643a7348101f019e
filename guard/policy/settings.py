# SPDX-License-Identifier: GPL-2.0-or-later
"""What only the main policy file may say: everything but rules."""

from __future__ import annotations

from guard.abi import Mode, Protection, Verdict
from guard.policy.backstop import backstop_section
from guard.policy.fields import Table
from guard.policy.model import DEFAULT_PORTS, Before, Fold, Policy, Rule
from guard.policy.mta import mta_section
from guard.policy.source import Problems, Source

VERDICTS = {verdict.name.lower(): verdict for verdict in Verdict}
_TO4, _TO6 = "127.0.0.1:25", "[::1]:25"


def settings(main: Source, rules: tuple[Rule, ...], problems: Problems) -> Policy:
    """Read what only the main file may say."""
    top = Table(main, problems, main.data)
    mode = top.choice("mode", ("observe", "enforce"))
    ports = top.ports("ports")
    tamper = _word(top, "tamper", ("repair", "report"))
    protection = _word(top, "self_protection", ("off", "record", "deny"))
    require = _word(top, "require", ("any", "bpf"))
    local = top.section("local", ("audit", "default", "rule"))
    default = Verdict.ALLOW
    if "default" in local.data:
        word = local.choice("default", ("allow", "deny"))
        default = VERDICTS[word] if word else Verdict.DENY
    audit = local.flag("audit")
    redirect = top.section("redirect", ("to", "to6"))
    targets = redirect.target("to", _TO4), redirect.target("to6", _TO6)
    if not any(rule.verdict is Verdict.REDIRECT for rule in rules):
        if redirect.data:
            redirect.warn(
                "",
                "no rule redirects",
                'give a rule verdict = "redirect", or remove the section',
            )
        targets = None, None
    elif targets == (None, None) and not problems.errors:
        redirect.error(
            "",
            "a rule redirects, but there is nowhere to",
            f'write to = "{_TO4}", or give the rule verdict = "deny"',
        )
    fold = top.section("fold", ("window", "denied", "local"))
    plain = Fold()
    folding = Fold(
        fold.duration("window", plain.window_ns, zero="never folds"),
        fold.count_of("denied", plain.denied),
        fold.count_of("local", plain.local),
    )
    before = top.section("before", ("end", "grace"))
    if "grace" in before.data and not before.data.get("end"):
        before.warn(
            "grace",
            "nothing is ended, so there is no grace",
            "write end = true as well, or remove it",
        )
    older = Before(
        before.flag("end") or False,
        before.duration("grace", Before().grace_ns, zero="ends them at once"),
    )
    return Policy(
        Mode.OBSERVE if mode == "observe" else Mode.ENFORCE,
        DEFAULT_PORTS if ports is None else frozenset(ports),
        rules,
        True if audit is None else audit,
        default,
        *targets,
        folding,
        backstop_section(top),
        older,
        mta_section(top, rules),
        tamper == "repair",
        Protection[protection.upper()],
        require == "bpf",
    )


def _word(table: Table, key: str, words: tuple[str, ...]) -> str:
    """Read one of some words; where the key is missing, the first of them."""
    return (table.choice(key, words) if key in table.data else None) or words[0]
