# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl watch: findings as they come."""

from __future__ import annotations

import sys
from typing import Any

import click

from guard.cli import options
from guard.cli.output import Table, as_json, notice_line, terminal_width
from guard.finding import Finding
from guard.query import findings, parse_time

_EPILOG = """\b
Connections are shown when they are made and again when they end; what the
guard says about itself is shown between them. Ends with Ctrl-C.

\b
Examples:
  guardctl watch
  guardctl watch --verdict deny
  guardctl watch --since -10min --unit "php*-fpm.service"
  guardctl watch --json | jq -r .cwd
"""


@click.command(name="watch", epilog=_EPILOG)
@options.point_in_time("--since", help="Begin with those of then, not of now.")
@options.filters
@options.journals
@click.option("--json", "json_", is_flag=True, help="JSON Lines: an object a line.")
def command(
    since: str | None, directory: str | None, merge: bool, json_: bool, **given: Any
) -> None:
    """Show findings as guardd writes them to the journal."""
    wanted = options.take_filter(given, since, None)
    journal = options.take_journal(directory, merge)
    width = terminal_width()
    table = Table(width)
    torn = options.Torn()
    if not json_:
        sys.stdout.write(table.header() + "\n")
    try:
        for found in findings(journal, wanted, torn, parse_time(since or "now")):
            if found is None:
                sys.stdout.flush()
            elif json_:
                sys.stdout.write(as_json(found) + "\n")
            elif isinstance(found, Finding):
                sys.stdout.write(table.line(found) + "\n")
            else:
                sys.stdout.write(notice_line(found, width) + "\n")
    finally:
        torn.tell()
