# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail plan, apply, check, revert, show: the life of mail.toml."""

from __future__ import annotations

from pathlib import Path

import click

from guard.checks import Check, State
from guard.cli import mail_options as options
from guard.cli.answers import show_checks
from guard.mail.applying import alone, look, remember
from guard.mail.applying import apply as put_in_force
from guard.mail.checking import examine
from guard.mail.planning import Plan, make_plan
from guard.mail.table import MailTable, SmartHost, load
from guard.mail.transports import as_written
from guard.text import json_text, printable

_PLAN = """\b
Exit status: 0 when there is nothing to do, 1 when there are changes (as diff).

\b
Examples:
  guardctl mail plan
  guardctl mail plan --table draft.toml
  guardctl mail plan --config-dir /etc/postfix-out --json
"""
_APPLY = """\b
Examples:
  guardctl mail apply
  guardctl mail apply --config-dir /etc/postfix-out --table out.toml
"""
_CHECK = """\b
Exit status: 0 when all is as it should be, 1 when not.

\b
Examples:
  guardctl mail check
  guardctl mail check --json | jq -r 'select(.state == "fail") | .detail'
"""
_REVERT = """\b
Examples:
  guardctl mail revert
  guardctl mail revert --config-dir /etc/postfix-out
"""
_SHOW = """\b
Examples:
  guardctl mail show
  guardctl mail show --json | jq .transports
"""


@click.command(epilog=_PLAN)
@options.table
def plan(table: Path, config_dir: Path, as_json: bool) -> None:
    """Show what apply would change in main.cf, master.cf and tables; change nothing.

    Apply refuses later when any of these has changed since.
    """
    postfix = options.postfix_in(config_dir)
    options.told(look(postfix))  # first: it may be the table that is put back
    wanted = load(table)
    found = make_plan(postfix, wanted)
    remember(postfix, found)
    _warn(wanted)
    if as_json:
        click.echo(json_text(options.plan_json(found), indent=2))
    else:
        options.show_plan(found)
        if not found.changes:
            click.echo("nothing to do")
    if found.changes:
        raise SystemExit(1)


@click.command(epilog=_APPLY)
@options.table
def apply(table: Path, config_dir: Path, as_json: bool) -> None:
    """Make Postfix what the table says: all of it, or nothing.

    Files are replaced whole, `postfix check` is asked, and a running Postfix is
    reloaded; when any of that fails all is as before. What was replaced is kept.
    """
    postfix = options.postfix_in(config_dir)
    with alone(postfix) as restored:
        options.told(restored)
        wanted = load(table)
        _warn(wanted)
        done = put_in_force(postfix, wanted)
    options.show_done(done, as_json)


@click.command(epilog=_CHECK)
@options.table
def check(table: Path, config_dir: Path, as_json: bool) -> None:
    """Tell what was changed since apply, and what of the table is not applied."""
    postfix = options.postfix_in(config_dir)
    options.told(look(postfix))  # first: it may be the table that is put back
    wanted = load(table)
    found = make_plan(postfix, wanted)
    warnings = [
        Check("table", State.WARN, p.message, p.remedy) for p in wanted.warnings
    ]
    show_checks([*warnings, *examine(postfix, found)], as_json)


@click.command(epilog=_REVERT)
@options.config_dir
@options.json_object
def revert(config_dir: Path, as_json: bool) -> None:
    """Take back all that apply did to this Postfix; mail.toml stays.

    What stood there before is put back; what somebody has changed since stays as he
    wrote it, and is told. Where nobody else has, main.cf and master.cf are what they
    were byte for byte.
    """
    postfix = options.postfix_in(config_dir)
    with alone(postfix) as restored:
        options.told(restored)
        done = put_in_force(postfix, MailTable(), as_planned=False)
    options.show_done(done, as_json)


@click.command(epilog=_SHOW)
@options.table
def show(table: Path, config_dir: Path, as_json: bool) -> None:
    """Show the table as it was understood, and whether it is applied; no password."""
    postfix = options.postfix_in(config_dir)
    wanted = load(table)
    found = make_plan(postfix, wanted)
    if as_json:
        click.echo(json_text(_json(wanted, table, found), indent=2))
        return
    _line("table", str(table))
    _line("postfix", str(postfix.config_dir))
    pending = len(found.changes)
    _line("applied", "yes" if not pending else f"no, {pending} changes: mail plan")
    _line("smart host", _smart_host(wanted.smart_host))
    if wanted.smart_host and wanted.smart_host.password:
        _line("  password", str(wanted.smart_host.password))
    _line("mynetworks", _flag(wanted.relay_mynetworks, "may relay", "may not relay"))
    _line("port log", _flag(wanted.client_port_logging, "on", "off"))
    users = wanted.authorized_submit_users
    _line("sendmail", "as Postfix has it" if users is None else ", ".join(users))
    for domain, value in wanted.transports.items():
        _line("transport", f"{domain} {as_written(value)}")


def smart_host_json(host: SmartHost | None) -> dict[str, object] | None:
    """Give a smart host as a JSON object, without its password."""
    if host is None:
        return None
    return {
        "host": host.relay.text,
        "port": host.relay.port,
        "user": host.user or None,
        "password": str(host.password) if host.password else None,
        "tls": host.tls,
        "ca_file": str(host.ca_file) if host.ca_file else None,
        "authenticated_header": host.authenticated_header,
        "pin": host.pin,
    }


def _json(wanted: MailTable, table: Path, found: Plan) -> dict[str, object]:
    return {
        "table": str(table),
        "applied": not found.changes,
        "smart_host": smart_host_json(wanted.smart_host),
        "transports": {n: as_written(x) for n, x in wanted.transports.items()},
        "relay_mynetworks": wanted.relay_mynetworks,
        "client_port_logging": wanted.client_port_logging,
        "authorized_submit_users": wanted.authorized_submit_users,
    }


def _smart_host(host: SmartHost | None) -> str:
    if host is None:
        return "none"
    user = f", user {host.user}" if host.user else ""
    pinned = ", pinned" if host.pin else ""
    return f"{host.relay.text}{user}, tls {host.tls}{pinned}"


def _flag(value: bool | None, yes: str, no: str) -> str:
    return "as Postfix has it" if value is None else yes if value else no


def _line(key: str, text: str) -> None:
    click.echo(f"{key:<12}{printable(text)}")


def _warn(wanted: MailTable) -> None:
    for problem in wanted.warnings:
        click.echo(problem, err=True)
