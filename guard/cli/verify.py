# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl verify: are links, programs and maps the ones we put there?"""

from __future__ import annotations

from pathlib import Path

import click

from guard.cli.answers import show_checks
from guard.errors import NotLoaded
from guard.kernel import Guard
from guard.ownerrules import examine, read_state
from guard.verify import verify

_EXAMPLES = """\b
Examples:
  guardctl verify
  guardctl verify --json | jq 'select(.state == "fail")'
  guardctl --pin-dir /sys/fs/bpf/lab verify
"""


@click.command(epilog=_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def command(pin_dir: Path, as_json: bool) -> None:
    """Compare what is in the kernel with what the guard put there.

    Programs are compared with the installed object, rows with the policy file.
    The exit status is 1 when something is not as it should be, 69 when no guard
    is loaded.
    """
    try:
        guard = Guard(pin_dir)
    except NotLoaded:
        state = read_state(pin_dir)
        if state is None:
            raise
        show_checks(examine(state, pin_dir), as_json)
        return
    show_checks(verify(guard), as_json)
