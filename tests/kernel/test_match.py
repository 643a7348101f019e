# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rule can name, matched by the hook itself; and the fakes that fail."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.routes import plain
from tests.kernel.world import MX4, MX6, SMTP, Watch, World, compile_c, rule
from tests.lab.lab import CLONE_NEWNS, join_cgroup

CLONE_NEWUSER = 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
ROGUE = 1000  # the uid and gid of a user of the host

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module", autouse=True)
def servers(world: World) -> Iterator[None]:
    with world.serve(world.mx, MX4, MX6):
        yield


def become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def verdicts(
    world: World, act: Callable[[], object], cgroup: Path | None = None
) -> int:
    """Give the errno in the guarded cgroup; the control must connect."""
    assert world.control(act).errno == 0
    return world.act(act, cgroup).errno


# ---- unit


def inside_unit(world: World, unit: str) -> int:
    """Connect from a cgroup below the guarded one; give the errno."""
    made = []
    folder = world.guarded
    for name in unit.split("/"):
        folder = folder / name
        if not folder.exists():
            folder.mkdir()
            made.append(folder)
    try:
        return verdicts(world, partial(plain, MX4), folder)
    finally:
        for folder in reversed(made):
            folder.rmdir()


@pytest.mark.parametrize(
    ("pattern", "unit", "allowed"),
    [
        ("system.slice/postfix@*.service", "system.slice/postfix@-.service", True),
        ("system.slice/postfix@*.service", "system.slice/postfix@-.service/x", True),
        ("system.slice/postfix@*.service", "user.slice/postfix@-.service", False),
        ("system.slice/postfix@*.service", "system.slice/a/postfix@-.service", False),
        ("system.slice/postfix@*.service", "system.slice/postfix@-.scope", False),
        ("system.slice/postfix@*.service", "system.slice/postfix@-.service.x", False),
        ("system.slice/postfix@*.service", "system.slice/xpostfix@-.service", False),
        ("system.slice/postfix@*.service", "system.slice/postfix@-service", False),
        ("system.slice/exim4.service", "system.slice/exim4.service", True),
        ("system.slice/exim4.service", "system.slice/exim4.service2", False),
        ("system.slice/exim4.service", "system.slice/exim4.servic", False),
        ("system.slice/exim4.service", "system.slice", False),
        ("*.slice", "-.slice", True),  # as short as such a name can be
        ("*.slice", "a.slice", True),
        ("*.slice", "a.scope", False),
        ("*.slice", "slice", False),
        ("*", "a", True),
        ("a*", "a" * 63, True),
        ("a*", "a" * 64, False),  # longer than the kernel side compares
    ],
)
def test_a_unit(
    world: World, watch: Watch, pattern: str, unit: str, allowed: bool
) -> None:
    watch.apply(rule(unit=f"/{world.name}/guarded/{pattern}"))
    assert inside_unit(world, unit) == (0 if allowed else errno.EPERM)
    assert watch.one().cgroup == f"/{world.name}/guarded/{unit}"


# ---- user, group, destination, port


@pytest.mark.parametrize(
    ("key", "value", "uid", "gid", "allowed"),
    [
        ("user", "www-data", 33, 33, True),
        ("user", "www-data", 0, 33, False),
        ("user", 0xFFFFFFFE, 0xFFFFFFFE, 33, True),
        ("group", "www-data", 0, 33, True),
        ("group", "www-data", 33, 0, False),
    ],
)
def test_user_and_group(
    world: World,
    watch: Watch,
    key: str,
    value: str | int,
    uid: int,
    gid: int,
    allowed: bool,
) -> None:
    def act() -> None:
        become(uid, gid)
        plain(MX4)

    keys: dict[str, Any] = {key: value}
    watch.apply(rule(**keys))
    assert verdicts(world, act) == (0 if allowed else errno.EPERM)
    assert (watch.one().uid, watch.one().gid) == (uid, gid)


def test_a_supplementary_group_is_no_identity(world: World, watch: Watch) -> None:
    def act() -> None:
        os.setgroups([33])
        plain(MX4)

    watch.apply(rule(group="www-data"))
    assert verdicts(world, act) == errno.EPERM


def test_a_real_uid_is_no_identity(world: World, watch: Watch) -> None:
    def act() -> None:
        os.setresuid(33, 0, 0)
        plain(MX4)

    watch.apply(rule(user="www-data"))
    assert verdicts(world, act) == errno.EPERM


@pytest.mark.parametrize(
    ("to", "address", "allowed"),
    [
        (MX4, MX4, True),
        ("192.0.2.0/27", MX4, True),
        ("192.0.2.32/27", MX4, False),
        ("0.0.0.0/0", MX4, True),
        ("0.0.0.0/0", MX6, False),
        ("::/0", MX6, True),
        ("::/0", MX4, False),
        (MX4, f"::ffff:{MX4}", True),
        ("::/0", f"::ffff:{MX4}", False),
        ("2001:db8:1::/48", MX6, True),
    ],
)
def test_a_destination(
    world: World, watch: Watch, to: str, address: str, allowed: bool
) -> None:
    watch.apply(rule(to=to))
    wanted = 0 if allowed else errno.EPERM
    assert verdicts(world, partial(plain, address)) == wanted


def test_a_port(world: World, watch: Watch) -> None:
    watch.apply(rule(ports=[587]))
    with world.serve(world.mx, MX4, port=587):
        assert verdicts(world, partial(plain, MX4, 587)) == 0
        assert verdicts(world, partial(plain, MX4, SMTP)) == errno.EPERM


def test_the_first_match_wins_and_all_of_it_must_hold(
    world: World, watch: Watch
) -> None:
    first = rule("deny", name="not www-data", user="www-data")
    second = rule(name="both", user=[33, 0], to=MX4)
    watch.apply(first + second)

    def as_www_data() -> None:
        become(33, 33)
        plain(MX4)

    assert verdicts(world, as_www_data) == errno.EPERM
    assert verdicts(world, partial(plain, MX4)) == 0
    assert verdicts(world, partial(plain, MX6)) == errno.EPERM
    assert [event.rule for event in watch.connects()] == [0, 1, 0xFFFFFFFF]


def test_the_last_of_500_rules(world: World, watch: Watch) -> None:
    others = [
        rule(name=f"r{number}", user=10_000 + number, to=f"10.{number % 250}.0.0/16")
        for number in range(499)
    ]
    watch.apply("".join(others) + rule(name="last", user=0, to=MX4, ports=[25]))
    assert verdicts(world, partial(plain, MX4)) == 0
    assert verdicts(world, partial(plain, MX6)) == errno.EPERM
    assert watch.connects()[0].rule == 499


# ---- the executable


@pytest.fixture
def mta(programs: Path) -> Iterator[Path]:
    """A mail server's program in a folder that only root can write."""
    folder = programs / "mta"
    folder.mkdir()
    yield compile_c("caller.c", folder / "smtp", "-static")
    shutil.rmtree(folder)


@pytest.fixture
def rogues(programs: Path, mta: Path) -> Iterator[Path]:
    """A user's own folder, with a program of the same name."""
    folder = programs / "home"
    folder.mkdir()
    shutil.copy(mta, folder / "smtp")
    for path in (folder, folder / "smtp"):
        os.chown(path, ROGUE, ROGUE)
    yield folder
    shutil.rmtree(folder)


def run(
    program: Path, cgroup: Path, prepare: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """Let a program connect to MX4; give its errno, and its path as /proc has it."""

    def enter() -> None:
        join_cgroup(cgroup)
        prepare()

    with subprocess.Popen(
        [program, MX4, str(SMTP)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=enter,
    ) as process:
        assert process.stdin and process.stdout
        shown = os.readlink(f"/proc/{process.pid}/exe")
        process.stdin.write(b"go\n")
        process.stdin.flush()
        said = int(process.stdout.readline())
        process.stdin.close()
    return said, shown


def judged(
    world: World, program: Path, prepare: Callable[[], None] = lambda: None
) -> int:
    """Give the errno in the guarded cgroup; the control must connect."""
    assert run(program, world.free, prepare)[0] == 0
    return run(program, world.guarded, prepare)[0]


def test_an_executable(world: World, watch: Watch, mta: Path, rogues: Path) -> None:
    watch.apply(rule(exe=str(mta)))
    assert judged(world, mta) == 0
    assert judged(world, rogues / "smtp") == errno.EPERM
    assert verdicts(world, partial(plain, MX4)) == errno.EPERM


def test_a_link_to_it_is_it(
    world: World, watch: Watch, mta: Path, rogues: Path
) -> None:
    """Whatever name leads to the file, its code runs: no fake."""
    watch.apply(rule(exe=str(mta)))
    hard, soft = mta.with_name("hard"), rogues / "soft"
    hard.hardlink_to(mta)
    soft.symlink_to(mta)
    assert judged(world, hard) == 0
    assert judged(world, soft) == 0


def test_a_users_link_to_his_own_file_is_not(
    world: World, watch: Watch, mta: Path, rogues: Path
) -> None:
    watch.apply(rule(exe=str(mta)))
    (rogues / "lmtp").symlink_to(rogues / "smtp")
    (rogues / "qmgr").hardlink_to(rogues / "smtp")
    for name in ("lmtp", "qmgr"):
        assert judged(world, rogues / name) == errno.EPERM


def test_a_mount_namespace_fakes_the_path_but_not_the_file(
    world: World, watch: Watch, mta: Path, rogues: Path
) -> None:
    """An ordinary user mounts his program over the mail server's path."""

    def prepare() -> None:
        become(ROGUE, ROGUE)
        _libc.prctl(4, 1)  # PR_SET_DUMPABLE: /proc/self is ours again
        assert _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {ROGUE} 1")
        Path("/proc/self/gid_map").write_text(f"0 {ROGUE} 1")
        assert not _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
        source, target = os.fsencode(rogues / "smtp"), os.fsencode(mta)
        assert not _libc.mount(source, target, None, MS_BIND, None)

    watch.apply(rule(exe=str(mta)))
    assert run(mta, world.free, prepare) == (0, str(mta))  # the path lies
    assert run(mta, world.guarded, prepare) == (errno.EPERM, str(mta))
    event = watch.one()
    assert event.exe == str(mta)
    assert event.exe_inode == (rogues / "smtp").stat().st_ino
    assert event.uid == ROGUE


def test_a_folder_mounted_over_its_folder_is_no_fake_either(
    world: World, watch: Watch, mta: Path, rogues: Path
) -> None:
    def prepare() -> None:
        assert _libc.unshare(CLONE_NEWNS) == 0
        assert not _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
        source, target = os.fsencode(rogues), os.fsencode(mta.parent)
        assert not _libc.mount(source, target, None, MS_BIND, None)

    watch.apply(rule(exe=str(mta)))
    assert run(mta, world.free, prepare) == (0, str(mta))
    assert run(mta, world.guarded, prepare) == (errno.EPERM, str(mta))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.chown(path, ROGUE, -1),
        lambda path: path.chmod(0o775),
        lambda path: path.chmod(0o757),
    ],
    ids=["owner", "group", "others"],
)
def test_a_file_that_others_can_write_is_not_trusted(
    world: World, watch: Watch, mta: Path, spoil: Callable[[Path], None]
) -> None:
    """Also when it was root's alone at the moment the policy was read."""
    watch.apply(rule(exe=str(mta)))
    assert judged(world, mta) == 0
    spoil(mta)
    assert judged(world, mta) == errno.EPERM


def test_an_upgrade_is_followed_with_no_gap(
    world: World, watch: Watch, mta: Path, programs: Path
) -> None:
    """A new inode under the old name, as dpkg(1) renames it there."""
    watch.apply(rule(exe=str(mta)))
    before = mta.stat().st_ino
    fresh = compile_c("caller.c", mta.with_name("smtp.dpkg-new"), "-static")
    assert judged(world, fresh) == errno.EPERM  # not its name yet
    fresh.rename(mta)
    assert mta.stat().st_ino != before
    assert judged(world, mta) == 0


def test_a_name_in_a_folder_that_others_can_write_is_not_trusted(
    world: World, watch: Watch, mta: Path
) -> None:
    watch.apply(rule(exe=str(mta)))
    fresh = compile_c("caller.c", mta.with_name("new"), "-static")
    fresh.rename(mta)
    mta.parent.chmod(0o777)
    assert judged(world, mta) == errno.EPERM
    mta.parent.chmod(0o755)
    assert judged(world, mta) == 0


def test_a_copy_elsewhere_is_another_file(
    world: World, watch: Watch, mta: Path, programs: Path
) -> None:
    watch.apply(rule(exe=str(mta)))
    copy = programs / "smtp"
    shutil.copy(mta, copy)
    try:
        assert judged(world, copy) == errno.EPERM
    finally:
        copy.unlink()


def test_a_reused_inode_number_is_another_file(
    world: World, watch: Watch, mta: Path, programs: Path
) -> None:
    """Also root's, so only the inode's generation tells them apart."""
    watch.apply(rule(exe=str(mta)))
    assert judged(world, mta) == 0
    content, inode = mta.read_bytes(), mta.stat().st_ino
    mta.unlink()
    for number in range(500):
        heir = mta.with_name(f"heir{number}")
        heir.write_bytes(content)
        if heir.stat().st_ino == inode:
            break
    else:
        pytest.skip("this file system did not reuse the inode number")
    heir.chmod(0o755)
    assert judged(world, heir) == errno.EPERM
    assert watch.connects()[-1].exe_inode == inode
