# SPDX-License-Identifier: GPL-2.0-or-later
"""What guardd's own user leaves among its pins does not make root act elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guard.errors import KernelError
from guard.kernel import remains, take_out
from guard.pins import close_to_others, hand_over
from tests.verbs.conftest import Site

NOBODY = 65534  # in the part of guardd's user, who has no special right to a file


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Give a folder of root's with a file in it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir(mode=0o755)
    (folder / "kept").write_text("kept")
    return folder


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    """Give a folder of that user's, as the folder of pins is."""
    folder = tmp_path / "pins"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    return folder


def test_a_link_among_the_pins_is_taken_out_and_not_followed(
    site: Site, elsewhere: Path
) -> None:
    site.load()
    (site.world.pin_dir / "v9").symlink_to(elsewhere)
    assert site.ctl("unload").status == 0
    assert not site.world.pin_dir.exists()
    assert (elsewhere / "kept").read_text() == "kept"


def test_a_link_in_place_of_the_maps_is_not_emptied(
    pins: Path, elsewhere: Path
) -> None:
    (pins / "v1").symlink_to(elsewhere)
    take_out(pins)
    assert not pins.exists()
    assert (elsewhere / "kept").read_text() == "kept"


def test_what_a_link_leads_to_is_not_given_away(pins: Path, elsewhere: Path) -> None:
    link = pins / "v1"
    link.symlink_to(elsewhere)
    hand_over(link)
    assert link.lstat().st_uid == NOBODY, "the control: what stands there is"
    with pytest.raises(OSError, match="v1"):
        close_to_others(link)
    status = elsewhere.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o755)


def test_a_folder_that_may_not_be_looked_into_is_not_empty(pins: Path) -> None:
    """Else guardd would put rules of netfilter beside a guard it does not see."""
    (pins / "link-x").touch()
    assert remains(pins), "the control: root sees it"
    os.chown(pins, 0, 0)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(KernelError, match="cannot look into"):
            remains(pins)
    finally:
        os.seteuid(0)
