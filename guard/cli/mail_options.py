# SPDX-License-Identifier: GPL-2.0-or-later
"""What the verbs of guardctl mail share: which Postfix and table, how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from guard.cli import complete
from guard.cli.switching import Loaded
from guard.errors import NotWritten
from guard.mail import edit
from guard.mail.applying import alone, apply
from guard.mail.planning import Change, Plan, diff
from guard.mail.postfix import DEFAULT_CONFIG_DIR, Postfix
from guard.mail.table import DEFAULT_TABLE
from guard.text import json_text, printable

F = TypeVar("F", bound=Callable[..., Any])

config_dir = click.option(
    "--config-dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG_DIR,
    show_default=True,
    metavar="DIR",
    shell_complete=complete.folders,
    help="Which Postfix, as for postconf -c.",
)
table_file = click.option(
    "--table",
    type=click.Path(path_type=Path),
    default=DEFAULT_TABLE,
    show_default=True,
    metavar="FILE",
    shell_complete=complete.files,
    help="The table to set it up from.",
)
json_object = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


def table(function: F) -> F:
    """Add --table, --config-dir and --json."""
    return table_file(config_dir(json_object(function)))


def postfix_in(config_dir: Path) -> Postfix:
    """Give the Postfix of --config-dir, beside the guard of --pin-dir."""
    return Postfix(config_dir, Loaded(click.get_current_context().obj))


def told(restored: Iterable[str]) -> None:
    """Say on standard error what a killed run had left half, and that it is whole."""
    names = ", ".join(map(printable, restored))
    if names:
        click.echo(f"put back, an apply was killed in the midst: {names}", err=True)


def change_json(change: Change) -> dict[str, object]:
    """Give a change as a JSON object; a password is in none."""
    return {
        "file": change.file,
        "item": change.item or None,
        "before": change.before,
        "after": change.after,
        "edited": change.edited,
        "why": change.why or None,
    }


def plan_json(plan: Plan) -> dict[str, object]:
    """Give a plan as a JSON object."""
    return {"changes": [*map(change_json, plan.changes)], "notes": plan.notes}


def show_plan(plan: Plan) -> None:
    """Print a plan as a diff, file by file, and its notes."""
    for file in dict.fromkeys(change.file for change in plan.changes):
        click.echo(printable(file))
        for change in plan.changes:
            if change.file == file:
                _show_change(change)
    for note in plan.notes:
        click.echo(f"note: {printable(note)}")


def _show_change(change: Change) -> None:
    if change.edited:
        click.echo("  # changed by somebody since the last apply")
    if change.why and change.before is not None:
        click.echo(f"  # {printable(change.why)}")
    for line in diff(change):
        colour = {"-": "red", "+": "green"}.get(line[0])
        click.echo(f"  {click.style(printable(line), colour)}")


def edit_and_apply(
    postfix: Postfix,
    path: Path,
    change: edit.Edit,
    as_json: bool,
    password: str | None = None,
) -> None:
    """Change mail.toml and put it in force, or neither; print what was done.

    password is what its password file is to hold.
    """
    with alone(postfix) as restored:
        told(restored)
        table, text = edit.edited(path, change)
        try:
            written = edit.written(path, text)
        except OSError as error:
            raise NotWritten(f"{error.filename or path}: {error.strerror}") from None
        if password is not None:
            table, target = edit.with_password(table, password)
            written.append(target)
        plan = apply(postfix, table, as_planned=False, written=written)
    show_done(plan, as_json)


def show_done(plan: Plan, as_json: bool) -> None:
    """Print what apply or revert has done."""
    if as_json:
        click.echo(json_text(plan_json(plan), indent=2))
        return
    show_plan(plan)
    number = len(plan.changes)
    count = "1 change" if number == 1 else f"{number} changes"
    click.echo(f"done: {count}" if number else "nothing to do")
