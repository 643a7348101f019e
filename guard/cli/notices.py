# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verb did, for the journal, where no guardd writes it."""

from __future__ import annotations

from collections.abc import Iterable

import click

from guard.errors import JournalError
from guard.finding import Finding, Notice
from guard.journal import JournalWriter

_SECONDS = 5.0


def tell_journal(notices: Iterable[Finding | Notice]) -> None:
    """Journal these, or say on the terminal that it could not be done.

    Early at boot journald may not be there yet; what was done stays done.
    """
    writer = JournalWriter()
    for notice in notices:
        try:
            writer.write(notice, _SECONDS)
        except JournalError as error:
            click.echo(f"not journalled: {error}", err=True)
    writer.close()
