# SPDX-License-Identifier: GPL-2.0-or-later
"""Put in force, swapped and taken away: never half, and never a gap between."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from guard import abi, kernel, libbpf
from guard.abi import Counter
from guard.errors import KernelError, NotLoaded
from guard.force import Start, bring_up
from guard.kernel import HOOKS, Guard
from guard.preexisting import survey
from tests.kernel.routes import plain
from tests.kernel.world import ALLOW_MX, MX4, MX6, SMTP, Child, Watch, World
from tests.lab.lab import wait_until

Place = tuple[Path, Path]  # pins and cgroup


@pytest.fixture
def place(world: World) -> Iterator[Place]:
    """Room for a guard of the test's own; whatever is left there is removed."""
    pins, cgroup = world.pin_dir.with_name(f"{world.name}-swap"), world.base / "swap"
    cgroup.mkdir()
    yield pins, cgroup
    if pins.exists():
        with contextlib.suppress(NotLoaded):
            Guard(pins).unload()
    if cgroup.exists():
        cgroup.rmdir()
    assert not pins.exists()


@pytest.fixture(autouse=True)
def server(world: World) -> Iterator[None]:
    with world.serve(world.mx, MX4):
        yield


def hammer(stop: mmap.mmap) -> tuple[int, int]:
    """Connect until told to stop: how often, and how often not denied."""
    tried = leaked = 0
    while not stop[0]:
        with socket.socket() as client:
            tried += 1
            leaked += client.connect_ex((MX4, SMTP)) != errno.EPERM
    return tried, leaked


def test_a_swap_leaks_nothing(world: World, watch: Watch) -> None:
    """New programs and new rows, again and again, with connects throughout."""
    watch.apply('[fold]\nwindow = "1h"\n')
    stop = mmap.mmap(-1, 1)
    before = {link.name: link.program_id for link in watch.guard.attachments()}
    child = Child(partial(hammer, stop), world.guarded)
    try:
        for round_ in range(10):
            guard = Guard.load(world.pin_dir)
            guard.attach(world.guarded)
            if round_ % 5 == 0:
                watch.apply('[fold]\nwindow = "1h"\n')
    finally:
        stop[0] = 1
        tried, leaked = child.finish().value
    after = {link.name: link.program_id for link in guard.attachments()}
    assert after.keys() == before.keys() == HOOKS.keys()
    assert all(after[name] != before[name] for name in HOOKS)
    assert leaked == 0
    assert tried > 100
    assert watch.moved(Counter.JUDGED) == tried  # the maps were kept
    assert watch.moved(Counter.DENIED) == tried
    assert world.control(partial(plain, MX4)).errno == 0


def until_told(stop: mmap.mmap) -> dict[tuple[str, int], int]:
    """Connect to MX4, and more often to MX6, until told to stop: how each ended."""
    ends: dict[tuple[str, int], int] = {}
    while not stop[0]:
        for family, address in ((socket.AF_INET, MX4), *9 * [(socket.AF_INET6, MX6)]):
            with socket.socket(family) as client:
                end = address, client.connect_ex((address, SMTP))
                ends[end] = ends.get(end, 0) + 1
    return ends


def test_another_contract_version_is_replaced_with_nothing_between(
    world: World, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade, and a downgrade, over a change of GUARD_ABI.

    A stand-in: the guard of the other version is this one by another number, so what
    differs is where its maps are pinned, and that nothing of it can be adopted.
    """
    pins, cgroup = place
    file = tmp_path / "policy.toml"
    rule = f'[[rule]]\nname = "lawful"\nto = ["{MX4}"]\nverdict = "allow"\n'
    file.write_text(f'mode = "enforce"\n{rule}[backstop]\nkind = "off"\n')
    stop = mmap.mmap(-1, 1)

    def judges(guard: Guard) -> bool:
        return guard.counters()[Counter.DENIED] > 0

    with world.serve(world.mx, MX6):
        guard = bring_up(pins, cgroup, file).guard
        child = Child(partial(until_told, stop), cgroup)
        try:
            for version in 5 * (abi.ABI + 1, abi.ABI):
                wait_until(partial(judges, guard), "a connect that was judged", 30)
                monkeypatch.setattr(abi, "ABI", version)
                with pytest.raises(NotLoaded):
                    Guard(pins)
                start = bring_up(pins, cgroup, file)
                guard = start.guard
                assert not start.adopted and not guard.missing_hooks()
                assert [folder.name for folder in pins.glob("v*")] == [f"v{version}"]
                assert guard.abandoned, "what was not read is not passed over"
            wait_until(partial(judges, guard), "a connect that was judged", 30)
        finally:
            stop[0] = 1
            ends = child.finish().value
    assert ends.keys() == {(MX4, 0), (MX6, errno.EPERM)}, ends


def test_hooks_that_only_another_version_has_are_taken_out_and_told(
    world: World, place: Place, tmp_path: Path
) -> None:
    """Left by a later version: it judges by rows that nobody can change any more."""
    pins, cgroup = place
    file = tmp_path / "policy.toml"
    rule = f'[[rule]]\nname = "lawful"\nto = ["{MX4}"]\nverdict = "allow"\n'
    file.write_text(f'mode = "enforce"\n{rule}[backstop]\nkind = "off"\n')
    lawful, rogue = partial(plain, MX4), partial(plain, MX6)
    with world.serve(world.mx, MX6), libbpf.Object(kernel.OBJECT) as later:
        later.load()  # no row: it denies
        folder = kernel.open_cgroup(cgroup)
        pins.mkdir()
        for name, hook in (("guard_later", "guard_connect4"), ("lsm_later",) * 2):
            program = later.program(hook if hook in HOOKS else "guard_sockops")
            link = libbpf.attach(program, folder, HOOKS.get(hook, 3))
            libbpf.pin(link, pins / f"link-{name}")
            os.close(link)
        os.close(folder)
        assert world.act(lawful, cgroup).errno == errno.EPERM, "the control"
        start = bring_up(pins, cgroup, file)
        assert sorted(start.guard.retired) == ["guard_later", "lsm_later"]
        texts = [notice.message for notice in start.notices(file)]
        assert any("taken out" in text and "guard_later" in text for text in texts)
        assert world.act(lawful, cgroup).errno == 0
        assert world.act(rogue, cgroup).errno == errno.EPERM
        assert {pin.name for pin in pins.glob("link-*")} == {
            f"link-{hook}" for hook in HOOKS
        }
        again = bring_up(pins, cgroup, file)
        assert not again.guard.retired


def test_what_is_open_over_another_contract_version_is_told_as_pre_existing(
    world: World, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins, cgroup = place
    file = tmp_path / "policy.toml"
    file.write_text(f'mode = "enforce"\n{ALLOW_MX}[backstop]\nkind = "off"\n')

    def act() -> None:
        with socket.create_connection((MX4, SMTP + 440)) as client:
            client.recv(2)

    def unseen(start: Start) -> list[str]:
        assert start.policy
        with world.inside(world.host):
            return [older.finding.dst[0] for older in survey(start.guard, start.policy)]

    with world.listen(world.mx, MX4, SMTP + 440) as server:
        start = bring_up(pins, cgroup, file)
        child = Child(act, cgroup)
        connection, _ = server.accept()
        assert unseen(start) == [], "the control: this one saw its connect()"
        monkeypatch.setattr(abi, "ABI", abi.ABI + 1)
        try:
            start = bring_up(pins, cgroup, file)
            assert unseen(start) == [MX4]
            connection.close()
            child.finish()
            assert start.guard.counters()[Counter.CLOSED] == 0, "no record, no end"
        finally:
            start.guard.unload()


def test_a_connection_lives_through_a_swap(world: World, watch: Watch) -> None:
    watch.apply(ALLOW_MX)

    def act() -> bytes:
        with socket.create_connection((MX4, SMTP + 440)) as client:
            client.sendall(b"before")
            go = client.recv(2)
            client.sendall(b"after!")
            return go

    with world.listen(world.mx, MX4, SMTP + 440) as server:
        child = Child(act, world.guarded)
        connection, _ = server.accept()
        assert connection.recv(6) == b"before"
        Guard.load(world.pin_dir).attach(world.guarded)
        connection.send(b"go")
        assert child.finish().value == b"go"
        connection.close()
    closed = watch.closed()
    assert closed.connection == watch.one().connection
    assert (closed.bytes_sent, closed.bytes_received) == (12, 2)


def test_unloading_opens_and_leaves_nothing(world: World, place: Place) -> None:
    pins, cgroup = place
    act = partial(plain, MX4)
    assert world.act(act, cgroup).errno == 0
    guard = Guard.load(pins)
    guard.attach(cgroup)
    assert world.act(act, cgroup).errno == errno.EPERM
    guard.unload()
    assert world.act(act, cgroup).errno == 0
    assert not pins.exists()
    with pytest.raises(NotLoaded):
        Guard(pins)


def test_a_guard_outlives_whoever_loaded_it(world: World, place: Place) -> None:
    pins, cgroup = place

    def load() -> None:
        Guard.load(pins).attach(cgroup)

    assert world.control(load).errno == 0  # a child, which has ended now
    assert world.act(partial(plain, MX4), cgroup).errno == errno.EPERM
    assert {link.name for link in Guard(pins).attachments()} == HOOKS.keys()


@pytest.mark.parametrize("hook", HOOKS)
def test_half_attached_is_not_attached(world: World, place: Place, hook: str) -> None:
    pins, cgroup = place
    guard = Guard.load(pins)
    obstacle = guard.link_path(hook)
    obstacle.mkdir()
    try:
        with pytest.raises(KernelError):
            guard.attach(cgroup)
        assert guard.attachments() == []
        assert world.act(partial(plain, MX4), cgroup).errno == 0
    finally:
        obstacle.rmdir()
    guard.attach(cgroup)
    assert world.act(partial(plain, MX4), cgroup).errno == errno.EPERM


def test_a_pin_that_is_no_link_does_not_pass_for_one(
    world: World, place: Place
) -> None:
    """Something else under a link's name: attached all the same, or refused."""
    pins, cgroup = place
    guard = Guard.load(pins)
    libbpf.pin(guard.map("about").fd, guard.link_path("guard_connect4"))
    guard.attach(cgroup)
    assert {link.name for link in guard.attachments()} == HOOKS.keys()
    assert world.act(partial(plain, MX4), cgroup).errno == errno.EPERM


def test_a_cgroup_that_vanished_is_replaced(world: World, place: Place) -> None:
    pins, cgroup = place
    guard = Guard.load(pins)
    guard.attach(cgroup)
    cgroup.rmdir()
    # its links end some time after the folder
    wait_until(lambda: guard.missing_hooks() == list(HOOKS), "the end of them", 10)
    cgroup.mkdir()
    assert world.act(partial(plain, MX4), cgroup).errno == 0  # another cgroup
    Guard.load(pins).attach(cgroup)
    assert world.act(partial(plain, MX4), cgroup).errno == errno.EPERM


def test_a_second_cgroup_is_refused(world: World, place: Place) -> None:
    pins, cgroup = place
    guard = Guard.load(pins)
    guard.attach(cgroup)
    with pytest.raises(KernelError):
        guard.attach(world.free)
    assert world.control(partial(plain, MX4)).errno == 0
    assert world.act(partial(plain, MX4), cgroup).errno == errno.EPERM


@pytest.mark.parametrize("content", [b"", b"not an object"])
def test_a_bad_object_changes_nothing(
    world: World, place: Place, tmp_path: Path, content: bytes
) -> None:
    pins, cgroup = place
    bad = tmp_path / "bad.o"
    bad.write_bytes(content)
    with pytest.raises(KernelError):
        Guard.load(pins, bad)
    assert not (pins / "v1").exists()
    guard = Guard.load(pins)
    guard.attach(cgroup)
    before = guard.attachments()
    with pytest.raises(KernelError):
        Guard.load(pins, bad)
    assert guard.attachments() == before
    assert world.act(partial(plain, MX4), cgroup).errno == errno.EPERM


def test_a_folder_that_is_no_cgroup_is_refused(place: Place, tmp_path: Path) -> None:
    pins, _ = place
    guard = Guard.load(pins)
    for folder in (tmp_path, tmp_path / "missing", kernel.OBJECT):
        with pytest.raises(KernelError):
            guard.attach(folder)
    assert guard.attachments() == []
