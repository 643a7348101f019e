# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed while nobody watched: found by the next guardd, and by the clock."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.force import bring_up, put_in_force
from guard.kernel import Guard
from guard.watch import Watch
from tests.faults.site import Site
from tests.tamper import others as act
from tests.tamper.acts import SHUT, begin, rounds, text, told


@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        (act.detach_link, "links"),
        (act.observe, "rows"),
        (act.allow_root, "rows"),
        (act.set_control(act.every_port), "rows"),
        (None, "programs"),
    ],
)
def test_the_next_guardd_tells_it(
    site: Site, others: Path, tamper: Callable[[Guard], object] | None, what: str
) -> None:
    begin(site, "repair").end()
    (tamper or act.replace_program(others))(site.guard)
    assert site.connect(3).passed == 3
    guardd = site.start()
    assert site.connect(3).denied == 3
    guardd.until(lambda: told(site), "a finding", 40)
    rounds(guardd)
    assert told(site) == [(what, "changed", "1")]
    assert "while no guardd ran" in site.entries("tampered")[0]["MESSAGE"]


def test_a_package_that_came_meanwhile_is_no_tampering(site: Site) -> None:
    site.folder.chmod(0o755)
    program = site.folder / "bin/connects"
    site.install(program)
    rule = f'[[local.rule]]\nname = "exe"\nexe = "{program}"\nverdict = "allow"\n'
    site.write_policy(text(site, SHUT + rule, "repair"))
    site.start().end()
    site.install(program)
    guardd = site.start()
    rounds(guardd)
    assert told(site) == []


def test_rows_are_made_anew_once_a_minute(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what inotify does not tell: it may be used up, accounts may be elsewhere."""
    site.folder.chmod(0o755)
    program = site.folder / "connects"
    rule = f'[[local.rule]]\nname = "exe"\nexe = "{program}"\nverdict = "allow"\n'
    site.write_policy(text(site, rule, "repair"))
    started = bring_up(site.pin_dir, site.cgroup, site.policy_file)
    watch = Watch(
        *(started.guard, site.cgroup, site.policy_file, started.policy),
        started.keeper,
    )
    now = 0.0
    monkeypatch.setattr("guard.watch.time.monotonic", lambda: now)

    def minute_later() -> bool:
        nonlocal now
        now += 1e6
        policy = watch.outdated()
        if policy is not None:
            put_in_force(started.guard, policy)
        return policy is not None and watch.outdated() is None

    assert not minute_later()
    shutil.copy2(site.connects, site.folder / "new")
    (site.folder / "new").rename(program)
    assert minute_later()
    assert not minute_later()
    assert site.connect(3, program=program).passed == 3
