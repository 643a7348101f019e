# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot that finds a bad policy file: the last good policy, or none, and said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from guard.kernel import take_out
from tests.verbs.conftest import ENFORCE, OBSERVE, Site

BAD_POLICY = 78  # EX_CONFIG


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file that systemd's StateDirectory= would hold."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return tmp_path / "policy.json"


def boot(site: Site) -> None:
    """Have nothing of the guard in the kernel, as after a boot."""
    take_out(site.world.pin_dir)
    assert not site.denied(), "the control: nothing guards"


def test_the_last_good_policy_is_in_force_after_a_boot(site: Site, kept: Path) -> None:
    assert site.load().status == 0
    assert "enforce" in kept.read_text()
    site.policy.write_text("nonsense")
    boot(site)
    loaded = site.load()
    assert loaded.status == BAD_POLICY, "the unit fails, so that it is seen"
    assert "not TOML" in loaded.text
    assert site.denied()
    state = json.loads(site.ctl("status", "--json").text)
    assert state["in_force"] and "not TOML" in state["refused"]
    site.policy.write_text(OBSERVE)
    assert site.load().status == 0
    assert not site.denied()
    assert "observe" in kept.read_text()


def test_a_refused_policy_is_not_kept(site: Site, kept: Path) -> None:
    site.load()
    good = kept.read_text()
    site.policy.write_text("nonsense")
    assert site.load().status == BAD_POLICY
    assert kept.read_text() == good
    assert site.denied()


def test_without_one_nothing_is_in_force_and_that_is_said(
    site: Site, kept: Path
) -> None:
    site.policy.write_text("nonsense")
    assert site.load().status == BAD_POLICY
    assert not kept.exists()
    assert not site.world.pin_dir.exists()
    assert not site.denied()


def test_an_account_that_was_removed_does_not_open_the_host(
    site: Site, kept: Path
) -> None:
    rule = '[[rule]]\nname = "a"\nuser = "{}"\nverdict = "allow"\n'
    site.policy.write_text(ENFORCE + rule.format("nobody"))
    assert site.load().status == 0
    # as if deluser(8) had come after it
    site.policy.write_text(ENFORCE + rule.format("no-such-account"))
    kept.write_text(kept.read_text().replace("nobody", "no-such-account"))
    boot(site)
    loaded = site.load()
    assert loaded.status == BAD_POLICY and "no-such-account" in loaded.text
    assert site.denied()


@pytest.mark.parametrize(
    "what", ["torn", "too deep", "writable by others", "another's"]
)
def test_a_file_that_is_not_to_be_relied_on_is_not_used(
    site: Site, kept: Path, what: str
) -> None:
    site.load()
    if what == "torn":
        kept.write_text(kept.read_text()[:20])
    elif what == "too deep":
        kept.write_text("[" * 100_000)
    elif what == "another's":
        os.chown(kept, 65534, 65534)
    else:
        kept.chmod(0o666)
    site.policy.write_text("nonsense")
    boot(site)
    assert site.load().status == BAD_POLICY
    assert not site.denied()


def test_by_hand_nothing_is_kept(site: Site) -> None:
    assert "STATE_DIRECTORY" not in os.environ
    site.load()
    site.policy.write_text("nonsense")
    boot(site)
    assert site.load().status == BAD_POLICY
    assert not site.denied()
