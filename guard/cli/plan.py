# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl plan: who would be denied, and the rules that would allow it."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

import click

from guard.cli import options
from guard.cli.output import iso_time, short_time, valid
from guard.errors import PolicyError
from guard.finding import Finding, Kind
from guard.policy import Problem, parse
from guard.policy.evaluate import unit_matches
from guard.policy.units import BadUnit, unit_pattern
from guard.query import connections
from guard.query.messages import not_logged_in
from guard.query.planning import Candidate, candidates, place
from guard.text import json_text, printable

_EPILOG = """\b
The output is TOML: rules, and what speaks for and against each as comments.
Rules with a warning are comments as well, so that nothing is allowed unread.
Exit status: 0, also when nobody would be denied.

\b
Examples:
  guardctl plan
  guardctl plan --since "1 month ago" >rules.toml
  guardctl plan --unit "php*" --since today
  guardctl plan --json | jq -r 'select(.warnings != []) | .exe'
"""

# Where anybody, or the process's own user, can put a program.
_OPEN_PLACES = ("/tmp/", "/var/tmp/", "/dev/shm/", "/run/user/", "/home/", "/memfd:")
_INTERPRETER = re.compile(
    r"(php|python|perl|ruby|node|lua|bash|dash|sh|ksh|zsh|java|tclsh)[-\d.a-z]*"
)
_SHOWN = 3  # examples of a kind


@click.command(name="plan", epilog=_EPILOG)
@options.point_in_time(
    "--since",
    default="1 week ago",
    show_default=True,
    help="Look at what was found since then.",
)
@options.point_in_time("--until", help="And until then.")
@options.filters
@options.journals
@click.option("--json", "json_", is_flag=True, help="JSON Lines: an object a rule.")
def command(
    since: str,
    until: str | None,
    directory: str | None,
    merge: bool,
    json_: bool,
    **given: Any,
) -> None:
    """Tell who was or would be denied, how often, and what would allow it.

    Also whose mail the host's own mail server did or would refuse for no login. One
    rule for each program, user and unit that a rule can tell apart. Run
    the guard in observe mode for as long as the rarest mail takes, and read
    this before mode = "enforce".
    """
    given["verdicts"] = ("deny",)
    wanted = options.take_filter(given, since, until)
    journal = options.take_journal(directory, merge)
    torn = options.Torn()
    found, beyond = candidates(connections(journal, wanted, torn, ends=False))
    given["verdicts"] = ()
    senders = options.take_filter(given, since, until)
    mail, beyond_mail = candidates(not_logged_in(journal, senders, torn))
    beyond += beyond_mail
    names: set[str] = set()
    for what, candidate in (
        *(("connection", one) for one in found),
        *(("mail", one) for one in mail),
    ):
        rule, against = _judge(candidate, names)
        if json_:
            row = _row(candidate, rule, against)
            click.echo(json_text({**row, "refused": what}))
        else:
            _print(candidate, rule, against, what)
    if not (found or mail) and not json_:
        click.echo(f"# nobody was or would have been denied since {printable(since)}")
    if beyond:
        click.echo(f"{beyond} connections of further identities left out", err=True)
    torn.tell()


def _judge(candidate: Candidate, names: set[str]) -> tuple[str | None, list[str]]:
    """Give the rule, None if there can be none, and what speaks against it."""
    finding = candidate.finding
    if finding.lock and finding.kind is Kind.BACKSTOP:
        return None, [_by_no_connect(finding)]
    against = _warnings(finding)
    exe = finding.exe
    if not exe or not finding.exe_nlink or printable(exe) != exe:
        return None, against
    rule = _rule(candidate, names)
    ports = sorted(candidate.ports)
    try:
        # The policy's own reader knows what cannot be relied on.
        policy = parse(f'mode = "observe"\nports = {ports}\n{rule}', "plan")
    except PolicyError as error:
        return None, [*against, *map(_problem, error.problems)]
    return rule, [*against, *map(_problem, policy.warnings)]


def _by_no_connect(finding: Finding) -> str:
    if finding.lock and finding.lock.endswith("-forward"):
        source = finding.src[0] if finding.src else "its address"
        return (
            "forwarded, from a container or another host: to let it send, add"
            f" {source} or its network to forward in [backstop]"
        )
    return "made of a raw or packet socket, or of a way that no connect() shows"


def _problem(problem: object) -> str:
    if isinstance(problem, Problem):
        return f"{problem.message}; {problem.remedy}"
    return str(problem)


def _warnings(finding: Finding) -> list[str]:
    found = []
    exe = finding.exe
    if exe is None:
        return ["a kernel thread or a process without a file: no rule can name it"]
    if finding.exe_nlink == 0:
        found.append("its file is deleted, or was never one: no rule can name it")
    if printable(exe) != exe:
        found.append("its path is made to deceive: no rule can name it")
    places = [place for place in _OPEN_PLACES if exe.startswith(place)]
    if places:
        found.append(f"the program lies in {places[0]}, where anybody can put one")
    if _INTERPRETER.fullmatch(exe.rpartition("/")[2]):
        found.append(
            "an interpreter: the rule allows every script this user runs"
            + (" in this unit" if finding.unit else "")
            + "; better, have the script use the local mail server"
        )
    if finding.container:
        found.append(
            f"runs in the container {finding.container}: its programs are not this"
            " host's files; allow its unit, or have it use the local mail server"
        )
    return found


def _rule(candidate: Candidate, names: set[str]) -> str:
    """Write the narrowest rule that allows what was seen."""
    finding = candidate.finding
    table = "local.rule" if finding.direction == "local" else "rule"
    unit = _unit(finding)
    user = str(finding.uid) if finding.user is None else _toml(finding.user)
    lines = [f"[[{table}]]", f"name = {_toml(_name(finding, names))}"]
    if unit is not None:
        lines.append(f"unit = {_toml(unit)}")
    if not finding.container:
        lines.append(f"exe = {_toml(finding.exe or '')}")
    lines.append(f"user = {user}")
    lines.append(f"ports = {sorted(candidate.ports)}")
    return "\n".join([*lines, 'verdict = "allow"'])


def _toml(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)


def _name(finding: Finding, names: set[str]) -> str:
    """Make a name of program and user that no rule before has."""
    program = (finding.exe or "").rpartition("/")[2]
    user = finding.user if finding.user is not None else f"uid {finding.uid}"
    base = re.sub(r"[^\w.+-]+", "-", f"{program} {user}", flags=re.ASCII)[:56]
    name, number = base, 2
    while name in names:
        name, number = f"{base}-{number}", number + 1
    names.add(name)
    return name


def _unit(finding: Finding) -> str | None:
    """Name the unit as a policy would: by name, by path, or its user's slice."""
    named = place(finding)
    if not named:
        return None
    head, unit, _ = finding.cgroup.partition(named)
    for text in (named, f"{head}{unit}"):
        try:
            if unit_matches(unit_pattern(text), finding.cgroup):
                return text
        except BadUnit:
            continue
    return None


def _row(candidate: Candidate, rule: str | None, against: list[str]) -> dict[str, Any]:
    finding = candidate.finding
    return {
        "count": candidate.count,
        "first": iso_time(candidate.first_us),
        "last": iso_time(candidate.last_us),
        "mode": valid(finding.mode),
        "direction": valid(finding.direction),
        "uid": finding.uid,
        "user": None if finding.user is None else valid(finding.user),
        "exe": None if finding.exe is None else valid(finding.exe),
        "unit": None if finding.unit is None else valid(finding.unit),
        "container": None if finding.container is None else valid(finding.container),
        "cgroup": valid(finding.cgroup),
        "ports": sorted(candidate.ports),
        "to": sorted(map(valid, candidate.to)),
        "to_complete": not candidate.more_to,
        "directories": sorted(map(valid, candidate.directories)),
        "warnings": [printable(text) for text in against],
        "rule": rule,
    }


_WORDS = {"connection": "denied", "mail": "refused for no login"}


def _print(
    candidate: Candidate, rule: str | None, against: list[str], what: str
) -> None:
    finding = candidate.finding
    word = _WORDS[what] if finding.mode == "enforce" else f"would be {_WORDS[what]}"
    word = f"mail {word}" if what == "mail" else word
    user = finding.user if finding.user is not None else f"uid {finding.uid}"
    unit = f" in {finding.unit}" if finding.unit else ""
    _comment(
        f"{candidate.count}x {word}, last {short_time(candidate.last_us)}:"
        f" {finding.exe or finding.comm} as {user}{unit}"
    )
    _comment(f"to {_some(candidate.to, candidate.more_to)}", "  ")
    _comment(f"from {_some(candidate.directories)}", "  ")
    for text in against:
        _comment(f"WARNING: {text}", "  ")
    if rule is None:
        _comment("no rule can allow it", "  ")
    else:
        mark = "# " if against else ""
        click.echo("\n".join(f"{mark}{line}" for line in rule.split("\n")))
    click.echo()


def _some(values: set[str], more: bool = False) -> str:
    shown = sorted(values)[:_SHOWN]
    rest = len(values) - len(shown)
    if not rest:
        return ", ".join(shown) + (" and more" if more else "")
    return f"{', '.join(shown)} and {'at least ' if more else ''}{rest} more"


def _comment(text: str, indent: str = "") -> None:
    for line in textwrap.wrap(
        printable(text),
        79,
        initial_indent=f"# {indent}",
        subsequent_indent=f"# {indent}  ",
        break_on_hyphens=False,
    ):
        click.echo(line)
