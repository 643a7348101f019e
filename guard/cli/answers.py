# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks on the terminal: one line an answer, and under it what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import click

from guard.checks import Check, State, none_bad
from guard.text import json_text, printable

_WIDTH = 79
_COLOURS = {State.WARN: "yellow", State.BAD: "red", State.GOOD: "green"}


def show_checks(checks: Iterable[Check], as_json: bool) -> None:
    """Print each answer as it comes; exits with 1 when a promise does not hold."""
    seen = []
    for check in checks:
        seen.append(check)
        if as_json:
            click.echo(json_text(check.as_json()))
        else:
            _show(check)
    if not none_bad(seen):
        raise SystemExit(1)


def _show(check: Check) -> None:
    state = click.style(f"{check.state.value:<5}", _COLOURS.get(check.state))
    indent = " " * 17
    lines = textwrap.wrap(
        printable(check.detail),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    click.echo(f"{state} {check.name:<10} {lines[0].strip() if lines else ''}")
    for line in lines[1:]:
        click.echo(line)
    if check.remedy and check.state is not State.GOOD:
        for line in textwrap.wrap(
            check.remedy,
            _WIDTH,
            initial_indent=f"{indent}> ",
            subsequent_indent=f"{indent}  ",
            break_on_hyphens=False,
        ):
            click.echo(line)
