# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd itself says of our units: are they right, and how open are they?

That the services work inside of it is shown in guests: tests/vm/scenarios/service.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "units"
LOAD, SERVICE = "smtp-guard-load.service", "smtp-guard.service"
NAMES, PATH = "smtp-guard-names.service", "smtp-guard-names.path"
# systemd-analyze(1): 0 is closed, 10 is open
LIMITS = {LOAD: 2.5, SERVICE: 1.5, NAMES: 1.1}
ROOM = "var/lib run etc usr/bin usr/sbin"  # of what a unit may name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a root directory that has systemd's units and ours, and our programs."""
    units = tmp_path / "usr/lib/systemd/system"
    shutil.copytree("/lib/systemd/system", units, symlinks=True)
    for folder in ROOM.split():
        (tmp_path / folder).mkdir(parents=True)
    for link in ("bin", "sbin", "lib"):
        (tmp_path / link).symlink_to(f"usr/{link}")
    for name in (LOAD, SERVICE, NAMES, PATH):
        shutil.copy(UNITS / name, units)
    for program in ("bin/guardctl", "sbin/guardd", "bin/kill", "bin/systemd-tmpfiles"):
        (tmp_path / "usr" / program).write_text("#!/bin/sh\n")
        (tmp_path / "usr" / program).chmod(0o755)
    return tmp_path


def verify(root: Path, name: str) -> subprocess.CompletedProcess[str]:
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    return subprocess.run(
        [*argv, f"--root={root}", name], capture_output=True, text=True
    )


@pytest.mark.parametrize("name", [*LIMITS, PATH])
def test_systemd_finds_nothing_wrong(root: Path, name: str) -> None:
    done = verify(root, name)
    assert done.returncode == 0 and not done.stderr, done
    path = root / "usr/lib/systemd/system" / name
    key = "PathExists" if name == PATH else "ProtectClock"
    path.write_text(path.read_text().replace(f"{key}=", "Mistaken="))
    control = verify(root, name)
    assert "Mistaken" in control.stderr, control


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_the_sandbox_is_as_tight_as_it_was(name: str, limit: float) -> None:
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    done = subprocess.run(
        [*argv, f"--threshold={limit * 10:.0f}", UNITS / name],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found and float(found[1]) <= limit, done.stdout


@pytest.mark.parametrize("name", [LOAD, SERVICE])
def test_each_capability_has_its_reason(name: str) -> None:
    """In the comment above, and what is in effect is what is bounded."""
    text = (UNITS / name).read_text()

    def granted(key: str) -> set[str]:
        lines = re.findall(rf"^{key}=(.*)$", text, re.M)
        return {word for line in lines for word in line.split()}

    ambient = granted("AmbientCapabilities")
    assert ambient and ambient == granted("CapabilityBoundingSet")
    comment = "".join(re.findall(r"^# (CAP_.*)$", text, re.M))
    assert ambient == set(re.findall(r"CAP_\w+", comment))


def test_who_looks_names_up_may_do_nothing_else() -> None:
    text = (UNITS / NAMES).read_text()
    assert "\nCapabilityBoundingSet=\n" in text and "AmbientCapabilities" not in text
    assert "AF_INET" not in (UNITS / SERVICE).read_text().replace("Not INET", "")


def test_stopping_either_runs_nothing() -> None:
    for name in LIMITS:
        assert "ExecStop" not in (UNITS / name).read_text()


def test_where_nothing_can_be_put_in_force_there_is_no_storm_of_starts() -> None:
    """guardd waits instead of ending, and what ends is not started again at once."""
    service, load = ((UNITS / name).read_text() for name in (SERVICE, LOAD))
    assert "\nExecStart=/usr/sbin/guardd --wait\n" in service
    (pause,) = re.findall(r"^RestartSec=(\d+)$", service, re.M)
    assert int(pause) >= 2
    assert "\nType=oneshot\n" in load and "Restart" not in load


def test_systemd_reads_sysusers_and_tmpfiles(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "run").mkdir()
    for tool, name in (("sysusers", "sysusers"), ("tmpfiles", "tmpfiles")):
        argv = [f"systemd-{tool}", f"--root={tmp_path}", UNITS / f"smtp-guard.{name}"]
        done = subprocess.run(
            [*argv, *(["--create"] if tool == "tmpfiles" else [])],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done
    passwd = (tmp_path / "etc/passwd").read_text()
    assert "smtp-guard:x:" in passwd and "/usr/sbin/nologin" in passwd
    lock = tmp_path / "run/xtables.lock"
    assert lock.stat().st_mode & 0o777 == 0o640


def test_an_admin_who_opened_the_bpf_file_system_otherwise_can_say_so(
    tmp_path: Path,
) -> None:
    """The units name smtp-guard.conf, and a file of that name in /etc comes first."""
    for name in (LOAD, SERVICE):
        assert "systemd-tmpfiles --create smtp-guard.conf" in (UNITS / name).read_text()
    text = "\n".join(
        line
        for line in (UNITS / "smtp-guard.tmpfiles").read_text().splitlines()
        if line.startswith("z /sys/fs/bpf ")
    )
    assert text, "what an admin is told to change"
    text = text.replace("smtp-guard", "root")  # no such account in this root
    bpf = tmp_path / "sys/fs/bpf"
    for folder in (bpf, tmp_path / "usr/lib/tmpfiles.d", tmp_path / "etc/tmpfiles.d"):
        folder.mkdir(parents=True)

    def mode_with(place: str, text: str) -> int:
        (tmp_path / place / "tmpfiles.d/smtp-guard.conf").write_text(f"{text}\n")
        argv = ["systemd-tmpfiles", f"--root={tmp_path}", "--create", "smtp-guard.conf"]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done
        return bpf.stat().st_mode & 0o7777

    assert mode_with("usr/lib", text) == 0o1710, "the control: the package's own"
    assert mode_with("etc", text.replace("1710", "1711")) == 0o1711
