# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for numbers: unit and container from a cgroup path, rules over a reload."""

from __future__ import annotations

import pytest

from guard import abi
from guard.event import unpack_event
from guard.finding import Kind
from guard.origin import Naming, container_of, unit_of

ID = "0123456789ab" + "c" * 52


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/", None),
        ("/system.slice/postfix.service", "postfix.service"),
        ("/system.slice/system-postfix.slice/postfix@-.service", "postfix@-.service"),
        ("/system.slice/a.service/worker", "a.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        (
            "/user.slice/user-1.slice/user@1.service/app.slice/x.service",
            "user@1.service",
        ),
        ("/user.slice", None),
        ("/lab/system.slice/cron.service", "cron.service"),
    ],
)
def test_the_unit_is_the_first_part_that_is_no_slice(
    cgroup: str, unit: str | None
) -> None:
    assert unit_of(cgroup) == unit


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", "docker:0123456789ab"),
        (f"/docker/{ID}", "docker:0123456789ab"),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman:0123456789ab"),
        (f"/kubepods.slice/cri-containerd-{ID}.scope", "containerd:0123456789ab"),
        ("/lxc.payload.web1/system.slice", "lxc:web1"),
        ("/machine.slice/systemd-nspawn@web2.service/payload", "nspawn:web2"),
        ("/machine.slice/machine-web3.scope", "machine:web3"),
        ("/system.slice/docker.service", None),
    ],
)
def test_containers_are_known_by_how_engines_name_them(
    cgroup: str, container: str | None
) -> None:
    assert container_of(cgroup) == container


def event(**fields: object) -> bytes:
    """Make the bytes of a judged connect with no texts."""
    raw = abi.RawEvent(abi=abi.ABI, kind=abi.EventKind.CONNECT, **fields)
    return bytes(raw)[: abi.RawEvent.text.offset]


def test_an_event_is_named_by_the_policy_of_its_own_time() -> None:
    naming = Naming()
    naming.use_rules(0, lambda number: "old")
    naming.use_rules(1000, lambda number: "new")
    waited = unpack_event(event(time_ns=999, rule=0))
    fresh = unpack_event(event(time_ns=1000, rule=0))
    none = unpack_event(event(time_ns=1000, rule=abi.NO_RULE))
    assert naming.finding(waited).rule == "old"
    assert naming.finding(fresh).rule == "new"
    assert naming.finding(none).rule is None


def test_a_policy_may_come_while_an_event_is_named() -> None:
    """The main thread puts it in force, the scribe names."""
    naming = Naming()

    class Meanwhile(int):
        def __le__(self, other: int) -> bool:
            naming.use_rules(2000, lambda number: "newest")
            return False

    naming.use_rules(0, lambda number: "old")
    naming.use_rules(Meanwhile(1000), lambda number: "new")
    assert naming.finding(unpack_event(event(time_ns=1500, rule=0))).rule == "old"


@pytest.mark.parametrize(
    ("verdict", "mode", "direction", "kind"),
    [
        ("DENY", "ENFORCE", "OUTBOUND", Kind.DENIED),
        ("DENY", "ENFORCE", "LOCAL", Kind.DENIED),
        ("DENY", "OBSERVE", "OUTBOUND", Kind.WOULD_DENY),
        ("REDIRECT", "OBSERVE", "OUTBOUND", Kind.WOULD_DENY),
        ("REDIRECT", "ENFORCE", "OUTBOUND", Kind.REDIRECTED),
        ("ALLOW", "ENFORCE", "OUTBOUND", Kind.ALLOWED),
        ("ALLOW", "OBSERVE", "LOCAL", Kind.LOCAL),
    ],
)
def test_a_verdict_in_its_mode_makes_the_kind(
    verdict: str, mode: str, direction: str, kind: Kind
) -> None:
    raw = event(
        verdict=abi.Verdict[verdict],
        mode=abi.Mode[mode],
        direction=abi.Direction[direction],
    )
    assert Naming().finding(unpack_event(raw)).kind is kind
