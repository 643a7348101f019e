# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel programs that could not be had for a while: tried again, and taken up.

guardd has no descriptors left for the kernel's maps (EMFILE), until the test gives it
more; or somebody else's program is where ours are to be attached, and lets none beside
it (EPERM). The control is a want that lasts: capabilities, which no try brings back.
"""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.errors import EX_OSERR, EX_UNAVAILABLE, KernelError
from guard.kernel import Guard
from guard.needs import passes
from tests.faults.site import Guardd
from tests.kernel.world import MX4, SMTP
from tests.owner.conftest import Host, guardctl
from tests.tamper import others as act

# Enough for Python, netfilter and the journal; our object has more maps than that.
FEW = "prlimit --nofile=28:4096"
MORE = 1024
NOBODY = 65534
LAWFUL = '[[rule]]\nname = "nobody"\nuser = "nobody"\nverdict = "allow"\n'
# Connects again and again from inside of the guarded cgroup, and prints each errno.
LOOP = """\
import os, socket, sys, time
with open(f"{sys.argv[1]}/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
uid = int(sys.argv[2])
os.setgid(uid)
os.setuid(uid)
while True:
    with socket.socket() as client:
        client.settimeout(30)
        print(client.connect_ex((sys.argv[3], int(sys.argv[4]))), flush=True)
    time.sleep(0.1)  # each is looked up in /proc
"""


class Loop:
    """A sender that goes on connecting, as a user, and what became of it."""

    def __init__(self, host: Host, folder: Path, uid: int) -> None:
        self._out = folder / f"loop-{uid}"
        argv = [sys.executable, "-c", LOOP, host.site.cgroup, str(uid), MX4, str(SMTP)]
        inside = ["nsenter", f"--net={host.netns}"]
        with self._out.open("w") as out:
            self._process = subprocess.Popen(
                [*inside, *argv], stdout=out, pass_fds=[host.world.host]
            )

    @property
    def ends(self) -> list[int]:
        """Give the errno of each connect so far; 0: it was taken."""
        return [int(line) for line in self._out.read_text().split("\n")[:-1]]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def loops(host: Host, tmp_path: Path) -> Iterator[tuple[Loop, Loop]]:
    made = Loop(host, tmp_path, 0), Loop(host, tmp_path, NOBODY)
    yield made
    for loop in made:
        loop.close()


def start(host: Host, **more: str) -> Guardd:
    host.policy("nftables", LAWFUL)
    return Guardd(host.site, netns=host.netns, **more)


def programs(host: Host) -> bool:
    """Tell whether kernel programs are in force."""
    try:
        return Guard(host.site.pin_dir).missing_hooks() == []
    except Exception:
        return False


def test_what_passes_is_tried_again_and_nothing_opens_in_between(
    host: Host, loops: tuple[Loop, Loop]
) -> None:
    rogue, lawful = loops
    guardd = start(host, within=FEW)
    guardd.until(lambda: rogue.ends[-1:] == [0], "the control: it comes through")
    guardd.ready()
    guardd.until(lambda: rogue.ends[-1:] == [errno.ECONNREFUSED], "the rules")
    closed, begun = len(rogue.ends), len(lawful.ends)
    guardd.until(lambda: "tried again" in guardd.status, "STATUS")
    assert "Too many open files" in guardd.status, guardd.status
    pid = guardd.process.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (MORE, 4096))
    guardd.until(lambda: programs(host), "kernel programs", 120)
    guardd.until(lambda: guardd.status.startswith("enforce: "), "STATUS")
    seen = len(rogue.ends), len(lawful.ends)
    guardd.until(
        lambda: len(rogue.ends) > seen[0] + 20 and len(lawful.ends) > seen[1] + 20,
        "both to go on",
    )
    assert rogue.ends[-1] == errno.EPERM
    assert set(rogue.ends[closed:]) == {errno.ECONNREFUSED, errno.EPERM}
    assert set(lawful.ends[begun:]) == {0}
    assert Guard(host.site.pin_dir).about()["pid"] == pid
    told = [entry["MESSAGE"] for entry in host.findings("loaded")]
    order = [
        next(number for number, text in enumerate(told) if text.startswith(wanted))
        for wanted in (
            "guard in force without kernel programs",
            "kernel programs can be loaded by now",
            "guard loaded",
        )
    ]
    assert order == sorted(order), told
    status = guardctl(host, "status")
    assert "without kernel programs" not in status.stdout, status
    assert not host.findings("tampered")


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return act.compiled(tmp_path_factory.mktemp("others"))


def test_where_another_program_is_alone_the_rules_take_over_until_it_goes(
    host: Host, loops: tuple[Loop, Loop], others: Path
) -> None:
    rogue, lawful = loops
    with act.loaded(others, "guard_connect4") as program:
        assert act.attach(program, host.site.cgroup, act.ALONE) == 0
        guardd = start(host)
        guardd.until(lambda: rogue.ends[-1:] == [0], "the control: it comes through")
        guardd.ready()
        guardd.until(lambda: rogue.ends[-1:] == [errno.ECONNREFUSED], "the rules")
        closed, begun = len(rogue.ends), len(lawful.ends)
        guardd.until(lambda: "tried again" in guardd.status, "STATUS")
        assert "guard_connect4 cannot be attached beside" in guardd.status
        assert f"at {host.site.cgroup}" in guardd.status
        assert not host.site.pin_dir.exists(), "half a guard is none"
        act.detach(program, host.site.cgroup)
    guardd.until(lambda: programs(host), "kernel programs", 120)
    guardd.until(lambda: rogue.ends[-1:] == [errno.EPERM], "their denial")
    assert set(rogue.ends[closed:]) == {errno.ECONNREFUSED, errno.EPERM}
    assert set(lawful.ends[begun:]) == {0}
    told = [entry["MESSAGE"] for entry in host.findings("loaded")]
    assert sum("can be loaded by now" in text for text in told) == 1, told


def test_load_takes_the_rules_where_another_program_is_alone(
    host: Host, others: Path
) -> None:
    host.policy("nftables", LAWFUL)
    given = ("--policy", str(host.site.policy_file), "--cgroup", str(host.site.cgroup))
    with act.loaded(others, "guard_connect4") as program:
        assert host.connect(cgroup=host.site.cgroup).errno == 0
        assert act.attach(program, host.site.cgroup, act.ALONE) == 0
        only = guardctl(host, "load", "--design", "bpf", *given)
        assert only.returncode == EX_UNAVAILABLE and "bpftool cgroup" in only.stderr
        assert host.connect(cgroup=host.site.cgroup).errno == 0
        loaded = guardctl(host, "load", *given)
        assert loaded.returncode == 0 and "beside guard_connect4" in loaded.stdout
        assert host.connect(cgroup=host.site.cgroup).errno == errno.ECONNREFUSED
        act.detach(program, host.site.cgroup)
    wrong = guardctl(host, "load", *given[:2], "--cgroup", str(host.site.policy_file))
    assert wrong.returncode == EX_OSERR, "a wrong option is no want of the kernel's"


def test_what_lasts_is_not_tried_again(host: Host) -> None:
    guardd = start(host, without="bpf,perfmon,sys_admin").ready()
    guardd.until(lambda: "without kernel programs" in guardd.status, "STATUS")
    assert "tried again" not in guardd.status


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        *((number, True) for number in (errno.ENOMEM, errno.EAGAIN, errno.EBUSY)),
        *((number, False) for number in (errno.EPERM, errno.EINVAL, errno.E2BIG)),
    ],
)
def test_which_errors_pass(number: int, wanted: bool) -> None:
    assert passes(KernelError("load", number)) is wanted
