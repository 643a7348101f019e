# SPDX-License-Identifier: GPL-2.0-or-later
"""Where kernel programs are not to be had: by itself the owner design, or refused.

What is missing is missing: guardd runs without the capabilities. The control is the
same guardd with them.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path

import iptc
import pytest

from guard.errors import EX_NOPERM, EX_UNAVAILABLE
from guard.kernel import Guard
from tests.faults.site import Guardd
from tests.owner.conftest import Host, guardctl, rules_left

# CAP_SYS_ADMIN stands for the two, capabilities(7)
NO_BPF = "bpf,perfmon,sys_admin"
REQUIRE = 'require = "bpf"\n'
(NFTABLES,) = (str(path.resolve()) for path in Path("/lib").glob("*/libnftables.so.1"))
IPTC = f"{Path(iptc.__file__).parent}/ip4tc.py"


def start(host: Host, without: str = NO_BPF, *options: str, within: str = "") -> Guardd:
    more = {"netns": host.netns, "without": without, "within": within}
    return Guardd(host.site, *options, **more)


def hidden(host: Host, *files: str, by: str | Path = "/dev/null") -> str:
    """Make a program that runs another where these files are not to be read.

    by: what is read in their place.
    """
    path = host.site.folder / "hidden"
    mounts = "".join(f"mount --bind {by} {file}\n" for file in files)
    head = '#!/bin/sh\n[ "$HIDDEN" ] || exec env HIDDEN=1 unshare --mount "$0" "$@"\n'
    path.write_text(
        f'{head}set -e\n{mounts}export PYTHONDONTWRITEBYTECODE=1\nexec "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def policy(host: Host, head: str = "") -> None:
    host.site.write_policy(f'mode = "enforce"\n{head}')


def test_without_bpf_guardd_takes_the_owner_design_and_says_why(host: Host) -> None:
    policy(host)
    assert host.connect().errno == 0
    for _ in range(2):  # and stays with it
        guardd = start(host).ready()
        assert host.connect().errno == errno.ECONNREFUSED
        guardd.until(
            lambda each=guardd: "CAP_BPF, CAP_PERFMON" in each.status, "STATUS"
        )
        assert guardd.status.startswith("enforce, without kernel programs")
        assert guardd.end() == 0
    told = [one["MESSAGE"] for one in host.findings("loaded")]
    assert any("this process lacks CAP_BPF, CAP_PERFMON" in text for text in told), told
    status = guardctl(host, "status")
    assert status.returncode == 0 and "lacks CAP_BPF" in status.stdout, status
    state = json.loads(guardctl(host, "status", "--json").stdout)
    assert state["design"] == "owner" and "CAP_BPF" in state["why"]


def test_with_them_it_takes_kernel_programs(host: Host) -> None:
    policy(host)
    start(host, "").ready()
    assert host.connect(cgroup=host.site.cgroup).errno == errno.EPERM


@pytest.mark.parametrize("by", ["policy", "option"])
def test_it_refuses_where_that_is_asked_for(host: Host, by: str) -> None:
    policy(host, REQUIRE if by == "policy" else "")
    options = [] if by == "policy" else ["--design", "bpf"]
    guardd = start(host, NO_BPF, *options)
    assert guardd.process.wait(30) == EX_UNAVAILABLE
    assert "kernel programs cannot be loaded: this process lacks" in guardd.said()
    if by == "policy":
        assert 'the policy says require = "bpf"' in guardd.said()
    assert "READY=1" not in guardd.messages
    assert host.connect().errno == 0
    assert rules_left() == ""


def test_the_unit_waits_where_the_policy_requires_what_there_is_not(
    host: Host,
) -> None:
    """By --wait: told once, not tried again, and no end for systemd to restart."""
    policy(host, REQUIRE)
    guardd = start(host, NO_BPF, "--wait").ready()
    guardd.until(lambda: guardd.status.startswith("NOT IN FORCE"), "STATUS")
    assert "this process lacks CAP_BPF" in guardd.status
    was = guardd.messages.count("WATCHDOG=1")
    guardd.until(
        lambda: guardd.messages.count("WATCHDOG=1") > was + 5, "five seconds of it"
    )
    assert guardd.messages.count("READY=1") == 1, "it would try after two"
    (told,) = host.findings("policy-refused")
    assert "NOT IN FORCE" in told["MESSAGE"] and "lacks CAP_BPF" in told["MESSAGE"]
    assert host.connect().errno == 0, "as it says"
    assert 'require = "bpf"' in guardd.said()
    policy(host)
    guardd.until(lambda: host.connect().errno == errno.ECONNREFUSED, "the rules")
    assert guardd.end() == 0


def test_auto_takes_iptables_where_there_is_no_nftables(host: Host) -> None:
    policy(host)
    within = hidden(host, NFTABLES)
    assert host.connect().errno == 0
    guardd = start(host, within=within).ready()
    assert host.connect().errno == errno.ECONNREFUSED
    guardd.until(lambda: "rules of iptables" in guardd.status, "STATUS")
    assert rules_left() and "table inet" not in rules_left()
    assert guardd.end() == 0
    assert guardctl(host, "unload").returncode == 0
    assert host.connect().errno == 0 and rules_left() == ""


def test_where_iptables_takes_its_time_it_is_waited_for(host: Host) -> None:
    """On a host so busy that python-iptables takes longer than 20 s to begin."""
    host.policy("iptables", "")
    slow = host.site.folder / "slow.py"
    slow.write_text(f"{Path(IPTC).read_text()}\nimport time\ntime.sleep(21)\n")
    guardd = start(host, within=hidden(host, IPTC, by=slow))
    guardd.until(lambda: "READY=1" in guardd.messages, "it to be in force", 110)
    assert host.connect().errno == errno.ECONNREFUSED
    ready = guardd.messages.index("READY=1")
    assert guardd.messages[:ready].count("WATCHDOG=1") >= 4, "systemd may wait, too"
    assert guardd.end() == 0


def test_with_neither_it_waits_and_says_what_both_lack(host: Host) -> None:
    policy(host)
    guardd = start(host, NO_BPF, "--wait", within=hidden(host, NFTABLES, IPTC)).ready()
    guardd.until(lambda: guardd.status.startswith("NOT IN FORCE"), "STATUS")
    assert "libnftables" in guardd.status and "iptables: " in guardd.status
    assert host.connect().errno == 0 and rules_left() == ""
    assert guardd.end() == 0


def test_a_policy_that_requires_more_is_refused_later_too(host: Host) -> None:
    policy(host)
    guardd = start(host).ready()
    policy(host, REQUIRE)
    guardd.reload()
    assert host.connect().errno == errno.ECONNREFUSED
    guardd.until(lambda: host.findings("policy-refused"), "the finding")
    policy(host, "ports = [26]\n")
    guardd.reload()
    assert host.connect().errno == 0


def test_load_does_the_same_and_guardd_goes_on(host: Host) -> None:
    policy(host)
    given = ("load", "--policy", str(host.site.policy_file))
    done = guardctl(host, *given, without=NO_BPF)
    assert done.returncode == 0 and "without kernel programs" in done.stdout, done
    assert host.connect().errno == errno.ECONNREFUSED
    again = guardctl(host, *given, without=NO_BPF)
    assert again.returncode == 0, again
    start(host).ready()
    assert host.connect().errno == errno.ECONNREFUSED
    beside = guardctl(host, *given, without=NO_BPF)
    assert "stop it first" in beside.stderr, beside


def test_load_refuses_where_the_policy_wants_it(host: Host) -> None:
    policy(host, REQUIRE)
    given = ("load", "--policy", str(host.site.policy_file))
    done = guardctl(host, *given, without=NO_BPF)
    assert done.returncode == EX_UNAVAILABLE, done
    assert 'require = "bpf"' in done.stderr
    assert host.connect().errno == 0


def test_a_guard_in_the_kernel_is_not_given_up_for_rules(host: Host) -> None:
    policy(host)
    assert start(host, "").ready().end() == 0
    guardd = start(host)
    assert guardd.process.wait(30) == EX_NOPERM
    assert "lacks CAP_BPF, CAP_PERFMON" in guardd.said()
    assert Guard(host.site.pin_dir).missing_hooks() == []
    assert host.connect(cgroup=host.site.cgroup).errno == errno.EPERM


def test_what_any_design_needs_is_named(host: Host) -> None:
    policy(host)
    guardd = start(host, "net_admin,sys_ptrace")
    assert guardd.process.wait(30) == EX_NOPERM
    assert "it lacks CAP_NET_ADMIN, CAP_SYS_PTRACE" in guardd.said()
