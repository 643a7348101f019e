# SPDX-License-Identifier: GPL-2.0-or-later
"""load, status, unload, policy apply: in force or not, and never half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guard import libbpf
from guard.force import only_one, put_in_force
from guard.kernel import HOOKS, Guard
from guard.policy import load
from tests.lab.lab import wait_until
from tests.verbs.conftest import ENFORCE, OBSERVE, Site

NOT_LOADED, BAD_POLICY, TEMPORARY = 69, 78, 75  # sysexits.h, see guard/errors.py


def test_load_denies_and_unload_opens(site: Site) -> None:
    assert not site.denied()
    assert site.ctl("status").status == NOT_LOADED
    assert site.load().status == 0
    assert site.denied()
    assert site.ctl("status").status == 0
    assert site.ctl("unload").status == 0
    assert not site.denied()
    assert site.ctl("status").status == NOT_LOADED
    assert not site.world.pin_dir.exists()


def test_observe_is_in_force_and_denies_nothing(site: Site) -> None:
    site.policy.write_text(OBSERVE)
    site.load()
    assert not site.denied()
    state = json.loads(site.ctl("status", "--json").text)
    assert state["in_force"]
    assert state["mode"] == "observe"
    assert state["counters"]["would_deny"] == 1
    assert state["unaccounted"] == 0


def test_status_says_what_is_missing(site: Site) -> None:
    site.load()
    Guard(site.world.pin_dir).link_path("guard_connect6").unlink()
    answer = site.ctl("status")
    assert answer.status == NOT_LOADED
    assert "NOT IN FORCE" in answer.text
    assert "guard_connect6" in answer.text


def test_status_knows_a_link_whose_cgroup_is_gone(site: Site) -> None:
    folder = site.world.guarded / "short-lived"
    folder.mkdir()
    argv = ["load", "--policy", str(site.policy), "--cgroup", str(folder)]
    assert site.ctl(*argv).status == 0
    assert site.ctl("status").status == 0
    folder.rmdir()
    # the kernel lets go of it a moment later
    wait_until(lambda: site.ctl("status").status == NOT_LOADED, "not in force")


def test_a_guard_that_lacks_a_pin_can_be_mended_and_taken_out(site: Site) -> None:
    for mend in (True, False):
        site.load()
        (Guard(site.world.pin_dir).home / "judge").unlink()
        answer = site.ctl("status")
        assert answer.status == NOT_LOADED
        assert "parts of one" in answer.text
        assert site.denied()
        if mend:
            assert site.load().status == 0
            assert site.ctl("status").status == 0
            assert site.denied()
        assert site.ctl("unload").status == 0
        assert not site.denied()
        assert not site.world.pin_dir.exists()


def test_what_is_recorded_does_not_depend_on_the_folder(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.policy.parent)
    argv = ["load", "--policy", site.policy.name, "--cgroup", str(site.world.guarded)]
    assert site.ctl(*argv).status == 0
    monkeypatch.chdir("/")
    assert site.ctl("policy", "apply").status == 0
    assert site.states()["policy"] == "ok"


def test_an_apply_that_dies_half_way_leaves_the_old_policy_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.policy.write_text(ENFORCE + "ports = [25, 2525]\n")
    site.load()
    table = Guard(site.world.pin_dir).map("control")
    put = libbpf.Map.put

    def put_once(self: libbpf.Map, key: bytes, value: bytes, flags: int = 0) -> None:
        put(self, key, value, flags)
        if self.id == table.id:
            raise KeyboardInterrupt

    monkeypatch.setattr(libbpf.Map, "put", put_once)
    site.policy.write_text(ENFORCE + "ports = [465, 2525]\n")
    with pytest.raises(KeyboardInterrupt):
        put_in_force(Guard(site.world.pin_dir), load(site.policy))
    monkeypatch.undo()
    state = json.loads(site.ctl("status", "--json").text)
    assert state["ports"] == [25, 2525]
    assert site.denied()


def test_a_bad_policy_loads_nothing(site: Site) -> None:
    site.policy.write_text('mode = "enforcing"\n')
    answer = site.load()
    assert answer.status == BAD_POLICY
    assert str(site.policy) in answer.text
    assert not site.world.pin_dir.exists()
    assert not site.denied()


def test_a_cgroup_that_is_not_there_loads_nothing(site: Site) -> None:
    answer = site.ctl("load", "--policy", str(site.policy), "--cgroup", "/nowhere")
    assert answer.status == 71
    assert "/nowhere" in answer.text
    assert not site.world.pin_dir.exists()
    wait_until(lambda: bool(site.told("policy-refused")), "the finding")
    (told,) = site.told("policy-refused")
    assert "NOT IN FORCE" in told and "/nowhere" in told


@pytest.mark.parametrize("before", [False, True])
def test_a_load_that_fails_when_it_is_attached_is_undone(
    site: Site, before: bool
) -> None:
    """The record has no room for such a path, which is found out late.

    What was in force before stays, with its own policy's programs and maps.
    """
    folder = site.policy.parent
    while len(os.fsencode(folder)) < 3000:
        folder = folder / ("\u00e9" * 100)  # JSON takes six bytes for each
        folder.mkdir()
    far = folder / "policy.toml"
    far.write_text(ENFORCE)
    if before:
        site.load()
    argv = ["load", "--policy", str(far), "--cgroup", str(site.world.guarded)]
    answer = site.ctl(*argv)
    assert answer.status == 71, answer
    assert "the guard's record has" in answer.text and "shorter path" in answer.text
    assert site.denied() is before
    assert site.world.pin_dir.exists() is before
    assert site.ctl("status").status == (0 if before else NOT_LOADED)
    argv[2] = str(site.policy)
    assert site.ctl(*argv).status == 0
    assert site.denied()


def test_a_pin_dir_off_the_bpf_file_system_is_refused(
    site: Site, tmp_path: Path
) -> None:
    site.world.pin_dir = tmp_path / "pins"
    answer = site.load()
    assert answer.status == 71
    assert "not on a BPF file system" in answer.text
    assert not site.world.pin_dir.exists()


def test_a_second_load_swaps_programs_and_keeps_counters(site: Site) -> None:
    site.load()
    assert site.denied()
    guard = Guard(site.world.pin_dir)
    before = {link.name: link.program_id for link in guard.attachments()}
    assert site.load().status == 0
    after = {link.name: link.program_id for link in guard.attachments()}
    assert before.keys() == after.keys() == HOOKS.keys()
    assert not set(before.values()) & set(after.values())
    state = json.loads(site.ctl("status", "--json").text)
    assert state["counters"]["denied"] == 1


def test_a_second_load_with_a_bad_policy_keeps_the_rows(site: Site) -> None:
    site.load()
    site.policy.write_text("mode = 1\n")
    assert site.load().status == BAD_POLICY
    assert site.denied()
    assert site.ctl("status").status == 0


def test_a_load_that_died_half_way_is_begun_anew(site: Site) -> None:
    site.load()
    guard = Guard(site.world.pin_dir)
    guard.detach()
    (guard.home / "judge").unlink()  # pinned last, so this load never ended
    assert site.ctl("status").status == NOT_LOADED
    assert site.load().status == 0
    assert site.denied()


def test_apply_without_guardd_puts_a_file_in_force(site: Site) -> None:
    site.load()
    draft = site.policy.with_name("draft.toml")
    draft.write_text(OBSERVE)
    assert site.ctl("policy", "apply", str(draft)).status == 0
    assert not site.denied()
    assert site.policy.read_text() == OBSERVE
    assert os.listdir(site.policy.parent).sort() == ["draft.toml", "policy.toml"].sort()


def test_guardd_can_read_what_a_cautious_root_applies(site: Site) -> None:
    site.load()
    draft = site.policy.with_name("draft.toml")
    draft.write_text(OBSERVE)
    before = os.umask(0o077)
    try:
        assert site.ctl("policy", "apply", str(draft)).status == 0
        fresh = site.policy.parent / "fresh" / "policy.toml"
        assert site.ctl("policy", "init", str(fresh)).status == 0
    finally:
        os.umask(before)
    for path, mode in ((site.policy, 0o644), (fresh, 0o644), (fresh.parent, 0o755)):
        assert path.stat().st_mode & 0o777 == mode, path


def test_apply_of_a_bad_file_changes_nothing(site: Site) -> None:
    site.load()
    draft = site.policy.with_name("draft.toml")
    draft.write_text("ports = [0]\n")
    answer = site.ctl("policy", "apply", str(draft))
    assert answer.status == BAD_POLICY
    assert "draft.toml:1" in answer.text
    assert site.policy.read_text() == ENFORCE
    assert site.denied()


def test_apply_with_guardd_waits_until_it_is_in_force(site: Site) -> None:
    guardd = subprocess.Popen(
        [sys.executable, "-m", "guard.daemon"]
        + ["--policy", str(site.policy), "--cgroup", str(site.world.guarded)]
        + ["--pin-dir", str(site.world.pin_dir)]
    )
    try:
        wait_until(lambda: site.ctl("status").status == 0, "guardd in force")
        wait_until(lambda: "pid" in Guard(site.world.pin_dir).about(), "its pid")
        assert site.denied()
        site.policy.write_text(OBSERVE)
        assert site.ctl("policy", "apply").status == 0
        assert not site.denied()
        assert site.ctl("unload").status == TEMPORARY  # while guardd runs
        assert site.ctl("load", "--policy", str(site.policy)).status == TEMPORARY
    finally:
        guardd.terminate()
        assert guardd.wait(20) == 0
    state = json.loads(site.ctl("status", "--json").text)
    assert state["in_force"]
    assert state["guardd"]["pid"] is None


def test_a_pid_that_is_another_process_by_now_is_not_signalled(site: Site) -> None:
    site.load()
    bystander = subprocess.Popen(["sleep", "60"])  # SIGHUP would end it
    try:
        guard = Guard(site.world.pin_dir)
        guard.set_about(pid=bystander.pid, pid_ticks=1)
        assert site.ctl("policy", "apply").status == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_only_one_process_changes_a_guard(site: Site, verb: str) -> None:
    site.load()
    with only_one(site.world.pin_dir):
        answer = site.ctl(verb)
    assert answer.status == TEMPORARY
    assert site.ctl("status").status == 0


@pytest.mark.parametrize("verb", ["status", "verify", "unload", "policy apply"])
def test_without_a_guard_verbs_say_what_to_do(site: Site, verb: str) -> None:
    answer = site.ctl(*verb.split())
    assert answer.status == NOT_LOADED
    assert "guardctl load" in answer.text


def test_applies_at_once_leave_file_and_kernel_a_pair(site: Site) -> None:
    site.load()
    drafts = []
    for port in range(2601, 2607):
        drafts.append(site.policy.with_name(f"draft{port}.toml"))
        drafts[-1].write_text(f"{ENFORCE}ports = [25, {port}]\n")
    guardctl = [sys.executable, "-m", "guard.cli.main"]
    argv = [*guardctl, "--pin-dir", str(site.world.pin_dir), "policy", "apply"]
    runs = [
        subprocess.Popen([*argv, draft], stdout=subprocess.PIPE, text=True)
        for draft in drafts
    ]
    for run in runs:
        run.communicate()
        assert run.returncode == 0
    assert site.states()["policy"] == "ok"
    assert site.states()["rows"] == "ok"
    left = {path.name for path in site.policy.parent.iterdir()}
    assert left == {"policy.toml", *(draft.name for draft in drafts)}


def test_a_killed_guardd_that_nobody_waited_for_does_not_run(site: Site) -> None:
    site.load()
    zombie = subprocess.Popen(["true"])
    wait_until(lambda: _state(zombie.pid) == "Z", "its end")
    ticks = Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[19]
    Guard(site.world.pin_dir).set_about(pid=zombie.pid, pid_ticks=int(ticks))
    assert json.loads(site.ctl("status", "--json").text)["guardd"]["pid"] is None
    zombie.wait()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
