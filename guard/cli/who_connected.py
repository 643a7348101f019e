# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl who-connected: who connected where, from the journal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import click

from guard.cli import options
from guard.cli.output import (
    Csv,
    Table,
    cut,
    cut_front,
    iso_time,
    row,
    short_time,
    terminal_width,
    valid,
)
from guard.finding import Finding, Kind
from guard.query import Filter, Journal, connections, findings, parse_time
from guard.query.groups import FIELDS, Group, groups
from guard.query.messages import QueueIds
from guard.text import json_text

_EPILOG = """\b
Times are as in journalctl: "2026-11-22 10:00", "2 hours ago", -1h, today,
yesterday, @SECONDS. An option given twice means either value.

\b
Exit status: 0 with at least one row, 1 when nothing matched (as grep).

\b
Examples:
  guardctl who-connected --since today
  guardctl who-connected --verdict deny --limit 20
  guardctl who-connected --from-port 37634 --since -1h --json
  guardctl who-connected --user www-data --since yesterday --group-by script
  guardctl who-connected --script "/srv/www/shop/*"
  guardctl who-connected --to 203.0.113.0/24 --csv >connections.csv
  guardctl who-connected --directory /var/log/journal/remote --uid 1001
"""


@click.command(name="who-connected", epilog=_EPILOG)
@options.point_in_time("--since", help="Connected then or later.")
@options.point_in_time("--until", help="Connected then or earlier.")
@options.filters
@click.option(
    "--limit",
    type=click.IntRange(1, sys.maxsize),
    metavar="N",
    help="The newest N, or N groups.",
)
@click.option("--reverse", is_flag=True, help="Newest first; smallest group first.")
@click.option("--follow", is_flag=True, help="Go on with new ones as they connect.")
@click.option(
    "--group-by",
    type=click.Choice(list(FIELDS)),
    metavar="FIELD",
    help=f"Count them by one of: {', '.join(FIELDS)}.",
)
@options.journals
@click.option("--json", "json_", is_flag=True, help="JSON Lines: an object a line.")
@click.option("--csv", "csv_", is_flag=True, help="CSV with a line of names.")
def command(
    since: str | None,
    until: str | None,
    limit: int | None,
    reverse: bool,
    follow: bool,
    group_by: str | None,
    directory: str | None,
    merge: bool,
    json_: bool,
    csv_: bool,
    **given: Any,
) -> int:
    """Show who connected where: process, user, unit, and what became of it.

    A row is a connection, with its end if it has ended; a summary is a row for
    as many as it counts. Rows are in order of time. JSON and CSV have all that
    is known, the table what fits: 80 columns, or the terminal if it is wider.
    The queue ids of messages that came by a connection stand in it as well.
    """
    if json_ and csv_:
        raise click.UsageError("--json or --csv, not both")
    if follow and (limit or reverse or group_by or until):
        raise click.UsageError(
            "--follow has no end: leave --limit, --reverse, --group-by, --until out"
        )
    wanted = options.take_filter(given, since, until)
    journal = options.take_journal(directory, merge)
    torn = options.Torn()
    if group_by:
        found = connections(journal, wanted, torn, ends=group_by == "outcome")
        shown = _show_groups(
            groups(found, group_by), group_by, limit, reverse, json_, csv_
        )
    else:
        write, ends = _writer(json_, csv_, QueueIds(journal).of)
        rows: Iterable[Finding]
        if follow:
            rows = _follow(journal, wanted, torn, parse_time(since or "now"))
        else:
            rows = _rows(journal, wanted, torn, limit, reverse, ends)
        shown = _show(rows, write)
    torn.tell()
    if not shown:
        click.echo("no connection in the journal matches", err=True)
    return 0 if shown else 1


def _rows(
    journal: Journal,
    wanted: Filter,
    torn: options.Torn,
    limit: int | None,
    reverse: bool,
    ends: bool,
) -> Iterable[Finding]:
    """Give the rows in the order to show; with a limit the newest are read first."""
    backwards = reverse or limit is not None
    found = connections(journal, wanted, torn, newest_first=backwards, ends=ends)
    if limit is None:
        return found
    newest = islice(found, limit)
    return newest if reverse else reversed(list(newest))


def _follow(
    journal: Journal, wanted: Filter, torn: options.Torn, since_us: int
) -> Iterator[Finding]:
    for found in findings(journal, wanted, torn, since_us):
        if found is None:
            sys.stdout.flush()
        elif isinstance(found, Finding) and found.kind is not Kind.CLOSED:
            yield found


def _writer(
    json_: bool, csv_: bool, queue_ids: Callable[[Finding], list[str]]
) -> tuple[Callable[[Finding], object], bool]:
    """Give what writes a row, and whether it shows how a connection ended."""

    def values(found: Finding) -> dict[str, Any]:
        return {**row(found), "queue_ids": list(map(valid, queue_ids(found)))}

    if json_:
        return lambda found: sys.stdout.write(json_text(values(found)) + "\n"), True
    if csv_:
        lines = Csv()
        return lambda found: lines.write(values(found)), True
    table = Table(terminal_width())
    header = [table.header() + "\n"]

    def write(found: Finding) -> None:
        while header:
            sys.stdout.write(header.pop())
        sys.stdout.write(table.line(found) + "\n")
        if ids := queue_ids(found):
            sys.stdout.write(f"{'':14} sent {cut(' '.join(ids), 60)}\n")

    return write, table.wide


def _show(rows: Iterable[Finding], write: Callable[[Finding], object]) -> int:
    shown = 0
    for found in rows:
        write(found)
        shown += 1
    return shown


def _show_groups(
    found: list[Group],
    field: str,
    limit: int | None,
    reverse: bool,
    json_: bool,
    csv_: bool,
) -> int:
    """Write the groups, the biggest first."""
    ordered = found[:limit]
    if reverse:
        ordered.reverse()
    width = terminal_width() - 34
    lines = Csv()
    if ordered and not json_ and not csv_:
        sys.stdout.write(f"{'COUNT':>8} {'DENIED':>8} {'LAST':<14} {field.upper()}\n")
    for group in ordered:
        value = valid(group.value) if isinstance(group.value, str) else group.value
        made = {field: value, "count": group.count, "denied": group.denied}
        made["last"] = iso_time(group.last_us)
        if json_:
            sys.stdout.write(json_text(made) + "\n")
        elif csv_:
            lines.write(made)
        else:
            shown = "-" if group.value is None else cut_front(str(group.value), width)
            sys.stdout.write(
                f"{group.count:>8} {group.denied:>8} "
                f"{short_time(group.last_us)} {shown}\n"
            )
    return len(ordered)
