# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl limits: how much each origin has sent, beside what it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from guard.cli.output import valid
from guard.mta.limits import SPAN_NAMES, Count, counts_file, read_counts
from guard.policy.describe import user_name
from guard.text import json_text, printable

_EPILOG = """\b
A window begins with an origin's first message and lasts a minute or an hour. Counted
are messages that the mail server was told to take; refused ones stand by themselves.

\b
Exit status: 0 with at least one count, 1 when nobody has sent anything (as grep),
69 when nothing is counted.

\b
Examples:
  guardctl limits
  guardctl limits --name sites --json | jq 'select(.hour.messages > 100)'
"""


@click.command(epilog=_EPILOG)
@click.option("--name", metavar="LIMIT", help="Of this limit only.")
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: an object a line.")
@click.pass_obj
def command(pin_dir: Path, name: str | None, as_json: bool) -> int:
    """Show what each origin has sent in its present minute and hour.

    The limits are the [[mta.limit]] of the policy in force.
    """
    limits, enforces, counts = read_counts(counts_file(pin_dir))
    by_name = {str(limit["name"]): limit for limit in limits}
    shown = 0
    for count in counts:
        limit = by_name.get(count.limit)
        if limit is None or name not in (None, count.limit):
            continue  # of a limit that is not in force any more
        if as_json:
            click.echo(json_text(_row(count, limit, enforces)))
        else:
            if not shown:
                click.echo(f"{'LIMIT':<16} {'MINUTE':>16} {'HOUR':>18}  ORIGIN")
            click.echo(_line(count, limit, enforces))
        shown += 1
    if not shown:
        click.echo("nobody has sent anything that is counted", err=True)
    return 0 if shown else 1


def _row(count: Count, limit: dict[str, Any], enforces: bool) -> dict[str, Any]:
    """Give the JSON row; the keys are documented and stay."""
    row: dict[str, Any] = {
        "limit": valid(count.limit),
        "origin": valid(count.origin),
        "action": limit["action"],
        "mode": "enforce" if enforces else "observe",
    }
    for span, window in zip(SPAN_NAMES, count.windows, strict=True):
        row[span] = {
            "messages": window.messages,
            "messages_most": limit[f"messages_per_{span}"],
            "recipients": window.recipients,
            "recipients_most": limit[f"recipients_per_{span}"],
            "refused": window.refused,
        }
    return row


def _line(count: Count, limit: dict[str, Any], enforces: bool) -> str:
    parts = []
    met = False
    for span, window in zip(SPAN_NAMES, count.windows, strict=True):
        cells = []
        for what, number in (
            ("messages", window.messages),
            ("recipients", window.recipients),
        ):
            most = limit[f"{what}_per_{span}"]
            cells.append(f"{number}/{'-' if most is None else most}")
        met = met or bool(window.told)
        parts.append(" ".join(cells))
    hour = count.windows[1]
    said = f", {hour.refused} refused" if hour.refused else ""
    if met and not hour.refused:
        said = f", met: {limit['action']}" + ("" if enforces else " (observed)")
    origin = _origin(count.origin)
    text = f"{count.limit:<16} {parts[0]:>16} {parts[1]:>18}  {origin}{said}"
    return printable(text)


def _origin(origin: str) -> str:
    """Name a user by his name, too."""
    number = origin.partition(",")[0].removeprefix("uid ")
    if origin.startswith("uid ") and number.isdigit():
        return f"{origin} ({user_name(int(number))})"
    return origin
