# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy to begin with: default.toml, with the includes for what is installed.

A shipped policy itself says what it is for: it fits where one of its optional rules
names an executable, an account and a unit that are all there. So a policy that is
shipped from now on is found too, and the package's scripts need not know of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from guard.errors import PolicyError
from guard.policy.model import Rule
from guard.policy.parse import parse
from guard.policy.source import SHIPPED, shipped_names

# Stricter ways to say what another shipped policy says: for the admin to choose.
_ALTERNATIVES = {"postfix-unit", "postfix-smart-host"}
# Where units are looked for, systemd.unit(5); the first is the admin's.
UNIT_FOLDERS = tuple(
    Path(folder, "systemd/system")
    for folder in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
)
_INCLUDE = re.compile(r"^include = \[.*\]$", re.MULTILINE)


def fitting() -> list[str]:
    """Name the shipped policies whose programs are installed on this host."""
    return [name for name in shipped_names() if _fits(name)]


def beginning(names: Iterable[str]) -> str:
    """Give the text of a policy in observe mode that includes these.

    None named: what default.toml includes stays, which is silent until something
    is installed. Raises PolicyError when default.toml is not there.
    """
    text = _default()
    listed = ", ".join(f'"{name}"' for name in names)
    return _INCLUDE.sub(f"include = [{listed}]", text) if listed else text


def _default() -> str:
    for folder in SHIPPED:
        path = folder / "default.toml"
        if path.is_file():
            return path.read_text()
    raise PolicyError(
        str(SHIPPED[1] / "default.toml"),
        "the policy to begin with is not there",
        hint="install smtp-guard again",
    )


def _fits(name: str) -> bool:
    if name in _ALTERNATIVES:
        return False
    try:
        policy = parse(f'mode = "observe"\ninclude = ["{name}"]\n')
    except PolicyError:  # it would be refused when included, too
        return False
    return any(rule.optional and _is_here(rule) for rule in policy.rules)


def _is_here(rule: Rule) -> bool:
    """Tell whether all that a rule names is on this host: an account that is not,
    parse() has left out.
    """
    return (
        any(path.is_file() for path in rule.exes or ())
        and rule.uids != ()
        and rule.gids != ()
        and (rule.units is None or any(_has_unit(unit.text) for unit in rule.units))
    )


def _has_unit(pattern: str) -> bool:
    name = pattern.rpartition("/")[2]
    return any(any(folder.glob(name)) for folder in UNIT_FOLDERS)
