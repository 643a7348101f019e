# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy file changed on disk and not applied: told, and nothing else done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from guard.policy import load
from guard.watch import Files
from tests.faults.site import Site
from tests.tamper.acts import OPEN, begin, rounds, text, told, verify
from tests.verbs.conftest import run


def test_a_file_that_says_something_else_is_told(site: Site) -> None:
    guardd = begin(site, "repair")
    before = site.policy_file.read_text()
    site.write_policy(text(site, OPEN, "repair"))
    guardd.until(lambda: told(site), "a finding", 60)
    assert told(site) == [("policy-file", "changed", "0")]
    [entry] = site.entries("tampered")
    assert "guardctl policy apply" in entry["MESSAGE"]
    assert site.connect(3).denied == 3, "it was put in force"
    assert verify(site)["watch"] == "warn"
    assert run("--pin-dir", str(site.pin_dir), "verify").status == 0
    site.write_policy(before)
    guardd.until(lambda: len(told(site)) == 2, "the end", 60)
    assert told(site)[-1] == ("policy-file", "good", "1")
    # what is refused was told as refused, and is not told again
    site.write_policy("nonsense")
    guardd.reload()
    rounds(guardd, 13)
    assert len(told(site)) == 2
    site.policy_file.unlink()
    guardd.until(lambda: len(told(site)) == 3, "a finding", 60)
    assert "no such file" in site.entries("tampered")[-1]["MESSAGE"]


@pytest.fixture
def minute_later(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Watch a good policy and an include of it; gives what a look a minute on says."""
    extra = site.folder / "extra.toml"
    extra.write_text("")
    extra.chmod(0o644)
    site.folder.chmod(0o755)
    site.write_policy(f'mode = "enforce"\ninclude = "{extra}"\n')
    files = Files(site.policy_file, load(site.policy_file))
    now = time.monotonic()
    monkeypatch.setattr("guard.watch.time.monotonic", lambda: now)

    def later() -> str:
        nonlocal now
        files.look()
        now += 61
        return " ".join(check.detail for check in files.look())

    assert later() == ""
    return later


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda site: site.policy_file.chmod(0o646), "can be written by others"),
        (lambda site: os.chown(site.policy_file, 65534, 0), "belongs to nobody"),
        (lambda site: site.folder.chmod(0o757), "can be written by others"),
        (lambda site: (site.folder / "extra.toml").chmod(0o666), "written by others"),
        (lambda site: (site.folder / "extra.toml").unlink(), "there is no policy"),
        (lambda site: site.policy_file.unlink(), "no such file"),
        (
            lambda site: (
                site.policy_file.rename(site.folder / "p.toml"),
                site.policy_file.symlink_to("p.toml"),
            ),
            "is a symbolic link",
        ),
    ],
)
def test_a_file_that_would_be_refused_is_told(
    site: Site,
    minute_later: Callable[[], str],
    spoil: Callable[[Site], object],
    message: str,
) -> None:
    spoil(site)
    detail = minute_later()
    assert "cannot be loaded any more" in detail and message in detail


def test_an_edit_is_no_news_before_it_rests(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(site.policy_file)
    files = Files(site.policy_file, policy)
    now = time.monotonic()
    monkeypatch.setattr("guard.watch.time.monotonic", lambda: now)
    for number in range(5):
        site.write_policy(f'mode = "observe"\nports = [{number + 1}]\n')
        assert files.look() == []
        now += 8
    assert files.look() == []
    now += 3
    assert len(files.look()) == 1
    files.read(load(site.policy_file))  # applied
    assert files.look() == []


def test_a_policy_nobody_could_read_is_not_compared(site: Site) -> None:
    files = Files(site.policy_file, None)
    site.write_policy("nonsense")
    assert files.look() == []
