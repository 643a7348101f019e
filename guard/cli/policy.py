# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl policy: is this policy good, and what does it say?"""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from guard.abi import MAX_ROWS, Mode
from guard.backstop.owner import lost
from guard.cli.policy_apply import apply
from guard.cli.policy_init import init
from guard.errors import PolicyError
from guard.kernel import policy_file
from guard.policy import Policy, Problem, load
from guard.policy.describe import conditions, heading, policy_json
from guard.text import address, json_text, printable

_FILE = click.argument(
    "file",
    type=click.Path(path_type=Path, readable=False),
    required=False,
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")

_EXAMPLES = """\b
Examples:
  guardctl policy check
  guardctl policy init
  guardctl policy check draft.toml
  guardctl policy show --json | jq '.rules[].name'
"""

_CHECK_EXAMPLES = """\b
Examples:
  guardctl policy check
  guardctl policy check draft.toml
  guardctl policy check --json | jq -r '.problems[].message'
"""

_SHOW_EXAMPLES = """\b
Examples:
  guardctl policy show
  guardctl policy show draft.toml
  guardctl policy show --json
"""


@click.group(name="policy", epilog=_EXAMPLES)
def command() -> None:
    """Write a first policy, check one, show what it comes to, put it in force."""


@command.command("check", epilog=_CHECK_EXAMPLES)
@_FILE
@_JSON
@click.pass_obj
def check(pin_dir: Path, file: Path | None, as_json: bool) -> None:
    """Tell everything that is wrong with FILE; nothing is put in force.

    FILE is the policy of the guard if one is loaded, /etc/smtp-guard/policy.toml
    if not. The exit status is 0 for a policy that can be applied, warnings or
    not, and 78 for one that cannot.
    """
    file = file or policy_file(pin_dir)
    try:
        policy = load(file)
    except PolicyError as error:
        if not as_json:
            raise
        _print_check(file, None, error.problems)
        raise SystemExit(error.exit_status) from None
    if as_json:
        _print_check(file, policy, policy.warnings)
        return
    for problem in policy.warnings:
        click.echo(problem)
    rules, files = len(policy.rules), len(policy.files)
    warnings = _count(len(policy.warnings), "warning")
    click.echo(
        f"{printable(str(file))}: good, mode {policy.mode.name.lower()}\n"
        f"  {_count(rules, 'rule')} in {_count(files, 'file')},"
        f" {_rows(policy)} of {MAX_ROWS} rows, {warnings}"
    )
    if weaker := lost(policy):
        click.echo("  without kernel programs (guardd --design owner):")
        for name, what in weaker:
            click.echo(f"    {printable(name)}: {what}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rows(policy: Policy) -> int:
    return sum(rule.rows for rule in policy.rules)


def _print_check(
    file: Path, policy: Policy | None, problems: tuple[object, ...]
) -> None:
    answer = {
        "file": printable(str(file)),
        "ok": policy is not None,
        "rules": len(policy.rules) if policy else None,
        "rows": _rows(policy) if policy else None,
        "owner_design": [{"rule": name, "what": what} for name, what in lost(policy)]
        if policy
        else None,
        "problems": [p.as_json() for p in problems if isinstance(p, Problem)],
    }
    click.echo(json_text(answer, indent=2))


@command.command("show", epilog=_SHOW_EXAMPLES)
@_FILE
@_JSON
@click.pass_obj
def show(pin_dir: Path, file: Path | None, as_json: bool) -> None:
    """Show what FILE and its includes come to, rules in the order they count.

    FILE is the policy of the guard if one is loaded, /etc/smtp-guard/policy.toml
    if not. Of the rules that match a connection the first decides; what no rule
    allows is denied.
    """
    policy = load(file or policy_file(pin_dir))
    if as_json:
        click.echo(json_text(policy_json(policy), indent=2))
        return
    observe = "nothing is denied" if policy.mode is Mode.OBSERVE else "in force"
    _line("file", " ".join(map(str, policy.files)))
    _line("sha256", policy.sha256.hex())
    _line("mode", f"{policy.mode.name.lower()} ({observe})")
    _line("ports", " ".join(map(str, sorted(policy.ports))))
    audit = "journalled" if policy.local_audit else "only counted"
    _line("local", f"{policy.local_default.name.lower()} unless a rule says, {audit}")
    targets = [address(to) for to in (policy.redirect4, policy.redirect6) if to]
    if targets:
        _line("redirect", f"to {' and '.join(targets)}")
    _line("fold", _fold(policy))
    _line("backstop", _backstop(policy))
    _line("before", _before(policy))
    _line("tamper", _tamper(policy))
    _line("lsm", f"self_protection {policy.protection.name.lower()}")
    _line("require", "bpf: nothing else is put in force" if policy.needs_bpf else "any")
    for rule in policy.rules:
        quiet = ", only counted" if policy.quiet(rule) else ""
        place = f"{rule.file}:{rule.line}" if rule.line else rule.file
        click.echo(f"\n{heading(rule)}{quiet}")
        _line("  from", place)
        for key, values in conditions(rule).items():
            _line(
                f"  {key}", ", ".join(values) or "(none of those named is on this host)"
            )


def _fold(policy: Policy) -> str:
    if not policy.fold.window_ns:
        return "never, every connection is a finding"
    return (
        f"after {policy.fold.denied} denied or {policy.fold.local} passed alike in"
        f" {policy.fold.window_ns / 1e9:g} s"
    )


def _before(policy: Policy) -> str:
    if not policy.before.end:
        return "connections older than the guard are told, and left open"
    seconds = policy.before.grace_ns / 1e9
    return f"those older than the guard that are denied end {seconds:g} s after a load"


def _tamper(policy: Policy) -> str:
    if policy.repair:
        return "repair: guardd puts back what somebody changes, and says so"
    return "report: guardd says what somebody changed, and leaves it"


def _backstop(policy: Policy) -> str:
    lock = policy.backstop
    if lock.kind == "off":
        return "off"
    parts = [lock.kind, f"mark {lock.mark:#x}", f"NFLOG group {lock.group}"]
    if lock.forward:
        parts.append(f"forwards for {' '.join(map(str, lock.forward))}")
    if lock.uplinks is not None:
        parts.append(f"uplinks {' '.join(lock.uplinks) or 'none'}")
    return ", ".join(parts)


def _line(key: str, text: str) -> None:
    lines = textwrap.wrap(
        printable(text), 67, break_long_words=False, break_on_hyphens=False
    )
    for index, line in enumerate(lines):
        click.echo(f"{'' if index else key:<10}{line}")


command.add_command(apply)
command.add_command(init)
