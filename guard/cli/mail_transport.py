# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail transport: which way the mail for a domain takes."""

from __future__ import annotations

import os
from pathlib import Path

import click

from guard.cli import mail_options as options
from guard.errors import BadQuery
from guard.mail import edit
from guard.mail.applying import look
from guard.mail.table import load, pattern, transport_value
from guard.mail.transports import as_written
from guard.text import json_text, printable

_NAMES = ("oneshot", "relaylim", "error:")
_EXAMPLES = """\b
Examples:
  guardctl mail transport set yahoo.com relaylim
  guardctl mail transport list
"""
_SET = """\b
Examples:
  guardctl mail transport set yahoo.com relaylim
  guardctl mail transport set .ru oneshot
  guardctl mail transport set example.com "error:Bad domain!"
  guardctl mail transport set .example.com "error:Bad domain!"
"""
_UNSET = """\b
Exit status: 0 when it had one, 1 when not.

\b
Examples:
  guardctl mail transport unset yahoo.com
"""
_LIST = """\b
Exit status: 0 with at least one, 1 with none (as grep).

\b
Examples:
  guardctl mail transport list
  guardctl mail transport list .ru
  guardctl mail transport list --json | jq -r keys[]
"""


@click.group(name="transport", epilog=_EXAMPLES)
def transport() -> None:
    """Say which way the mail for a domain takes: once, in serial, not at all."""


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _NAMES if name.startswith(incomplete)]


def _domain(text: str) -> str:
    try:
        return pattern(text)
    except ValueError as error:
        raise BadQuery(text, error) from None


@transport.command("set", epilog=_SET)
@click.argument("domain")
@click.argument("name", shell_complete=_names)
@options.table
def set_(domain: str, name: str, table: Path, config_dir: Path, as_json: bool) -> None:
    """Have the mail for DOMAIN take the transport NAME: write it, and apply.

    DOMAIN is a domain, .domain for all those below it, or user@domain. NAME is oneshot
    (one attempt, then the mail is returned), relaylim (one connection at a time),
    error:TEXT (returned at once), or a transport of master.cf with its next hop.
    """
    postfix = options.postfix_in(config_dir)
    name = os.fsencode(name).decode(errors="surrogateescape")  # whatever the locale
    try:
        value = transport_value(name)
    except ValueError as error:
        raise BadQuery(name, error) from None
    change = edit.transport(_domain(domain), as_written(value))
    options.edit_and_apply(postfix, table, change, as_json)


@transport.command("unset", epilog=_UNSET)
@click.argument("domain")
@options.table
def unset(domain: str, table: Path, config_dir: Path, as_json: bool) -> None:
    """Have the mail for DOMAIN go the usual way again: take its line out, and apply."""
    postfix = options.postfix_in(config_dir)
    name = _domain(domain)
    options.told(look(postfix))
    there = name in load(table).transports
    if there:
        options.edit_and_apply(postfix, table, edit.transport(name, None), as_json)
        return
    click.echo(f"{printable(name)} has no transport in {table}", err=True)
    raise SystemExit(1)


@transport.command("list", epilog=_LIST)
@click.argument("domain", required=False)
@options.table_file
@options.json_object
def list_(domain: str | None, table: Path, as_json: bool) -> None:
    """List the table's transports, or that of DOMAIN."""
    found = {name: as_written(x) for name, x in load(table).transports.items()}
    if domain is not None:
        wanted = _domain(domain)
        found = {name: value for name, value in found.items() if name == wanted}
    if as_json:
        click.echo(json_text(found, indent=2))
    for name, value in found.items() if not as_json else ():
        click.echo(f"{printable(name):<30} {printable(value)}")
    if not found:
        raise SystemExit(1)
