# SPDX-License-Identifier: GPL-2.0-or-later
"""vagrant/ as far as it can be tried without Vagrant: lab, and what it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.mdoc import CHECKOUT

VAGRANT = CHECKOUT / "vagrant"
BOXES = {
    "debian12": "debian/bookworm64",
    "ubuntu2404": "bento/ubuntu-24.04",
    "alma9": "almalinux/9",
}
# Stands in for Vagrant: notes how it was called, fails for what has this name.
STUB = (
    '#!/bin/sh\necho "$PWD: $*" >>"$CALLS"\ncase $* in *ubuntu2404*) exit 1 ;; esac\n'
)


def lab(*argv: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [VAGRANT / "lab", *argv],
        env={"PATH": path, **{k: v for k, v in os.environ.items() if k == "CALLS"}},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vagrant").write_text(STUB)
    (tmp_path / "vagrant").chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def test_the_boxes_are_the_public_ones() -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    assert dict(re.findall(r'"(\w+)" => "([\w./-]+)"', text)) == BOXES
    for box in BOXES:
        assert box in lab("--help").stdout


def test_a_wrong_call_is_told_and_so_is_a_missing_vagrant() -> None:
    assert lab("--help").returncode == 0
    assert (
        lab().returncode == lab("fly").returncode == lab("up", "win11").returncode == 2
    )
    if shutil.which("vagrant", path="/usr/bin:/bin"):
        pytest.skip("Vagrant is installed: that it is missing cannot be tried")
    missing = lab("up")
    assert missing.returncode == 69
    assert "make test-vm" in missing.stderr


def test_lab_calls_vagrant_for_each_box(calls: Path) -> None:
    path = f"{calls.parent}:/usr/bin:/bin"
    assert lab("up", "debian12", "alma9", path=path).returncode == 0
    assert lab("test", "alma9", path=path).returncode == 0
    assert lab("demo", path=path).returncode == 0
    said = [line.partition(": ") for line in calls.read_text().splitlines()]
    assert {folder for folder, _, _ in said} == {str(VAGRANT)}
    assert [words for _, _, words in said] == [
        "up debian12",
        "up alma9",
        "rsync alma9",
        "ssh alma9 --command sudo /opt/smtp-guard/vagrant/inside test",
        "rsync debian12",
        "ssh debian12 --command sudo /opt/smtp-guard/vagrant/inside demo",
    ]


def test_one_box_that_fails_hinders_no_other_and_is_told(calls: Path) -> None:
    done = lab("down", path=f"{calls.parent}:/usr/bin:/bin")
    assert done.returncode == 1
    assert len(calls.read_text().splitlines()) == len(BOXES)


def test_scenarios_that_a_box_runs_exist() -> None:
    (names,) = re.findall(
        r"^SCENARIOS=\((.*)\)", (VAGRANT / "inside").read_text(), re.M
    )
    for name in names.split():
        assert (CHECKOUT / "tests/vm/scenarios" / name).is_file(), name
