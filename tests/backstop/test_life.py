# SPDX-License-Identifier: GPL-2.0-or-later
"""The second lock over guardd's life and after it, and when it cannot be had."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guard.backstop.nflog import PacketLog
from guard.errors import EX_TEMPFAIL, EX_UNAVAILABLE, BackstopError, KernelError
from guard.force import keeper_of, put_in_force
from guard.policy import parse
from tests.backstop.container import connect
from tests.backstop.ground import Ground, iptables, nft, policy
from tests.faults.site import CHECKOUT, Guardd
from tests.journald import until
from tests.kernel.world import MX4, MX6


def rules(ground: Ground) -> str:
    """Give all rules there are, of both kinds."""
    if ground.kind == "nftables":
        return nft("-s", "list", "ruleset")
    return "".join(iptables("-S", to) for to in (MX4, MX6))


def outcomes(ground: Ground) -> set[tuple[int, int]]:
    """Connect to the MX: where the first lock lets pass, and where it does not see."""
    return {
        (
            ground.guarded(lambda to=to: connect(to)).errno,
            ground.free(lambda to=to: connect(to)).errno,
        )
        for to in (MX4, MX6)
    }


SHUT, OPEN = {(0, errno.ECONNREFUSED)}, {(0, 0)}


def test_it_outlives_guardd_and_is_adopted_by_the_next(ground: Ground) -> None:
    guardd = ground.start()
    before = rules(ground)
    guardd.end(signal.SIGKILL)
    assert rules(ground) == before and outcomes(ground) == SHUT
    assert "in force, by" in ground.ctl("verify", "--json").stdout
    ground.start()
    assert rules(ground) == before and outcomes(ground) == SHUT
    with ground.found() as found:  # and listened to again
        assert outcomes(ground) == SHUT
    assert {one.dst[0] for one in found} == {MX4, MX6}
    assert ground.guardd.end() == 0
    assert rules(ground) == before and outcomes(ground) == SHUT
    assert not ground.site.entries("tampered")


def test_unload_takes_all_of_it_out(ground: Ground) -> None:
    empty = rules(ground)
    assert outcomes(ground) == OPEN
    ground.start().end()
    assert outcomes(ground) == SHUT
    assert ground.ctl("unload").returncode == 0
    assert rules(ground) == empty and outcomes(ground) == OPEN


@pytest.mark.parametrize("served", [True, False], ids=["guardd", "alone"])
def test_policy_apply_changes_it(ground: Ground, served: bool) -> None:
    guardd = ground.start()
    if not served:
        guardd.end()
    other = {"nftables": "iptables", "iptables": "nftables"}[ground.kind]
    for kind, wanted in ((ground.kind, SHUT), (other, SHUT), ("off", OPEN)):
        ground.site.write_policy(policy(kind, backstop="mark = 0x40000000\n"))
        done = ground.ctl("policy", "apply")
        assert done.returncode == 0, done
        assert outcomes(ground) == wanted
        assert ground.site.guard.about()["backstop"]["kind"] == kind
    assert "smtp-guard" not in nft("list", "ruleset")
    assert "NFLOG" not in iptables("-S") + iptables("-S", MX6)


def test_a_guard_that_is_not_about_all_has_none_by_itself(ground: Ground) -> None:
    """What it does not judge has no mark; netfilter would refuse it."""
    empty = rules(ground)
    ground.start(policy("auto"))
    assert rules(ground) == empty and outcomes(ground) == OPEN
    assert "not about all processes" in ground.ctl("verify", "--json").stdout


# ---- what cannot be had


def without_nftables(ground: Ground) -> None:
    """Have guardd and guardctl find no module `nftables` from now on."""
    folder = ground.site.folder / "without"
    folder.mkdir()
    (folder / "nftables.py").write_text("raise ImportError('hidden by a test')\n")
    os.environ["PYTHONPATH"] = str(folder)


@pytest.fixture
def hidden(nftables_ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Ground:
    monkeypatch.setenv("PYTHONPATH", "")
    without_nftables(nftables_ground)
    return nftables_ground


def test_a_kind_that_is_not_to_be_had_is_refused_at_the_start(hidden: Ground) -> None:
    hidden.site.write_policy(policy("nftables"))
    guardd = Guardd(hidden.site, netns=hidden.netns)
    assert guardd.process.wait(30) == EX_UNAVAILABLE
    said = guardd.said()
    assert "second lock: python3-nftables is not installed" in said
    assert "apt install python3-nftables" in said and "Traceback" not in said
    assert not hidden.site.pin_dir.exists()


@pytest.mark.parametrize("served", [True, False], ids=["guardd", "alone"])
def test_a_kind_that_is_not_to_be_had_leaves_the_old_policy(
    hidden: Ground, served: bool
) -> None:
    guardd = hidden.start(policy("iptables"))
    if not served:
        guardd.end()
    sha256 = bytes(hidden.site.guard.policy().sha256)
    new = hidden.site.folder / "new.toml"
    new.write_text(policy("nftables"))
    new.chmod(0o644)
    done = hidden.ctl("policy", "apply", str(new))
    assert done.returncode == (EX_TEMPFAIL if served else EX_UNAVAILABLE), done
    assert "python3-nftables is not installed" in done.stderr
    assert "Traceback" not in done.stderr
    assert bytes(hidden.site.guard.policy().sha256) == sha256
    assert outcomes(hidden) == SHUT
    assert hidden.site.guard.about()["backstop"]["kind"] == "iptables"
    if served:
        until(lambda: bool(hidden.site.entries("policy-refused")), "the finding")
        assert guardd.process.poll() is None


def test_a_group_that_somebody_else_reads_is_said(nftables_ground: Ground) -> None:
    ground = nftables_ground
    other = PacketLog(2525, lambda logged: None)
    try:
        with pytest.raises(BackstopError, match="group 2525") as caught:
            PacketLog(2525, lambda logged: None)
        assert "choose group = N in [backstop]" in caught.value.hint
        guardd = ground.start(policy("nftables"))
        guardd.until(lambda: "nobody listens" in guardd.status, "STATUS")
        assert outcomes(ground) == SHUT  # refused all the same
        ground.apply(policy("nftables", backstop="group = 2526\n"))
        guardd.until(lambda: "nobody listens" not in guardd.status, "STATUS")
        with ground.found() as found:
            assert outcomes(ground) == SHUT
        assert len(found) == 2
    finally:
        other.close()


def test_without_iptables_its_chains_cannot_be_put(
    nftables_ground: Ground, tmp_path: Path
) -> None:
    shutil.copytree(CHECKOUT / "guard", tmp_path / "guard")
    (tmp_path / "iptc.py").write_text("raise ImportError('no iptc: hidden')\n")
    done = subprocess.run(
        [sys.executable, "-c", "from guard.backstop.iptables import *; Iptables('x')"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "BackstopError" in done.stderr and "hidden" in done.stderr
    assert nftables_ground.kind == "nftables"


def test_when_the_kernel_takes_no_policy_it_stays_as_it_was(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was loosened for the change that then did not come."""
    ground.start().end()
    guard = ground.site.guard
    keeper = keeper_of(guard)
    put_in_force(guard, parse(policy(ground.kind)), keeper)
    before = rules(ground)

    def fail(_: object) -> None:
        raise KernelError("no room", errno.E2BIG)

    other = {"nftables": "iptables", "iptables": "nftables"}[ground.kind]
    with monkeypatch.context() as patch:
        patch.setattr(guard, "apply", fail)
        for kind in (ground.kind, other):
            with pytest.raises(KernelError):
                changed = policy(kind, backstop="mark = 0x40000000\n")
                put_in_force(guard, parse(changed), keeper)
            assert rules(ground) == before and outcomes(ground) == SHUT
    put_in_force(guard, parse(policy(other)), keeper)
    assert outcomes(ground) == SHUT and rules(ground) != before
