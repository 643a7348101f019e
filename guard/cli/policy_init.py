# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl policy init: a first policy, for the mail server of this host."""

from __future__ import annotations

import os
from pathlib import Path

import click

from guard.cli.files import write_whole
from guard.errors import NotWritten
from guard.policy import DEFAULT_FILE
from guard.policy.begin import beginning, fitting
from guard.text import json_text

_EXAMPLES = """\b
Examples:
  guardctl policy init
  guardctl policy init --print
  guardctl policy init draft.toml && guardctl policy check draft.toml
"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@click.option("--print", "only_print", is_flag=True, help="Print it, write no file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def init(file: Path, only_print: bool, as_json: bool) -> None:
    """Write FILE: observe mode, and what the mail system of this host needs.

    FILE is /etc/smtp-guard/policy.toml if not named. It includes the shipped
    policies of the mail servers that are installed here, and denies nothing until
    its mode is changed. A file that is there is left as it is, with exit status 73.
    """
    names = fitting()
    text = beginning(names)
    if not only_print:
        _write_new(file, text)
    if as_json:
        written = None if only_print else str(file)
        answer = {"file": written, "mode": "observe", "include": names, "text": text}
        click.echo(json_text(answer))
    elif only_print:
        click.echo(text, nl=False)
    else:
        found = ", ".join(names) or "no mail server found, so all that are known"
        click.echo(f"{file}: observe mode, includes: {found}")


def _write_new(file: Path, text: str) -> None:
    """Write a file that is not there yet, whole or not at all."""
    staged = file.with_name(f".{file.name}.new")
    try:
        if not file.parent.exists():
            file.parent.mkdir()
            file.parent.chmod(0o755)  # whatever the umask is, see write_whole()
        write_whole(staged, text.encode())
        os.link(staged, file)  # not rename, which would replace
    except FileExistsError:
        raise NotWritten(
            f"{file} is there",
            hint="guardctl policy init --print shows what it would have been",
        ) from None
    except OSError as error:
        raise NotWritten(f"{error.filename or staged}: {error.strerror}") from None
    finally:
        staged.unlink(missing_ok=True)
