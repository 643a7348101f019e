# SPDX-License-Identifier: GPL-2.0-or-later
"""[mta]: what the guard and the host's own mail server tell each other."""

from __future__ import annotations

import os
from pathlib import Path

from guard.policy.fields import Table
from guard.policy.model import Mta, excerpt

_EXAMPLE = "/var/spool/postfix/smtp-guard/policy"
_LONGEST = 100  # sun_path has 108 bytes, unix(7); a new one is .NAME.new at first


def mta_section(top: Table) -> Mta:
    """Read [mta] of the main policy file; without it nothing is served."""
    table = top.section("mta", ("socket",))
    value = table.data.get("socket", False)
    if value is False:
        return Mta()
    path = Path(value) if isinstance(value, str) and "\0" not in value else Path()
    if not path.is_absolute() or ".." in path.parts or len(path.parts) < 4:
        table.error(
            "socket",
            f"{excerpt(repr(value))} is no socket in a folder of its own",
            f'write "{_EXAMPLE}": two levels below Postfix\'s queue_directory;'
            " false: none",
        )
    elif len(os.fsencode(path)) > _LONGEST:
        table.error("socket", f"is longer than {_LONGEST} bytes", "shorten it")
    else:
        return Mta(path)
    return Mta()
