# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl token-key: a new key for the header that leads from a mail to its sender."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import click

from guard.cli import complete
from guard.mta.origintoken import HEADER, TOKEN_KEYS, add_key
from guard.privileges import ACCOUNT
from guard.text import json_text, printable

_EPILOG = f"""\b
The new key is taken up within a second, for the header {HEADER}; tokens of the
keys that are kept are still known. A key that leaked: put a new one first with
--keep 1, and tokens made with the old one are nobody's any more.

\b
Exit status: 0, or 69 when the file cannot be read or written.

\b
Examples:
  guardctl token-key
  guardctl token-key --keep 1
"""


@click.command(name="token-key", epilog=_EPILOG)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    default=TOKEN_KEYS,
    show_default=True,
    metavar="FILE",
    shell_complete=complete.files,
    help="The keys, as token_keys in [mta] names them.",
)
@click.option(
    "--keep",
    type=click.IntRange(1, 100),
    default=12,
    show_default=True,
    metavar="N",
    help="How many keys are kept, with the new one.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(file: Path, keep: int, as_json: bool) -> None:
    """Make a new key, put it first, and keep the ones before it.

    The file is root's, and guardd's group may read it.
    """
    try:
        group = pwd.getpwnam(ACCOUNT).pw_gid
    except KeyError:  # guardd runs as root here
        group = os.getegid()
    names = add_key(file.absolute(), keep, group)
    if as_json:
        click.echo(json_text({"file": str(file), "keys": names}))
    else:
        others = f", {len(names) - 1} older kept" if names[1:] else ""
        click.echo(printable(f"{file}: key {names[0]} is new{others}"))
