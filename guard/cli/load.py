# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl load: put the guard in force without guardd."""

from __future__ import annotations

from pathlib import Path

import click

from guard.cli import complete
from guard.cli.notices import tell_journal
from guard.errors import AlreadyRunning
from guard.finding import Finding, Kind, Notice
from guard.force import bring_up, only_one
from guard.kernel import find_cgroup2
from guard.policy import DEFAULT_FILE
from guard.preexisting import Before
from guard.text import json_text, printable_lines
from guard.unaided import served_by, state_file

_EXAMPLES = """\b
Examples:
  guardctl load
  guardctl load --policy draft.toml
  guardctl --pin-dir /sys/fs/bpf/lab load --cgroup /sys/fs/cgroup/lab
"""


@click.command(epilog=_EXAMPLES)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    default=DEFAULT_FILE,
    metavar="FILE",
    help="Policy to put in force (default /etc/smtp-guard/policy.toml).",
)
@click.option(
    "--cgroup",
    type=click.Path(path_type=Path),
    metavar="DIR",
    shell_complete=complete.folders,
    help="cgroup2 folder to guard (default: the root, that is everything).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def command(pin_dir: Path, policy: Path, cgroup: Path | None, as_json: bool) -> None:
    """Load the guard, or swap its programs for the installed ones, and exit.

    The guard is then in force and stays so; findings wait in the kernel until
    guardd reads them. This is what smtp-guard-load.service does at boot.
    """
    without = state_file(pin_dir)
    if (pid := served_by(without)) is not None:
        raise AlreadyRunning(
            f"this host without kernel programs (pid {pid})",
            hint="stop it first: systemctl stop smtp-guard",
        )
    with only_one(pin_dir):
        start = bring_up(pin_dir, cgroup or find_cgroup2(), policy)
        without.unlink(missing_ok=True)  # what it had in force was replaced
        notices = start.notices(policy.absolute())
        for notice in notices:
            _say(notice.kind, notice.message, as_json)
        found: list[Finding | Notice] = [*notices]
        before = Before(start.guard, lambda: start.policy, found.append)
        if text := before.begin():  # those with a grace are left to guardd
            _say(Kind.PRE_EXISTING, text, as_json)
        tell_journal(found)
    if start.refused:
        raise start.refused


def _say(kind: Kind, text: str, as_json: bool) -> None:
    row = {"kind": kind.value, "message": text}
    click.echo(json_text(row) if as_json else printable_lines(text))
