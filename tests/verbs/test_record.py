# SPDX-License-Identifier: GPL-2.0-or-later
"""What guardd's own user writes into the guard's record does not steer root.

The pins are given to nobody, in the part of that user, who then writes the record as
it likes. The control of each is the same record among pins of root's own.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard import ownerrules
from guard.cli import switching
from guard.errors import AlreadyRunning
from guard.kernel import Guard
from guard.serving import start_ticks
from tests.lab.lab import wait_until
from tests.verbs.conftest import ENFORCE, OBSERVE, Site

NOBODY = 65534
NOT_APPLIED = 75  # EX_TEMPFAIL


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process of root's that SIGHUP ends."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def name_it(site: Site, process: subprocess.Popen[bytes]) -> None:
    """Record a process as the guardd that serves."""
    guard = Guard(site.world.pin_dir)
    guard.set_about(pid=process.pid, pid_ticks=start_ticks(process.pid))


def give_away(site: Site) -> None:
    os.chown(site.world.pin_dir, NOBODY, NOBODY)


@pytest.mark.parametrize("owner", ["root", "nobody"])
def test_a_process_of_roots_is_signalled_at_roots_word_alone(
    site: Site,
    bystander: subprocess.Popen[bytes],
    owner: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(switching, "_SECONDS", 0.2)
    site.load()
    name_it(site, bystander)
    if owner == "nobody":
        give_away(site)
        assert json.loads(site.ctl("status", "--json").text)["guardd"]["pid"] is None
    site.policy.write_text(OBSERVE)
    answer = site.ctl("policy", "apply")
    if owner == "root":
        assert answer.status == NOT_APPLIED, "the control: it was asked, and waited for"
        assert bystander.wait(20) == -1
        return
    assert answer.status == 0, answer
    assert bystander.poll() is None
    assert not site.denied(), "applied by guardctl itself"


def test_a_process_of_that_users_own_is_signalled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As guardd is, which its unit runs under that user."""
    monkeypatch.setattr(switching, "_SECONDS", 0.2)
    site.load()
    with subprocess.Popen(["sleep", "600"], user=NOBODY) as process:
        name_it(site, process)
        give_away(site)
        assert site.ctl("policy", "apply").status == NOT_APPLIED
        assert process.wait(20) == -1


def test_a_guardd_of_roots_is_known_by_the_lock_that_it_holds(site: Site) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "guard.daemon"]
        + ["--policy", str(site.policy), "--cgroup", str(site.world.guarded)]
        + ["--pin-dir", str(site.world.pin_dir)]
    ) as guardd:
        try:
            wait_until(lambda: site.ctl("status").status == 0, "guardd in force")
            wait_until(lambda: "pid" in Guard(site.world.pin_dir).about(), "its pid")
            give_away(site)
            site.policy.write_text(OBSERVE)
            assert site.ctl("policy", "apply").status == 0
            state = json.loads(site.ctl("status", "--json").text)
            assert state["guardd"]["pid"] == guardd.pid
            assert state["mode"] == "observe"
        finally:
            guardd.terminate()


@pytest.mark.parametrize("owner", ["root", "nobody"])
def test_root_replaces_no_file_at_that_users_word(
    site: Site, owner: str, tmp_path: Path
) -> None:
    site.load()
    victim = site.policy.with_name("another's.toml")
    victim.write_text(ENFORCE)
    Guard(site.world.pin_dir).set_about(policy=str(victim))
    if owner == "nobody":
        give_away(site)
    draft = tmp_path / "draft.toml"
    draft.write_text(OBSERVE)
    answer = site.ctl("policy", "apply", str(draft))
    if owner == "root":
        assert answer.status == 0, "the control: the record is root's own"
        assert victim.read_text() == OBSERVE
        return
    assert answer.status == NOT_APPLIED
    assert "not root's word" in answer.text
    # what the hint says can be given to a shell, whatever that user named the file
    assert (
        f"install -m 644 {draft} '{victim.parent}/another'\"'\"'s.toml'" in answer.text
    )
    assert victim.read_text() == ENFORCE
    assert site.denied(), "and nothing else is in force"
    assert [p.name for p in victim.parent.iterdir() if p.name.startswith(".")] == []


def test_a_user_who_locks_the_folder_holds_nobody_up_for_ever(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "_LOCK_SECONDS", 0.2)
    site.load()
    site.policy.write_text(OBSERVE)
    folder = os.open(site.policy.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        answer = site.ctl("policy", "apply")
        assert answer.status == NOT_APPLIED and "is locked by" in answer.text, answer
        assert site.denied(), "the old one is in force"
    finally:
        os.close(folder)
    assert site.ctl("policy", "apply").status == 0, "the control: it was the lock"


def test_a_fifo_for_a_folder_holds_nobody_up(site: Site) -> None:
    site.load()
    fifo = site.policy.with_name("fifo")
    os.mkfifo(fifo)
    Guard(site.world.pin_dir).set_about(policy=str(fifo / "policy.toml"))
    argv = [sys.executable, "-m", "guard.cli.main", "--pin-dir", site.world.pin_dir]
    done = subprocess.run(
        [*argv, "policy", "apply"], timeout=120, capture_output=True, text=True
    )
    assert done.returncode == NOT_APPLIED and "Not a directory" in done.stderr, done


def test_the_record_of_the_owner_design_likewise(
    site: Site,
    bystander: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else any process of root's that lives would keep `guardctl load` from loading."""
    monkeypatch.setattr(ownerrules, "STATE_DIR", tmp_path)
    path = ownerrules.state_file(site.world.pin_dir)
    record = {"pid": bystander.pid, "pid_ticks": start_ticks(bystander.pid)}
    path.write_text(json.dumps(record))
    path.with_suffix(".lock").touch()
    with pytest.raises(AlreadyRunning):
        ownerrules.not_served(site.world.pin_dir)
    os.chown(tmp_path, NOBODY, NOBODY)
    ownerrules.not_served(site.world.pin_dir)
