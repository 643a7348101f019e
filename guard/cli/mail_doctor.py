# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail doctor: what leaves this host's local submission anonymous."""

from __future__ import annotations

from pathlib import Path

import click

from guard.cli import mail_options as options
from guard.cli.answers import show_checks
from guard.mail.doctor import diagnose

_EXAMPLES = """\b
Exit status: 1 when something is anonymous (FAIL), 0 otherwise.

\b
Examples:
  guardctl mail doctor
  guardctl mail doctor --json | jq -r 'select(.state == "fail") | .remedy'
"""


@click.command(epilog=_EXAMPLES)
@options.config_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def doctor(config_dir: Path, as_json: bool) -> None:
    """Tell what leaves local submission anonymous, with the line that ends it.

    Changes nothing. Reads what Postfix has, whether or not mail.toml set it.
    """
    show_checks(diagnose(options.postfix_in(config_dir)), as_json)
