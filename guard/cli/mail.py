# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail: Postfix beside the guard, set up from one table."""

from __future__ import annotations

import click

from guard.cli.mail_doctor import doctor
from guard.cli.mail_smart_host import smart_host
from guard.cli.mail_spf import spf
from guard.cli.mail_table import apply, check, plan, revert, show
from guard.cli.mail_transport import transport

_EXAMPLES = """\b
Examples:
  guardctl mail plan
  guardctl mail apply
  guardctl mail smart-host set "[mail.relay.example]:587" someuser
  guardctl mail transport set yahoo.com relaylim
  guardctl mail spf example.com
  guardctl mail doctor
"""


@click.group(name="mail", epilog=_EXAMPLES)
def command() -> None:
    """Set up Postfix from /etc/smtp-guard/mail.toml, and take that back."""


for verb in (plan, apply, check, revert, show, smart_host, transport, spf, doctor):
    command.add_command(verb)
