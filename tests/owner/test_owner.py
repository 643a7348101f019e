# SPDX-License-Identifier: GPL-2.0-or-later
"""What the owner design lets pass and refuses, tells, and cannot tell.

The control of each denial is the same connect before guardd is started: the MX is
there and takes it.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess

import pytest

from guard.errors import EX_CONFIG, EX_TEMPFAIL, EX_UNAVAILABLE
from guard.kernel import Guard
from guard.ownerrules import STATE_DIR
from tests.faults.site import Guardd
from tests.journald import until
from tests.kernel.world import HOST4, MX4, MX6
from tests.owner.conftest import KINDS, Host, guardctl, rules_left

NOBODY = 65534
RULES = """\
[[rule]]
name = "nobody"
user = "nobody"
exe = "/usr/bin/python3"
verdict = "allow"
journal = true
[[rule]]
name = "unit"
unit = "{unit}"
verdict = "allow"
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", [MX4, MX6])
def test_users_and_units_pass_and_others_are_refused(
    host: Host, kind: str, to: str
) -> None:
    assert host.connect(to).errno == 0
    host.start(kind, RULES.format(unit=host.unit))
    assert host.connect(to).errno == errno.ECONNREFUSED
    assert host.connect(to, uid=NOBODY).errno == 0
    assert host.connect(to, host.world.guarded).errno == 0
    assert host.connect("127.0.0.1").errno == 0
    until(lambda: bool(host.findings("denied")), "the finding")
    (denied,) = host.findings("denied")
    assert to in denied["MESSAGE"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_named_from_proc(host: Host, kind: str) -> None:
    host.start(kind, RULES.format(unit=host.unit))

    def told() -> list[str]:
        found = [*host.findings("allowed"), *host.findings("local")]
        return [one["MESSAGE"] for one in found]

    host.connect(uid=NOBODY, until=lambda: len(told()) == 1)
    host.connect("127.0.0.1", until=lambda: len(told()) == 2)
    allowed, local = told()
    assert "(python, nobody)" in allowed and 'rule "nobody"' in allowed
    assert local.startswith("local: pid ") and "-> 127.0.0.1:25" in local
    assert "process gone" not in allowed + local


@pytest.mark.parametrize("kind", KINDS)
def test_observe_refuses_nothing(host: Host, kind: str) -> None:
    host.start(kind, "", mode="observe")
    done = host.connect(until=lambda: host.findings("would-deny"))
    assert done.errno == 0
    assert "no rule allows it" in host.findings("would-deny")[0]["MESSAGE"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_that_is_started_anew_is_followed(host: Host, kind: str) -> None:
    guardd = host.start(kind, RULES.format(unit=host.unit))
    for _ in range(2):
        host.world.guarded.rmdir()
        host.world.guarded.mkdir()
        guardd.until(
            lambda: host.connect(cgroup=host.world.guarded).errno == 0, "the new unit"
        )
    assert host.connect().errno == errno.ECONNREFUSED
    assert not host.findings("tampered")


@pytest.mark.parametrize("kind", KINDS)
def test_local_rules_hold(host: Host, kind: str) -> None:
    assert host.connect("127.0.0.1", uid=NOBODY).errno == 0
    rules = '[[local.rule]]\nname = "no"\nuser = "nobody"\nverdict = "deny"\n'
    host.start(kind, rules)
    assert host.connect("127.0.0.1", uid=NOBODY).errno == errno.ECONNREFUSED
    assert host.connect("127.0.0.1").errno == 0
    assert host.connect(HOST4).errno == errno.ECONNREFUSED  # nobody listens there
    until(lambda: bool(host.findings("denied")), "the denial")
    assert 'rule "no"' in host.findings("denied")[0]["MESSAGE"]


def test_what_it_cannot_say_is_said(host: Host) -> None:
    rules = RULES.format(unit=host.unit)
    rules += '[[rule]]\nname = "any"\nexe = "/usr/bin/swaks"\nverdict = "allow"\n'
    rules += '[mta]\nsocket = "/var/spool/postfix/smtp-guard/policy"\n'
    rules += "relay_mynetworks = false\n"
    host.start("nftables", rules)
    texts = [one["MESSAGE"] for one in host.findings("loaded")]
    assert any("without kernel programs" in text for text in texts)
    assert any('rule "any" left out' in text for text in texts)
    checked = guardctl(host, "policy", "check", "--json", str(host.site.policy_file))
    weaker = json.loads(checked.stdout)["owner_design"]
    said = {one["rule"]: one["what"] for one in weaker}
    assert list(said) == ['rule "nobody"', 'rule "unit"', 'rule "any"', "[mta]"]
    assert any("[mta] is not answered" in text for text in texts)
    assert "a second after" in said['rule "unit"']
    status = guardctl(host, "status")
    assert status.returncode == 0, status
    assert "without kernel programs" in status.stdout
    assert 'rule "any": left out' in status.stdout
    for verb in ("verify", "doctor"):
        answers = guardctl(host, verb, "--json")
        rows = {
            row["name"]: row for row in map(json.loads, answers.stdout.splitlines())
        }
        assert "without kernel programs" in rows["guard"]["detail"], answers
        assert "in force" in rows["backstop"]["detail"]
    applied = guardctl(host, "policy", "apply")
    assert applied.returncode == EX_TEMPFAIL and "kill -HUP" in applied.stderr


FLUSH = {
    "nftables": ["nft flush ruleset"],
    "iptables": [f"ip{v}tables-legacy -{flag}" for flag in "FX" for v in ("", "6")],
}


@pytest.mark.parametrize("kind", KINDS)
def test_flushed_rules_are_put_back(host: Host, kind: str) -> None:
    guardd = host.start(kind, "")
    assert host.connect().errno == errno.ECONNREFUSED
    with guardd.paused():
        for command in FLUSH[kind]:
            subprocess.run(command.split(), check=True)
        assert host.connect().errno == 0, "the control"
    # well before the minute in which news can be lost
    guardd.until(lambda: host.findings("tampered"), "the finding", 40)
    assert host.connect().errno == errno.ECONNREFUSED
    assert len(host.findings("tampered")) == 1
    assert "put back" in host.findings("tampered")[0]["MESSAGE"]


def test_a_bad_policy_changes_nothing(host: Host) -> None:
    guardd = host.start("nftables", "")
    host.site.write_policy('mode = "observ"\n')
    guardd.reload()
    assert host.connect().errno == errno.ECONNREFUSED
    guardd.until(lambda: host.findings("policy-refused"), "the finding")
    assert "refused" in guardctl(host, "status").stdout
    host.policy("nftables", "", mode="observe")
    guardd.reload()
    assert host.connect().errno == 0


def test_rules_outlive_guardd_until_unload(host: Host) -> None:
    guardd = host.start("nftables", "")
    refused = guardctl(host, "unload")
    assert refused.returncode == EX_TEMPFAIL, refused
    assert guardd.end() == 0
    assert host.connect().errno == errno.ECONNREFUSED
    status = guardctl(host, "status")
    assert "not running" in status.stdout
    assert guardctl(host, "unload").returncode == 0
    assert host.connect().errno == 0
    with host.world.inside(host.world.host):
        assert rules_left() == ""
    assert guardctl(host, "status").returncode == EX_UNAVAILABLE


def test_a_second_guardd_of_any_design_is_refused(host: Host) -> None:
    host.start("nftables", "")
    for options in (["--design", "owner"], []):
        second = Guardd(host.site, *options, netns=host.netns)
        assert second.process.wait(20) == EX_TEMPFAIL
        assert "stop it first" in second.said()
    assert host.connect().errno == errno.ECONNREFUSED


def test_kernel_programs_take_over_with_no_gap(host: Host) -> None:
    """The rules of this design stay until those of the other are there."""
    guardd = host.start("nftables", "")
    assert guardd.end() == 0
    host.site.start(netns=host.netns)
    assert Guard(host.site.pin_dir).missing_hooks() == []
    assert host.connect(cgroup=host.site.cgroup).errno == errno.EPERM
    with host.world.inside(host.world.host):
        assert "smtp_guard" in rules_left()
    refused = Guardd(host.site, "--design", "owner", netns=host.netns)
    assert refused.process.wait(20) == EX_UNAVAILABLE
    assert "which can do more" in refused.said()


def test_with_no_netfilter_lock_it_does_not_start(host: Host) -> None:
    host.policy("off", "")
    guardd = Guardd(host.site, "--design", "owner", netns=host.netns)
    assert guardd.process.wait(20) == EX_UNAVAILABLE
    assert 'kind = "auto"' in guardd.said()
    host.site.write_policy("nonsense")
    guardd = Guardd(host.site, "--design", "owner", netns=host.netns)
    assert guardd.process.wait(20) == EX_CONFIG


def test_unload_elsewhere_says_that_the_rules_are_not_there(host: Host) -> None:
    """Rules that stay behind unsaid would refuse all mail."""
    assert host.start("nftables", "").end() == 0
    elsewhere = f"/proc/{os.getpid()}/fd/{host.world.mx}"
    refused = guardctl(host, "unload", netns=elsewhere)
    assert refused.returncode == EX_UNAVAILABLE, refused
    assert "another network namespace" in refused.stderr
    assert host.connect().errno == errno.ECONNREFUSED
    assert guardctl(host, "unload").returncode == 0
    assert host.connect().errno == 0


@pytest.mark.parametrize("kind", KINDS)
def test_rules_that_nothing_records_can_be_taken_out(host: Host, kind: str) -> None:
    assert host.start(kind, "").end() == 0
    for path in STATE_DIR.glob(f"{host.site.pin_dir.name}.*"):
        path.unlink()
    assert host.connect().errno == errno.ECONNREFUSED
    assert guardctl(host, "unload").returncode == 0
    assert host.connect().errno == 0
    assert rules_left() == ""
    assert guardctl(host, "unload").returncode == EX_UNAVAILABLE


def test_load_is_refused_beside_it(host: Host) -> None:
    host.start("nftables", "")
    given = ("--policy", str(host.site.policy_file), "--cgroup", str(host.site.cgroup))
    refused = guardctl(host, "load", *given)
    assert refused.returncode == EX_TEMPFAIL, refused
    assert "stop it first" in refused.stderr
    assert not host.site.pin_dir.exists()
