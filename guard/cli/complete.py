# SPDX-License-Identifier: GPL-2.0-or-later
"""What TAB offers where an option takes a name that this host knows.

Asked at every TAB, by anybody: reads no journal and no policy, starts no program.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
from click.shell_completion import CompletionItem

# Where cgroup2 is mounted, the hybrid layout first: systemd's CGROUP_DELEGATION.
_CGROUP2 = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
# Escaped names (a backslash) would need another quoting in each shell.
_UNIT = re.compile(r"[\w.:@-]+\.(service|slice|scope)", re.ASCII)
_MOST_UNITS = 2000
# Of systemd.time(7), and none with a space in it.
_TIMES = ("today", "yesterday", "now", "-10min", "-1h", "-1d", "-1w")


def users(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the users of this host."""
    return _fitting((entry.pw_name for entry in pwd.getpwall()), incomplete)


def groups(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the groups of this host."""
    return _fitting((entry.gr_name for entry in grp.getgrall()), incomplete)


def units(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the units that run: what has a name in the cgroup tree."""
    top = next((path for path in _CGROUP2 if path.is_dir()), Path("/nonexistent"))
    return _fitting(islice(_units(top), _MOST_UNITS), incomplete)


def _units(top: Path) -> Iterator[str]:
    for _, folders, _ in os.walk(top):
        yield from filter(_UNIT.fullmatch, folders)


def times(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer some points in time."""
    return [text for text in _TIMES if text.startswith(incomplete)]


def files(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Leave it to the shell, which knows files best."""
    return [CompletionItem(incomplete, type="file")]


def folders(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Leave it to the shell: directories alone."""
    return [CompletionItem(incomplete, type="dir")]


def _fitting(names: Iterator[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
