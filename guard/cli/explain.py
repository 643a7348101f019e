# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl explain: which rule decides about a connection, and why."""

from __future__ import annotations

import grp
import ipaddress
import json
import os
import pwd
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click

from guard.abi import Direction, ExeKey, Mode, Verdict
from guard.cli import complete
from guard.errors import NoAccess
from guard.hosts import is_own, own_addresses
from guard.kernel import policy_file
from guard.mail.pin import SHIPPED
from guard.policy import (
    Caller,
    Decision,
    Destination,
    Executable,
    Policy,
    evaluate,
    exe_id,
    load,
)
from guard.policy.describe import conditions, group_name, rule_json, user_name
from guard.policy.files import is_trusted, stat_identify
from guard.policy.model import Address
from guard.policy.units import BadUnit, unit_pattern
from guard.text import address, json_text, printable

_WIDEN = "For another host, give it a rule with that address"
_UNPIN = (
    f"{_WIDEN}. To let Postfix connect anywhere: where mail.toml has pin = true, take"
    ' that out, and guardctl mail apply; else write "postfix" in place of'
    f' "{SHIPPED}" in include, and guardctl policy apply'
)


@dataclass(slots=True)
class Wanted:
    """Who and where to, as given on the command line or in a finding."""

    user: str | None
    group: str | None
    exe: str | None
    unit: str | None
    to: str | None
    port: int
    local: bool | None


_EXAMPLES = """\b
Examples:
  guardctl explain --user www-data --to 203.0.113.5
  guardctl explain --user postfix --to 203.0.113.5 \\
      --exe /usr/lib/postfix/sbin/smtp --unit postfix@-.service
  guardctl explain --uid 1000 --to 127.0.0.1 --port 587 --json
  guardctl who-connected --limit 1 --json | guardctl explain --finding -
"""


@click.command(name="explain", epilog=_EXAMPLES)
@click.option(
    "--user",
    "--uid",
    "user",
    metavar="NAME|UID",
    shell_complete=complete.users,
    help="Effective user.",
)
@click.option(
    "--group",
    "--gid",
    "group",
    metavar="NAME|GID",
    shell_complete=complete.groups,
    help="Effective group; the user's own unless given.",
)
@click.option(
    "--exe",
    metavar="PATH",
    shell_complete=complete.files,
    help="The program's file.",
)
@click.option(
    "--unit",
    metavar="UNIT|PATH",
    shell_complete=complete.units,
    help="Its unit, or path in the cgroups.",
)
@click.option("--to", metavar="ADDR", help="Where it connects to.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=25, show_default=True, help="TCP."
)
@click.option(
    "--local/--outbound",
    default=None,
    help="Whether ADDR is this host's own; looked up unless given.",
)
@click.option(
    "--finding",
    type=click.File(encoding="utf-8"),
    help="Take all of these from a line of `who-connected --json`; - is stdin.",
)
@click.option(
    "--policy",
    "file",
    type=click.Path(path_type=Path, readable=False),
    help="The policy to ask (default: that of the loaded guard).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(
    pin_dir: Path,
    user: str | None,
    group: str | None,
    exe: str | None,
    unit: str | None,
    to: str | None,
    port: int,
    local: bool | None,
    finding: IO[str] | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """Tell which rule decides about a connection, and why the others do not.

    The answer is the policy file's, whether or not it is loaded. What is not
    given is not known, and no rule that names it matches. Executables are
    compared as files, as the kernel does, not by path.
    """
    wanted = Wanted(user, group, exe, unit, to, port, local)
    if finding:
        wanted = _from_finding(finding)
    if wanted.to is None:
        raise click.UsageError("say where to: --to ADDR, or --finding FILE")
    policy = load(file or policy_file(pin_dir))
    caller, destination = _caller(wanted), _destination(wanted)
    decision = evaluate(policy, caller, destination, _look)
    effect = _effect(policy, destination, decision)
    if as_json:
        answer = _as_json(policy, wanted, caller, destination, decision, effect)
        click.echo(json_text(answer, indent=2))
    else:
        _print(policy, wanted, caller, destination, decision, effect)


def _from_finding(file: IO[str]) -> Wanted:
    try:
        rows = json.loads(file.read())
    except (ValueError, RecursionError):
        raise click.BadParameter(
            "not one JSON object; add --limit 1 to who-connected",
            param_hint="--finding",
        ) from None
    row = rows[0] if isinstance(rows, list) and rows else rows
    try:
        return Wanted(
            user=str(int(row["uid"])),
            group=str(int(row["gid"])),
            exe=None if row["exe"] is None else _path(row["exe"]),
            unit=None if row["cgroup"] is None else _path(row["cgroup"]),
            to=str(row["dst"]["addr"]),
            port=_port(int(row["dst"]["port"])),
            local=row["direction"] == "local",
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"not a row of who-connected --json: {printable(str(error))}",
            param_hint="--finding",
        ) from None


def _path(text: Any) -> str:
    """Give the text of a path; raises TypeError, ValueError where it is none."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is not a path")
    os.fsencode(text)
    return text


def _port(number: int) -> int:
    if not 1 <= number <= 65535:
        raise ValueError(f"{number} is no port")
    return number


def _caller(wanted: Wanted) -> Caller:
    uid = gid = None
    if wanted.user is not None:
        uid, gid = _user(wanted.user)
    if wanted.group is not None:
        gid = _group(wanted.group)
    return Caller(uid, gid, _executable(wanted.exe), _unit(wanted.unit))


def _user(text: str) -> tuple[int, int | None]:
    """Give uid and the user's own gid; None where the uid has no entry."""
    try:
        entry = pwd.getpwnam(text)
    except (KeyError, ValueError):
        uid = _number(text, "user", "--user")
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return uid, None
    return entry.pw_uid, entry.pw_gid


def _group(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        return _number(text, "group", "--group")


def _number(text: str, kind: str, option: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32:
        return int(text)
    raise click.BadParameter(
        f"there is no {kind} {printable(text)!r} on this host; a number works too",
        param_hint=option,
    )


def _executable(text: str | None) -> Executable | None:
    """Look at the file as it is now; None when there is none."""
    if text is None:
        return None
    path = Path(os.path.abspath(text))
    try:
        status = os.stat(path)
        inode, name = _look(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise click.BadParameter(
            f"cannot look at {printable(text)!r}", param_hint="--exe"
        ) from None
    return Executable(exe_id(inode), exe_id(name), is_trusted(status))


def _look(path: Path) -> tuple[ExeKey, ExeKey]:
    try:
        return stat_identify(path)
    except PermissionError as error:
        raise NoAccess(printable(str(path)), hint="run this as root") from error


def _unit(text: str | None) -> str | None:
    if text is None or text.startswith("/"):
        return text
    try:
        pattern = unit_pattern(text)
    except BadUnit as error:
        raise click.BadParameter(
            f"{error}; {error.remedy}", param_hint="--unit"
        ) from None
    if any(component.star for component in pattern.components):
        raise click.BadParameter("name one unit, without a *", param_hint="--unit")
    return pattern.path


def _destination(wanted: Wanted) -> Destination:
    try:
        to = ipaddress.ip_address(str(wanted.to).strip("[]"))
    except ValueError:
        raise click.BadParameter(
            f"{printable(str(wanted.to))!r} is no address; names are not looked up",
            param_hint="--to",
        ) from None
    local = wanted.local
    if local is None:
        plain = getattr(to, "ipv4_mapped", None) or to
        local = is_own(str(plain), own_addresses())
    direction = Direction.LOCAL if local else Direction.OUTBOUND
    return Destination(to, wanted.port, direction)


def _effect(policy: Policy, destination: Destination, decision: Decision) -> str:
    """Say what happens to the connection under the policy's mode."""
    if destination.port not in policy.ports:
        return "let pass: this port is not guarded"
    verdict = decision.verdict
    if verdict is Verdict.REDIRECT:
        v4 = destination.address.version == 4 or _mapped(destination.address)
        to = policy.redirect4 if v4 else policy.redirect6
        if to is not None and policy.mode is Mode.ENFORCE:
            return f"redirected to {address(to)}, and journalled"
        verdict = verdict if to is not None else Verdict.DENY
    if verdict is Verdict.ALLOW:
        return "let pass, " + ("only counted" if decision.quiet else "and journalled")
    what = "denied" if verdict is Verdict.DENY else "redirected"
    if policy.mode is Mode.OBSERVE:
        return f"let pass, and journalled: enforced, it would be {what}"
    return f"{what} (EPERM), and journalled"


def _hint(policy: Policy, decision: Decision) -> str:
    """Say what else a program may that may connect to the smart host alone; or ""."""
    if decision.rule is not None or policy.smart_host is None or policy.known is None:
        return ""
    for trial in decision.why:
        rule = policy.rules[trial.rule]
        if not rule.smart or rule.verdict is not Verdict.ALLOW:
            continue
        if {"to", "ports"}.issuperset(trial.failed):
            known = ", ".join(map(str, policy.known.addresses[:4])) or "no address yet"
            what = (
                f"{rule.label} lets it connect to {policy.smart_host} ({known}) alone"
            )
            return f"{what}. {_UNPIN if rule.name == SHIPPED else _WIDEN}"
    return ""


def _mapped(to: Address) -> bool:
    return isinstance(to, ipaddress.IPv6Address) and to.ipv4_mapped is not None


def _given(wanted: Wanted, caller: Caller) -> dict[str, str]:
    """Describe the caller by the keys of a policy."""
    given = {}
    if caller.unit is not None:
        given["unit"] = caller.unit
    if wanted.exe is not None:
        state = ""
        if caller.executable is None:
            state = " (no such file here: matches no rule)"
        elif not caller.executable.trusted:
            state = " (not root's alone: matches no rule)"
        given["exe"] = wanted.exe + state
    if caller.uid is not None:
        given["user"] = f"{user_name(caller.uid)} ({caller.uid})"
    if caller.gid is not None:
        given["group"] = f"{group_name(caller.gid)} ({caller.gid})"
    return given


def _as_json(
    policy: Policy,
    wanted: Wanted,
    caller: Caller,
    destination: Destination,
    decision: Decision,
    effect: str,
) -> dict[str, Any]:
    rule = None if decision.rule is None else policy.rules[decision.rule]
    exe = caller.executable
    return {
        "verdict": decision.verdict.name.lower(),
        "rule": rule.name if rule else None,
        "mode": policy.mode.name.lower(),
        "guarded": destination.port in policy.ports,
        "journalled": not decision.quiet and destination.port in policy.ports,
        "effect": effect,
        "hint": _hint(policy, decision) or None,
        "direction": destination.direction.name.lower(),
        "caller": {
            "uid": caller.uid,
            "gid": caller.gid,
            "exe": None if wanted.exe is None else printable(wanted.exe),
            "exe_found": exe is not None,
            "exe_trusted": exe is not None and exe.trusted,
            "unit": None if caller.unit is None else printable(caller.unit),
        },
        "dst": {"addr": str(destination.address), "port": destination.port},
        "rules": [
            {
                **rule_json(policy, policy.rules[trial.rule]),
                "matched": not trial.failed,
                "failed": list(trial.failed),
            }
            for trial in decision.why
        ],
    }


def _print(
    policy: Policy,
    wanted: Wanted,
    caller: Caller,
    destination: Destination,
    decision: Decision,
    effect: str,
) -> None:
    for key, text in _given(wanted, caller).items():
        _line(key, text)
    direction = destination.direction.name.lower()
    _line("to", f"{address((str(destination.address), destination.port))}, {direction}")
    if decision.rule is None:
        default = destination.direction is Direction.LOCAL
        by = "[local] default" if default else "no rule matches"
    else:
        rule = policy.rules[decision.rule]
        by = f"{rule.label} at {rule.file}"
        by += f":{rule.line}" if rule.line else ""
    _line("verdict", f"{decision.verdict.name.lower()}: {by}")
    _line("effect", effect)
    if hint := _hint(policy, decision):
        _line("hint", hint)
    failed = [trial for trial in decision.why if trial.failed]
    if failed:
        where = "" if decision.rule is None else "before it "
        click.echo(f"\nRules {where}that do not match:")
    for trial in failed:
        rule = policy.rules[trial.rule]
        click.echo(f"  {rule.verdict.name.lower()} {rule.name}")
        values = conditions(rule)
        for key in trial.failed:
            _line(f"    {key}", "is not " + _alternatives(values[key]))


def _alternatives(values: list[str], shown: int = 3) -> str:
    if not values:
        return "one of those named, of which this host has none"
    more = f" or {len(values) - shown} more" if len(values) > shown else ""
    return " or ".join(values[:shown]) + more


def _line(key: str, text: str) -> None:
    lines = textwrap.wrap(
        printable(text), 67, break_long_words=False, break_on_hyphens=False
    )
    for index, line in enumerate(lines):
        click.echo(f"{'' if index else key:<12}{line}")
