# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl unload: open the host again."""

from __future__ import annotations

import time
from pathlib import Path

import click

from guard.finding import Kind, Notice
from guard.force import only_one
from guard.kernel import Guard
from guard.origin import Naming
from guard.scribe import Scribe

_EXAMPLES = """\b
Examples:
  systemctl stop smtp-guard && guardctl unload
  guardctl --pin-dir /sys/fs/bpf/lab unload
"""
_JOURNAL_SECONDS = 10.0


@click.command(epilog=_EXAMPLES)
@click.pass_obj
def command(pin_dir: Path) -> None:
    """Take the guard out of the kernel: from then on nothing is denied.

    Findings that wait in the kernel are journalled first. Refused while guardd
    runs.
    """
    guard = Guard(pin_dir)
    with only_one(pin_dir):
        guard.detach()
        scribe = Scribe(guard, Naming(), lambda found: None)
        scribe.start()
        scribe.tell(
            Notice(
                Kind.UNLOADED,
                time.time_ns() // 1000,
                f"guard unloaded by uid {_login()}: outbound SMTP is open to every "
                "process",
                priority=4,
            )
        )
        journalled = scribe.stop(_JOURNAL_SECONDS, everything=True)
        guard.unload()
    if not journalled:
        click.echo(f"last findings not journalled: {scribe.trouble}", err=True)
    click.echo("unloaded: outbound SMTP is open to every process")


def _login() -> str:
    """Give who logged in, through sudo and su: /proc/self/loginuid, audit(8)."""
    try:
        uid = Path("/proc/self/loginuid").read_text().strip()
    except OSError:
        return "0"
    return "0" if uid == str(2**32 - 1) else uid
