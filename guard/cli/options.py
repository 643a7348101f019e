# SPDX-License-Identifier: GPL-2.0-or-later
"""The options that who-connected, watch and plan share: which findings, where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from guard.cli import complete
from guard.errors import JournalError
from guard.query import Filter, Journal, parse_time
from guard.text import printable

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PORT = click.IntRange(0, 65535)
_NUMBER = click.IntRange(0, 2**32 - 1)

_FILTERS = [
    click.option(
        "--port",
        "ports",
        type=_PORT,
        multiple=True,
        metavar="PORT",
        help="Connected to.",
    ),
    click.option(
        "--to",
        multiple=True,
        metavar="ADDR|CIDR",
        help="Address connected to.",
    ),
    click.option(
        "--from-port",
        "from_ports",
        type=_PORT,
        multiple=True,
        metavar="PORT",
        help="Connected from.",
    ),
    click.option(
        "--pid", "pids", type=_NUMBER, multiple=True, metavar="PID", help="Process."
    ),
    click.option(
        "--user",
        "users",
        multiple=True,
        metavar="NAME",
        shell_complete=complete.users,
        help="User, as it was named.",
    ),
    click.option(
        "--uid",
        "uids",
        type=_NUMBER,
        multiple=True,
        metavar="UID",
        help="User, by number.",
    ),
    click.option(
        "--exe",
        "exes",
        multiple=True,
        metavar="PATH|GLOB",
        shell_complete=complete.files,
        help="Program's file.",
    ),
    click.option(
        "--unit",
        "units",
        multiple=True,
        metavar="UNIT|GLOB",
        shell_complete=complete.units,
        help="Its systemd unit.",
    ),
    click.option(
        "--script",
        "scripts",
        multiple=True,
        metavar="PATH|GLOB",
        shell_complete=complete.files,
        help="Script that an interpreter runs.",
    ),
    click.option(
        "--pool",
        "pools",
        multiple=True,
        metavar="NAME|GLOB",
        help="Pool of php-fpm.",
    ),
    click.option(
        "--verdict",
        "verdicts",
        type=click.Choice(["deny", "allow", "redirect"]),
        multiple=True,
        help="What the rule said; deny in observe mode as well.",
    ),
    click.option(
        "--direction",
        "directions",
        type=click.Choice(["outbound", "local"]),
        multiple=True,
        help="To another host, or to this one.",
    ),
]
_JOURNAL = [
    click.option(
        "--directory",
        metavar="DIR",
        shell_complete=complete.folders,
        help="Read the journal files in DIR.",
    ),
    click.option(
        "--merge", is_flag=True, help="Read the journals of other hosts here as well."
    ),
]
# Taken from a command's keyword arguments by take_filter().
_NAMES = (
    *("ports", "to", "from_ports", "pids", "users", "uids", "exes", "units"),
    *("scripts", "pools", "verdicts", "directions"),
)


def point_in_time(name: str, **given: Any) -> Callable[[_Command], _Command]:
    """Make an option that takes a time as parse_time() reads it."""
    return click.option(name, metavar="TIME", shell_complete=complete.times, **given)


def filters(command: _Command) -> _Command:
    """Add the options that narrow the findings; of one given twice either holds."""
    return _add(_FILTERS, command)


def journals(command: _Command) -> _Command:
    """Add the options that say which journal."""
    return _add(_JOURNAL, command)


def _add(options: list[Any], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def take_filter(given: dict[str, Any], since: str | None, until: str | None) -> Filter:
    """Make a Filter of the options of filters() and of two points in time.

    Raises BadQuery for a time or an address that is none.
    """
    chosen: dict[str, Any] = {
        name: tuple(given[name]) for name in _NAMES if name in given
    }
    if since is not None:
        chosen["since_us"] = parse_time(since)
    if until is not None:
        chosen["until_us"] = parse_time(until)
    wanted = Filter(**chosen)
    wanted.matches()  # say what is wrong before the first row
    return wanted


def take_journal(directory: str | None, merge: bool) -> Journal:
    """Open what the options of journals() say."""
    if directory is not None and merge:
        raise click.UsageError("--directory reads all in it: leave --merge out")
    return Journal(directory, merge)


class Torn:
    """Counts entries that cannot be read, to tell of them at the end."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self._first = ""

    def __call__(self, error: JournalError) -> None:
        """Take note of one."""
        self.count += 1
        self._first = self._first or str(error)

    def tell(self) -> None:
        """Say on standard error how many there were."""
        if self.count:
            first = printable(self._first)
            click.echo(
                f"{self.count} entries could not be read; the first: {first}", err=True
            )
