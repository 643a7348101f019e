# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory without any guard: what the other tests' denials are measured by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import INTERNET, MX4, MX6, Lab, Postfix, wait_until
from tests.lab.lab import CHECKOUT, PREFIX, cgroup2_mount, sweep
from tests.lab.postfix import UNIT
from tests.lab.rogue import ROGUES, Rogue


def test_sendmail_reaches_the_mx(postfix: Postfix) -> None:
    record = postfix.delivered(postfix.submit(user="www-data"))
    assert record["recipients"] == ["somebody@example.org"]
    assert record["port"] == 25


def test_smtp_submission_reaches_the_mx(lab: Lab, postfix: Postfix) -> None:
    swaks = "swaks --server 127.0.0.1 --to swaks@example.org --h-Subject by-swaks"
    lab.check(swaks.split(), user="www-data")
    record = postfix.delivered("Subject: by-swaks")
    assert record["recipients"] == ["swaks@example.org"]


def test_postfix_delivers_over_ipv6(postfix: Postfix) -> None:
    record = postfix.delivered(postfix.submit("somebody@v6.example.org"))
    assert ":" in str(record["peer"])


@pytest.mark.parametrize("rogue", ROGUES, ids=[rogue.name for rogue in ROGUES])
def test_a_rogue_reaches_the_mx(lab: Lab, rogue: Rogue) -> None:
    before = len(lab.mx_saw("connect", port=25))
    done = rogue.run(lab, MX4)
    assert done.returncode == 0, done
    wait_until(lambda: len(lab.mx_saw("connect", port=25)) > before, "the MX's record")


PORTS = [("smtp", 25), ("smtps", 465), ("smtp", 587)]


@pytest.mark.parametrize("address", [MX4, f"[{MX6}]"])
@pytest.mark.parametrize(("scheme", "port"), PORTS)
def test_every_port_of_the_mx_greets(
    lab: Lab, address: str, scheme: str, port: int
) -> None:
    done = lab.run(["curl", "-sSk", f"{scheme}://{address}:{port}"], user="www-data")
    assert done.returncode == 0, done


def test_a_closed_port_is_not_reached(lab: Lab) -> None:
    """What makes the test above one that can fail."""
    done = lab.run(["curl", "-sSk", f"smtp://{MX4}:26"], user="www-data")
    assert done.returncode == 7, done  # CURLE_COULDNT_CONNECT


def test_programs_run_where_and_as_whom_they_should(lab: Lab) -> None:
    done = lab.run(
        ["sh", "-c", "id -un; id -gn; pwd; grep ^0:: /proc/self/cgroup; ip -br addr"],
        unit="system.slice/apache2.service",
        user="www-data",
        cwd="/var/log",
    )
    user, group, cwd, cgroup, *links = done.stdout.splitlines()
    assert (user, group, cwd) == ("www-data", "www-data", "/var/log")
    assert cgroup == f"0::{lab.unit('system.slice/apache2.service')}"
    assert [link.split()[0].split("@")[0] for link in links] == ["lo", "host0"]


def test_postfix_runs_in_its_unit_as_debian_runs_it(postfix: Postfix) -> None:
    postfix.delivered(postfix.submit())
    lab = postfix.lab
    pids = {
        Path(f"/proc/{pid}/comm").read_text().strip(): pid
        for pid in postfix.processes()
    }
    assert {"master", "qmgr", "pickup", "smtp"} <= pids.keys()
    status = Path(f"/proc/{pids['smtp']}/status").read_text()
    uid = lab.check(["id", "-u", "postfix"]).strip()
    assert f"Uid:\t{uid}\t" in status
    assert os.readlink(f"/proc/{pids['smtp']}/root").endswith("/var/spool/postfix")
    assert (lab.cgroup / UNIT).is_dir()


def test_nothing_of_this_machine_is_touched(lab: Lab) -> None:
    files = ["/etc/lab-left", "/run/lab-left", "/var/log/lab-left", "/srv/lab-left"]
    lab.check(["touch", *files])
    lab.check(["mkdir", "/sys/fs/bpf/lab-left"])
    for file in [*files, "/sys/fs/bpf/lab-left"]:
        assert lab.path(file).exists()
        assert not Path(file).exists()


def test_a_lab_is_gone_at_its_end_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), Lab() as lab:
        daemon = lab.start(["sleep", "600"], unit="a/b", where=INTERNET)
        orphan = int(lab.check(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"]))
        raise ZeroDivisionError
    assert daemon.returncode == -signal.SIGKILL
    assert not lab.base.exists()
    wait_until(lambda: not _runs(orphan), "the orphan's end")


def test_a_killed_lab_is_swept_by_the_next() -> None:
    """A session that was killed must not leave its Postfix to the next one."""
    maker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; from tests.lab import Lab\n"
            "with Lab() as lab:\n"
            "    print(lab.start(['sleep', '600']).pid, flush=True)\n"
            "    time.sleep(600)\n",
        ],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with maker:
        assert maker.stdout
        sleeper = int(maker.stdout.readline())
        [left] = cgroup2_mount().glob(f"{PREFIX}{maker.pid}-*")
        sweep()
        assert left.exists(), "a lab in use was swept"
        assert _runs(sleeper)
        maker.kill()
    sweep()
    wait_until(lambda: not left.exists(), "the end of the killed lab")
    wait_until(lambda: not _runs(sleeper), "the end of the killed lab's program")


def test_waiting_ends_and_says_for_what() -> None:
    with pytest.raises(TimeoutError, match="rain"):
        wait_until(lambda: False, "rain", timeout=0.05)


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
