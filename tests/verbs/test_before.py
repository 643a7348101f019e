# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections that are older than the guard: told with a verdict, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from guard import abi, preexisting, sockdiag
from guard.finding import Finding, Kind, Notice
from guard.force import Start, bring_up
from guard.message import message
from guard.policy import load
from guard.preexisting import Before, survey
from tests.kernel.world import HOST4, IPPROTO_MPTCP, MX4, MX6, SILENT4, SMTP, sysctl
from tests.lab.lab import wait_until
from tests.verbs.conftest import ENFORCE, OBSERVE, Site
from tests.verbs.holder import NOBODY, Holder, holding

SUBMISSION = 587
ALLOW_NOBODY = f'[[rule]]\nname = "lawful"\nuser = {NOBODY}\nverdict = "allow"\n'


def ending(grace: str = "0s") -> str:
    return f'[before]\nend = true\ngrace = "{grace}"\n'


@dataclass
class Told:
    """A guard that was loaded, and what was told of connections older than it."""

    start: Start
    findings: list[Finding] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def __post_init__(self) -> None:
        policy: Callable[[], Any] = lambda: self.start.policy  # noqa: E731
        self.before = Before(self.start.guard, policy, self._tell)

    def _tell(self, found: Finding | Notice) -> None:
        if isinstance(found, Finding):
            self.findings.append(found)
        else:
            self.notices.append(found)

    def of(self, holder: Holder, kind: Kind = Kind.PRE_EXISTING) -> list[Finding]:
        return [
            found
            for found in self.findings
            if found.kind is kind and found.src and found.src[1] == holder.port
        ]

    def one(self, holder: Holder, kind: Kind = Kind.PRE_EXISTING) -> Finding:
        (found,) = self.of(holder, kind)
        return found


def loaded(site: Site, policy: str) -> Told:
    """Put a policy in force, and do nothing yet about older connections."""
    site.policy.write_text(policy)
    world = site.world
    return Told(bring_up(world.pin_dir, world.guarded, site.policy))


def begun(site: Site, policy: str) -> Told:
    """Put a policy in force, and do what is done at once."""
    told = loaded(site, policy)
    told.before.begin()
    assert not told.notices
    return told


# ---- told


def test_an_open_connection_is_told_when_the_guard_is_loaded(site: Site) -> None:
    site.policy.write_text(OBSERVE + ending())
    with holding(site.world.guarded, MX4, SMTP) as holder:
        answer = site.load()
        assert "1 connections are older than the guard, 1 of them denied" in answer.text
        asked = ("who-connected", "--json", "--from-port", str(holder.port))
        asked += ("--pid", str(holder.pid))
        wait_until(lambda: "pre-existing" in site.ctl(*asked).text, "the finding")
        assert "older" not in site.load().text  # adopts: nothing is told again
        (row,) = site.ctl(*asked).rows()
        assert holder.fate() == "alive"  # observe denies nothing
    assert row["dst"] == {"addr": MX4, "port": SMTP}
    assert row["exe"].startswith("/usr/bin/python3")
    assert (row["direction"], row["mode"]) == ("outbound", "observe")
    assert (row["verdict"], row["outcome"]) == ("deny", "established")
    assert row["rule"] is None
    assert "from-proc" in row["incomplete"]


def test_other_ports_and_cgroups_are_nobodys_business(site: Site) -> None:
    with (
        site.world.serve(site.world.mx, MX4, port=2525),
        holding(site.world.guarded, MX4, 2525) as other_port,
        holding(site.world.free, MX4, SMTP) as other_cgroup,
    ):
        told = begun(site, ENFORCE + ending())
        assert not told.findings
        assert other_port.fate() == other_cgroup.fate() == "alive"


def test_one_made_since_is_not_older(site: Site) -> None:
    told = loaded(site, ENFORCE + ALLOW_NOBODY + ending())
    assert told.start.policy
    # as root it would be denied: it is, and the control of the other
    assert site.denied()
    site.policy.write_text(f'{ENFORCE}[[rule]]\nname = "all"\nverdict = "allow"\n')
    assert site.load().status == 0
    with holding(site.world.guarded, MX4, SMTP) as holder:
        # judged by the rule that it had then, not by the one of now
        assert not list(survey(told.start.guard, told.start.policy))
        told.before.begin()
        assert holder.fate() == "alive"


def test_one_that_a_server_accepted_is_not_made_here(site: Site) -> None:
    """A peer whose own port is 25 may have come to any service of this host."""
    with (
        site.world.listen(site.world.host, HOST4, 2200) as server,
        site.world.inside(site.world.mx),
        socket.create_connection((HOST4, 2200), 5, (MX4, SMTP + 440)) as client,
        server.accept()[0] as session,
    ):
        assert session.getpeername()[1] == client.getsockname()[1] == 465
        with site.world.inside(site.world.host):
            assert sockdiag.is_any_open({465})
            here = [c for c in sockdiag.connections({465}) if c.src == (HOST4, 2200)]
            assert not here


def test_a_process_that_ended_does_not_hide_its_namespace(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespaces = sockdiag._namespaces
    gone = subprocess.Popen(["true"])
    gone.wait()
    with holding(site.world.guarded, MX4, SMTP) as holder:
        found = {n: [gone.pid, *pids] for n, pids in namespaces().items()}
        monkeypatch.setattr(sockdiag, "_namespaces", lambda: found)
        assert sockdiag.is_any_open({SMTP})
        here = os.stat("/proc/self/ns/net").st_ino
        assert sockdiag._namespace(here, [gone.pid]) is None
        there = sockdiag._namespace(here, found[here])
        assert there is not None
        os.close(there)
        assert holder.fate() == "alive"


# ---- ended


def test_what_the_policy_denies_is_ended_and_the_rest_lives_on(site: Site) -> None:
    site.policy.write_text(ENFORCE + ALLOW_NOBODY + ending())
    with (
        site.world.listen(site.world.mx, MX4, SUBMISSION) as server,
        holding(site.world.guarded, MX4, SUBMISSION) as denied,
        server.accept()[0] as peer,
        holding(site.world.guarded, MX4, SMTP, uid=NOBODY) as lawful,
    ):
        answer = site.load()
        assert "2 connections are older than the guard, 1 of them denied" in answer.text
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        assert denied.fate() == "ECONNABORTED"
        assert lawful.fate() == "alive"

        def row(holder: Holder) -> dict[str, Any]:
            (row,) = site.ctl(
                *("who-connected", "--json", "--pid", str(holder.pid)),
                *("--from-port", str(holder.port)),
            ).rows()
            return row

        wait_until(lambda: row(denied)["outcome"] == "ended-by-guard", "its end")
        assert row(denied)["verdict"] == "deny"
        assert row(lawful)["rule"] == "lawful"
        assert row(lawful)["outcome"] == "established"


def test_nothing_is_ended_that_the_policy_did_not_say(site: Site) -> None:
    """The default: the finding says that it is left open, load how to end it."""
    with holding(site.world.guarded, MX4, SMTP) as holder:
        site.policy.write_text(ENFORCE)
        answer = site.load()
        assert "left open ([before] end = true would end them)" in answer.text
        assert holder.fate() == "alive"


def test_observe_ends_nothing(site: Site) -> None:
    with holding(site.world.guarded, MX4, SMTP) as holder:
        told = begun(site, OBSERVE + ending())
        told.before.finish()
        assert holder.fate() == "alive"
        assert told.one(holder).verdict == "deny"
        assert not told.of(holder, Kind.ENDED)


@pytest.mark.parametrize("address", [MX6, f"::ffff:{MX4}"])
def test_ipv6_and_mapped_ipv4_are_ended(site: Site, address: str) -> None:
    plain = address.removeprefix("::ffff:")
    with (
        site.world.listen(site.world.mx, plain, SUBMISSION) as server,
        holding(site.world.guarded, address, SUBMISSION) as holder,
        server.accept()[0] as peer,
    ):
        told = begun(site, ENFORCE + ending())
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        assert holder.fate() == "ECONNABORTED"
        assert told.one(holder).dst == (plain, SUBMISSION)
        assert told.one(holder, Kind.ENDED).outcome == "ended-by-guard"


def test_one_that_is_still_connecting_is_ended(site: Site) -> None:
    # its SYN goes out, and nobody says that there is no such host
    neighbour = f"ip neigh replace {SILENT4} lladdr 02:00:00:00:00:01 dev host0"
    subprocess.run(neighbour.split(), check=True)
    with holding(site.world.guarded, SILENT4, SMTP, wait=False) as holder:
        told = begun(site, ENFORCE + ending())
        assert holder.fate() == "ECONNABORTED"
        assert told.one(holder, Kind.ENDED).outcome == "ended-by-guard"


def test_mptcp_is_ended(site: Site) -> None:
    try:
        socket.socket(proto=IPPROTO_MPTCP).close()
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error}")
    # without this it waits a minute for another path, all of its own being reset
    for netns in (site.world.host, site.world.mx):
        with site.world.inside(netns):
            sysctl("net/mptcp/close_timeout", "1")
    with (
        site.world.listen(site.world.mx, MX4, SUBMISSION, IPPROTO_MPTCP) as server,
        holding(site.world.guarded, MX4, SUBMISSION, proto=IPPROTO_MPTCP) as holder,
        server.accept()[0] as peer,
    ):
        told = begun(site, ENFORCE + ending())
        with pytest.raises(OSError, match="reset|not connected"):
            peer.recv(1)
        assert holder.fate() in ("ENOTCONN", "ECONNRESET", "ECONNABORTED")
        assert told.one(holder).pid == holder.pid


def test_local_ones_are_judged_by_local_rules(site: Site) -> None:
    policy = f'{ENFORCE}{ending()}[local]\ndefault = "deny"\n'
    policy += ALLOW_NOBODY.replace("[[rule]]", "[[local.rule]]")
    with (
        site.world.serve(site.world.host, "127.0.0.1"),
        holding(site.world.guarded, "127.0.0.1", SMTP) as denied,
        holding(site.world.guarded, "127.0.0.1", SMTP, uid=NOBODY) as lawful,
    ):
        told = begun(site, policy)
        assert denied.fate() == "ECONNABORTED"
        assert lawful.fate() == "alive"
        assert told.one(denied).direction == told.one(lawful).direction == "local"
        assert told.one(lawful).rule == "lawful"


def test_a_container_is_covered(site: Site) -> None:
    """Its process, its connection and its peer are in another network namespace."""
    with (
        site.world.inside(site.world.mx),
        holding(site.world.guarded, MX4, SMTP) as denied,
        holding(site.world.guarded, MX4, SMTP, uid=NOBODY) as lawful,
    ):
        with site.world.inside(site.world.host):
            told = begun(site, ENFORCE + ALLOW_NOBODY + ending())
        assert denied.fate() == "ECONNABORTED"
        assert lawful.fate() == "alive"
        assert told.one(denied).netns == os.fstat(site.world.mx).st_ino


def test_what_is_lawful_for_one_holder_is_not_ended(site: Site) -> None:
    with holding(site.world.guarded, MX4, SMTP, uid=NOBODY, shared=True) as holder:
        told = begun(site, ENFORCE + ALLOW_NOBODY + ending())
        assert holder.fate() == "alive"
        found = told.one(holder)
        assert (found.rule, found.uid) == ("lawful", NOBODY)


def test_adopting_a_guard_and_reloading_end_nothing(site: Site) -> None:
    with holding(site.world.guarded, MX4, SMTP) as holder:
        begun(site, OBSERVE)
        told = begun(site, ENFORCE + ending())
        assert told.start.adopted
        assert site.ctl("policy", "apply").status in (0, 75)  # no guardd runs
        assert holder.fate() == "alive"
        assert not told.findings


def test_what_a_guard_of_another_version_let_pass_is_not_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lawful when it connected, as root; by what /proc says of it now it is denied."""
    site.policy.write_text(ENFORCE + ALLOW_NOBODY.replace(str(NOBODY), "0") + ending())
    assert site.load().status == 0
    with holding(site.world.guarded, MX4, SMTP, uid=NOBODY) as holder:
        monkeypatch.setattr(abi, "ABI", abi.ABI + 1)
        answer = site.load()
        assert "1 of them denied and left open: the guard of before" in answer.text
        asked = ("who-connected", "--json", "--from-port", str(holder.port))
        wait_until(lambda: "left-open" in site.ctl(*asked).text, "the finding")
        assert holder.fate() == "alive"
    with holding(site.world.guarded, MX4, SMTP, uid=NOBODY) as control:
        assert site.ctl("unload").status == 0
        assert "1 of them denied and ended" in site.load().text
        assert control.fate() == "ECONNABORTED"


# ---- the grace


def test_the_grace_is_given_and_one_that_ends_in_it_is_not_touched(site: Site) -> None:
    with (
        holding(site.world.guarded, MX4, SMTP) as patient,
        holding(site.world.guarded, MX4, SMTP) as quick,
    ):
        told = begun(site, ENFORCE + ending("1500ms"))
        assert told.one(patient).outcome == told.one(quick).outcome == "to-end"
        told.before.start()
        assert quick.fate() == "alive"
        assert not told.of(patient, Kind.ENDED)
        wait_until(lambda: told.of(patient, Kind.ENDED), "the end of the grace")
        assert patient.fate() == "ECONNABORTED"
        begin, ended = told.one(patient), told.one(patient, Kind.ENDED)
        assert ended.outcome == "ended-by-guard"
        assert ended.connection == begin.connection
        assert ended.time_us - begin.time_us >= 1_500_000
        assert not told.of(quick, Kind.ENDED)
        assert told.start.guard.about()["before"] == {"open": 2, "denied": 2}


def test_who_is_allowed_meanwhile_is_not_ended(site: Site) -> None:
    with (
        holding(site.world.guarded, MX4, SMTP) as now_lawful,
        holding(site.world.guarded, MX4, SMTP, uid=NOBODY) as denied,
    ):
        told = begun(site, ENFORCE + ending("1h"))
        assert told.one(now_lawful).outcome == told.one(denied).outcome == "to-end"
        site.policy.write_text(ENFORCE + ALLOW_NOBODY.replace(str(NOBODY), "0"))
        object.__setattr__(told.start, "policy", load(site.policy))
        told.before.finish()  # end = false now
        site.policy.write_text(
            ENFORCE + ALLOW_NOBODY.replace(str(NOBODY), "0") + ending("1h")
        )
        object.__setattr__(told.start, "policy", load(site.policy))
        assert not told.of(denied, Kind.ENDED)
        told.before.finish()
        assert now_lawful.fate() == "alive"
        assert denied.fate() == "ECONNABORTED"


def test_guardd_ends_what_a_load_left_to_it(site: Site) -> None:
    site.policy.write_text(ENFORCE + ending("1s"))
    with holding(site.world.guarded, MX4, SMTP) as holder:
        answer = site.load()
        assert "1 of them denied and ended in 1 s" in answer.text
        log = site.policy.with_name("guardd.log")
        with log.open("w") as file:
            guardd = subprocess.Popen(
                [sys.executable, "-m", "guard.daemon", "--foreground"]
                + ["--policy", str(site.policy), "--pin-dir", str(site.world.pin_dir)]
                + ["--cgroup", str(site.world.guarded)],
                stdout=file,
                stderr=file,
            )
        try:
            wait_until(lambda: "ended by the guard" in log.read_text(), log.read_text())
            assert holder.fate() == "ECONNABORTED"
        finally:
            guardd.terminate()
            assert guardd.wait(20) == 0


# ---- what may fail


def without_net_admin(site: Site) -> str:
    """Make what stands for Python, with a capability less."""
    path = site.policy.with_name("python")
    path.write_text(
        "#!/bin/sh\nexec setpriv --bounding-set=-net_admin --inh-caps=-net_admin "
        f'{sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_an_end_that_is_refused_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(site.world.guarded, MX4, SMTP) as holder:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", without_net_admin(site))
            told = begun(site, ENFORCE + ending())
        assert holder.fate() == "alive"
        ended = told.one(holder, Kind.ENDED)
        assert (ended.outcome, ended.error) == ("not-ended", "EPERM")
        assert "could not be ended (EPERM)" in message(ended)


def test_one_that_ended_a_moment_before_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroy = sockdiag.destroy
    with holding(site.world.guarded, MX4, SMTP) as holder:
        monkeypatch.setattr(
            preexisting, "destroy", lambda ends: (holder.fate(), destroy(ends))[1]
        )
        told = begun(site, ENFORCE + ending())
        ended = told.one(holder, Kind.ENDED)
        assert (ended.outcome, ended.error) == ("ended-itself", None)


@pytest.mark.parametrize("python", ["/bin/false", "/nonexistent"])
def test_what_cannot_be_listed_is_told_and_ends_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    with holding(site.world.guarded, MX4, SMTP) as holder:
        told = loaded(site, ENFORCE + ending())
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", python)
            assert told.before.begin() == ""
        (notice,) = told.notices
        assert notice.kind is Kind.LOST
        assert "those that are open are not known" in notice.message
        assert told.before.begin(), told.notices  # still to be done, by the next
        assert holder.fate() == "ECONNABORTED"
        assert told.one(holder).outcome == "to-end"


def test_nothing_is_started_where_nothing_is_open(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At boot the load must not take longer for this."""
    monkeypatch.setattr(preexisting, "is_any_open", lambda _: False)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert not begun(site, ENFORCE + ending()).findings
