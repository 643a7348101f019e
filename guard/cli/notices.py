# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verb did, for the journal, where no guardd writes it."""

from __future__ import annotations

from collections.abc import Iterable

import click

from guard.delivery import write_alone
from guard.finding import Finding, Notice


def tell_journal(notices: Iterable[Finding | Notice]) -> None:
    """Journal these, or say on the terminal that it could not be done."""
    write_alone(notices, lambda text: click.echo(text, err=True))
