# SPDX-License-Identifier: GPL-2.0-or-later
"""The cgroup, or pins, removed by somebody: said, and mended where it can be."""

from __future__ import annotations

import shutil

import pytest

from guard import abi
from guard.kernel import is_loaded
from tests.faults.site import Guardd, Site
from tests.lab.lab import kill_cgroup

HOME = f"v{abi.ABI}"


def refused(guardd: Guardd) -> str:
    """Wait for guardd's end; it must say why without a traceback."""
    assert guardd.process.wait(20) == 71, guardd.said()  # EX_OSERR
    assert "Traceback" not in guardd.said()
    return guardd.said()


def test_a_cgroup_that_is_not_there(site: Site) -> None:
    missing = site.cgroup / "missing"
    said = refused(Guardd(site, cgroup=str(missing)))
    assert f"cannot open {missing}" in said
    assert "name a folder of cgroup v2" in said
    assert not site.pin_dir.exists()


def test_a_folder_that_is_no_cgroup(site: Site) -> None:
    said = refused(Guardd(site, cgroup=str(site.folder)))
    assert f"{site.folder} is no cgroup2 folder" in said
    assert not site.pin_dir.exists()


def test_a_pin_dir_that_is_not_on_bpffs(site: Site) -> None:
    said = refused(Guardd(site, pin_dir=str(site.folder / "pins")))
    assert "not on a BPF file system" in said


def test_the_cgroup_removed_and_made_anew(site: Site) -> None:
    guardd = site.start()
    assert site.connect(3).denied == 3
    kill_cgroup(site.cgroup)
    guardd.until(lambda: "NOT IN FORCE" in guardd.status, "STATUS")
    site.cgroup.mkdir()
    guardd.until(lambda: "NOT IN FORCE" not in guardd.status, "STATUS")
    assert site.connect(3).denied == 3
    ledger = site.settled(guardd)
    # said once, not every second, and once that it is over
    told = [e for e in site.entries("tampered") if e["WHAT"] == "links"]
    assert [(e["STATE"], e["REPAIRED"]) for e in told] == [
        *(("changed", "0"), ("good", "1"))
    ]
    assert "NOT IN FORCE" in told[0]["MESSAGE"]
    assert ledger.kinds["loaded"] == 1
    assert "Traceback" not in guardd.said()


def test_guardd_starts_after_its_cgroup_was_made_anew(site: Site) -> None:
    """Its links stay pinned, attached to nothing."""
    site.start().end()
    kill_cgroup(site.cgroup)
    site.cgroup.mkdir()
    assert site.connect(3).passed == 3
    site.start()
    assert site.connect(3).denied == 3


def test_another_cgroup_than_the_one_that_is_guarded(site: Site) -> None:
    site.start().end()
    other = site.cgroup / "other"
    other.mkdir()
    said = refused(Guardd(site, cgroup=str(other)))
    assert "attached to another cgroup" in said and "guardctl unload" in said
    assert site.connect(3).denied == 3


@pytest.mark.parametrize("hook", ["guard_connect4", "guard_sockops"])
def test_a_link_removed_by_hand_is_made_again(site: Site, hook: str) -> None:
    guardd = site.start()
    site.guard.link_path(hook).unlink()
    guardd.until(lambda: site.guard.link_path(hook).exists(), "the link")
    guardd.until(lambda: site.connect(1).denied == 1, "a denial")
    guardd.until(
        lambda: any(f"removed link-{hook};" in e["MESSAGE"] for e in site.entries()),
        "a finding about it",
    )


def test_all_pins_removed_while_guardd_runs(site: Site) -> None:
    """It has every link open: nothing opens, and the pins come back."""
    guardd = site.start()
    load = site.load(pause_us=50)
    guardd.until(lambda: site.count(abi.Counter.DENIED), "a denial")
    shutil.rmtree(site.pin_dir)
    guardd.until(lambda: is_loaded(site.pin_dir), "the pins")
    guardd.reload()
    assert guardd.end() == 0
    assert site.tally(load).passed == 0
    assert "Traceback" not in guardd.said()
    site.start()
    assert site.connect(3).denied == 3


@pytest.mark.parametrize("pin", ["ring", "control", "policies", "about", "judge"])
def test_one_pin_removed_between_two_runs(site: Site, pin: str) -> None:
    """What is left of the old guard denies until the new one takes over."""
    site.start().end()
    (site.pin_dir / HOME / pin).unlink()
    assert not is_loaded(site.pin_dir)
    load = site.load(pause_us=50)
    guardd = site.start()
    assert site.tally(load).passed == 0
    assert site.guard.home_netns != 0
    assert site.connect(3).denied == 3
    assert len(site.ledger().findings) > 0
    assert guardd.end() == 0
