# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl doctor: what works on this host, what does not, what to do."""

from __future__ import annotations

from pathlib import Path

import click

from guard.cli.answers import show_checks
from guard.doctor import examine

_EXAMPLES = """\b
Examples:
  guardctl doctor
  guardctl doctor --json | jq -r 'select(.remedy) | .remedy'
"""


@click.command(epilog=_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def command(pin_dir: Path, as_json: bool) -> None:
    """Examine kernel, journald, the guard, firewalls and the mail server.

    The exit status is 1 when a promise does not hold (FAIL), 0 otherwise.
    """
    show_checks(examine(pin_dir), as_json)
