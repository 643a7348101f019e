# SPDX-License-Identifier: GPL-2.0-or-later
"""A guardd to tamper with, and what it said of it."""

from __future__ import annotations

from tests.faults.site import Guardd, Site
from tests.verbs.conftest import run

OPEN = '[local]\ndefault = "allow"\n'
SHUT = """\
[local]
default = "deny"
[[local.rule]]
name = "lawful"
user = 4711
verdict = "allow"
[[local.rule]]
name = "not root"
user = 0
verdict = "deny"
"""


def text(site: Site, rest: str, tamper: str) -> str:
    return f'mode = "enforce"\nports = [{site.port}]\ntamper = "{tamper}"\n{rest}'


def begin(site: Site, tamper: str) -> Guardd:
    """Have a guard that denies, after a policy that allowed all."""
    site.write_policy(text(site, OPEN, tamper))
    guardd = site.start()
    assert site.connect(1).passed == 1
    site.write_policy(text(site, SHUT, tamper))
    guardd.reload()
    assert site.connect(1).denied == 1
    return guardd


def rounds(guardd: Guardd, number: int = 3) -> None:
    """Let guardd look a few times more."""
    before = len(guardd.messages)
    guardd.until(lambda: len(guardd.messages) >= before + number, "more rounds")


def told(site: Site, what: str = "") -> list[tuple[str, str, str]]:
    """Give WHAT, STATE and REPAIRED of the findings about tampering."""
    return [
        (entry["WHAT"], entry["STATE"], entry["REPAIRED"])
        for entry in site.entries("tampered")
        if what in ("", entry["WHAT"])
    ]


def verify(site: Site) -> dict[str, str]:
    """Give what guardctl verify says of each thing."""
    return {
        row["name"]: row["state"]
        for row in run("--pin-dir", str(site.pin_dir), "verify", "--json").rows()
    }


def all_good(site: Site) -> bool:
    """Tell whether verify finds nothing; a note is of what this kernel has not."""
    return set(verify(site).values()) <= {"ok", "note"}
