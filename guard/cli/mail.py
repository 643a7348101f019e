# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail: Postfix beside the guard, and what DNS says of it."""

from __future__ import annotations

import click

from guard.cli.mail_spf import spf

_EXAMPLES = """\b
Examples:
  guardctl mail spf example.com
"""


@click.group(name="mail", epilog=_EXAMPLES)
def command() -> None:
    """See to what a mail host needs beside the guard."""


for verb in (spf,):
    command.add_command(verb)
