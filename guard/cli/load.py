# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl load: put the guard in force without guardd."""

from __future__ import annotations

from pathlib import Path

import click

from guard.cli import complete
from guard.cli.notices import tell_journal
from guard.errors import BackstopError, KernelError, NoPrograms, NotBpffs, PolicyError
from guard.finding import Finding, Kind, Notice
from guard.force import bring_up, for_programs, nothing_notice
from guard.kernel import remains
from guard.ownerrules import load_owner_rules, no_programs, not_served, state_file
from guard.policy import DEFAULT_FILE
from guard.preexisting import Before
from guard.requests import Requests
from guard.text import json_text, printable_lines

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
@click.option(
    "--design",
    type=click.Choice(["auto", "bpf", "owner"]),
    default="auto",
    show_default=True,
    help="Kernel programs, rules of netfilter by owner, or the best there is.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def command(
    pin_dir: Path, policy: Path, cgroup: Path | None, design: str, as_json: bool
) -> None:
    """Load the guard, or swap its programs for the installed ones, and exit.

    The guard is then in force and stays so; findings wait in the kernel until
    guardd reads them. This is what smtp-guard-load.service does at boot.
    """
    not_served(pin_dir)
    why = "asked for by --design owner"
    try:
        if design != "owner":
            try:
                _load_programs(pin_dir, policy, cgroup, as_json)
                return
            except NoPrograms as error:
                if design == "bpf":
                    raise
                why = no_programs(error)
        notices, refusal = load_owner_rules(pin_dir, policy, why)
        _tell(notices, as_json)
        if refusal:
            raise refusal
    except NotBpffs:  # what is wrong is --pin-dir
        raise
    except (PolicyError, NoPrograms, KernelError, BackstopError) as error:
        if not remains(pin_dir) and not state_file(pin_dir).exists():
            tell_journal([nothing_notice(error, policy)])
        raise


def _load_programs(
    pin_dir: Path, policy: Path, cgroup: Path | None, as_json: bool
) -> None:
    with for_programs(pin_dir, cgroup) as folder:
        start = bring_up(pin_dir, folder, policy)
        # what was in force without programs was replaced
        state_file(pin_dir).unlink(missing_ok=True)
        Requests(start.guard).look()  # what it may not do is guardd's to tell
        _tell(start.notices(policy.absolute()), as_json)
        found: list[Finding | Notice] = []
        before = Before(start.guard, lambda: start.policy, found.append)
        if text := before.begin():  # those with a grace are left to guardd
            _say(Kind.PRE_EXISTING, text, as_json)
        tell_journal(found)
    if start.refused:
        raise start.refused


def _tell(notices: list[Notice], as_json: bool) -> None:
    for notice in notices:
        _say(notice.kind, notice.message, as_json)
    tell_journal(notices)


def _say(kind: Kind, text: str, as_json: bool) -> None:
    row = {"kind": kind.value, "message": text}
    click.echo(json_text(row) if as_json else printable_lines(text))
