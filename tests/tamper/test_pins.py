# SPDX-License-Identifier: GPL-2.0-or-later
"""Pins removed or replaced while guardd runs: nothing opens, and they come back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from guard import abi, libbpf
from guard.kernel import HAND_RUN, HOOKS
from guard.tables import MAPS
from tests.faults.site import Guardd, Site
from tests.tamper.acts import all_good, begin, rounds, told

HOME = f"v{abi.ABI}"
ALL = [f"link-{hook}" for hook in HOOKS]
ALL += [f"{HOME}/{name}" for name in (*MAPS.values(), *HOOKS, *HAND_RUN)]


def ids(site: Site) -> dict[str, int]:
    """Give the kernel's number of what each pin leads to."""
    found = {}
    for name in ALL:
        kind: type = libbpf.MapInfo
        if name.startswith("link-"):
            kind = libbpf.LinkInfo
        elif Path(name).name not in MAPS.values():
            kind = libbpf.ProgramInfo
        fd = libbpf.get_pinned(site.pin_dir / name)
        found[name] = libbpf.info(fd, kind).id
        os.close(fd)
    return found


def remove(*names: str) -> Callable[[Path], None]:
    def tamper(pin_dir: Path) -> None:
        for name in names:
            (pin_dir / name).unlink()

    return tamper


def swap(pin_dir: Path) -> None:
    """Let two pins change places, so that both names are still there."""
    home = pin_dir / HOME
    (home / "guard_connect4").rename(home / "kept")
    (home / "guard_connect6").rename(home / "guard_connect4")
    (home / "kept").rename(home / "guard_connect6")


def open_folder(pin_dir: Path) -> None:
    pin_dir.chmod(0o755)


WAYS: dict[str, Callable[[Path], object]] = {
    "the link that denies": remove("link-guard_connect4"),
    "every link": remove(*(f"link-{hook}" for hook in HOOKS)),
    "the policy's maps": remove(f"{HOME}/control", f"{HOME}/policies"),
    "ring and counters": remove(f"{HOME}/ring", f"{HOME}/counters"),
    "the programs": remove(f"{HOME}/guard_connect4", f"{HOME}/identify"),
    "programs swapped": swap,
    "the inner folder": lambda pin_dir: shutil.rmtree(pin_dir / HOME),
    "the whole folder": shutil.rmtree,
    "a folder open to others": open_folder,
}


@pytest.mark.parametrize("way", WAYS)
def test_pins_come_back_and_nothing_slips_through(site: Site, way: str) -> None:
    guardd = begin(site, "repair")
    before = ids(site)
    load = site.load(pause_us=100)
    WAYS[way](site.pin_dir)
    guardd.until(lambda: told(site), "a finding", 40)
    rounds(guardd)
    assert site.tally(load).passed == 0
    assert told(site) == [("pins", "changed", "1")]
    assert ids(site) == before
    assert site.pin_dir.stat().st_mode & 0o777 == 0o700
    assert all_good(site)
    # and the pins hold what they promise: the guard outlives guardd
    assert guardd.end() == 0
    assert site.connect(3).denied == 3
    guardd = site.start()
    assert site.settled(guardd).doubles == 0


def test_nobody_else_serves_a_folder_that_was_made_anew(site: Site) -> None:
    guardd = begin(site, "repair")
    shutil.rmtree(site.pin_dir)
    guardd.until(lambda: told(site), "a finding", 40)
    second = Guardd(site)
    assert second.process.wait(20) == 75  # EX_TEMPFAIL
    assert "another guardd serves" in second.said()


def test_with_report_pins_stay_away(site: Site) -> None:
    guardd = begin(site, "report")
    shutil.rmtree(site.pin_dir)
    guardd.until(lambda: told(site), "a finding", 40)
    rounds(guardd)
    assert told(site) == [("pins", "changed", "0")]
    assert not site.pin_dir.exists()
    assert site.connect(3).denied == 3, "guardd holds the links"
    assert "Traceback" not in guardd.said()
    guardd.end()
    assert site.connect(3).passed == 3, "the control: nothing else holds them"
