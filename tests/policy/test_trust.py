# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that somebody else can change are refused, and root's are not.

Each test first shows that the same file is good before it is spoilt.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.errors import PolicyError
from guard.policy import load, parse

HEAD = 'mode = "enforce"\n'
NOBODY = 65534


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(PolicyError) as caught:
        act()
    return caught.value.report().replace("\n  ", " ")


def give_to_group(path: Path, gid: int) -> None:
    os.chown(path, 0, gid)
    path.chmod(0o775)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    path = tmp_path / "etc/policy.toml"
    path.parent.mkdir(mode=0o755)
    path.write_text(HEAD)
    path.chmod(0o644)
    load(path)
    return path


@pytest.mark.parametrize(
    ("spoil", "message", "remedy"),
    [
        (lambda p: p.chmod(0o664), "can be written by group", "chmod go-w"),
        (lambda p: p.chmod(0o646), "can be written by others", "chmod go-w"),
        (lambda p: os.chown(p, NOBODY, 0), "belongs to nobody", "chown root"),
        (lambda p: p.parent.chmod(0o757), "etc can be written by others", "chmod go-w"),
        (lambda p: os.chown(p.parent, NOBODY, 0), "belongs to nobody", "chown root"),
        (
            lambda p: give_to_group(p.parent, 8),
            "etc can be written by group",
            "chmod go-w",
        ),
    ],
)
def test_a_policy_others_can_change_is_refused(
    policy: Path, spoil: Callable[[Path], object], message: str, remedy: str
) -> None:
    spoil(policy)
    report = refusal(lambda: load(policy))
    assert message in report and remedy in report


def test_an_include_others_can_change_is_refused(policy: Path) -> None:
    extra = policy.parent / "extra.toml"
    extra.write_text("")
    extra.chmod(0o644)
    policy.write_text(HEAD + 'include = "extra"')
    assert load(policy).files == (policy, extra)
    extra.chmod(0o666)
    assert f"{extra} can be written by others" in refusal(lambda: load(policy))


def test_what_leads_to_an_include_is_looked_at_like_the_include(
    policy: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere/deep"
    elsewhere.mkdir(mode=0o755, parents=True)
    extra = elsewhere / "extra.toml"
    extra.write_text("")
    extra.chmod(0o644)
    link = policy.parent / "link.toml"
    link.symlink_to(extra)
    policy.write_text(HEAD + 'include = "link"')
    load(policy)
    for folder in (elsewhere, elsewhere.parent):
        folder.chmod(0o777)
        assert f"{folder} can be written by others" in refusal(lambda: load(policy))
        folder.chmod(0o755)
    os.chown(link, NOBODY, 0, follow_symlinks=False)
    assert f"{link} belongs to nobody" in refusal(lambda: load(policy))


def test_every_folder_above_the_policy_counts(policy: Path) -> None:
    deep = policy.parent / "a/b"
    deep.mkdir(mode=0o755, parents=True)
    inner = policy.rename(deep / policy.name)
    load(inner)
    policy.parent.chmod(0o757)
    report = refusal(lambda: load(inner))
    assert f"{policy.parent} can be written by others" in report


def test_a_link_to_the_folder_of_the_policy_is_looked_at(
    policy: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(policy.parent)
    load(link / policy.name)
    os.chown(link, NOBODY, 0, follow_symlinks=False)
    assert f"{link} belongs to nobody" in refusal(lambda: load(link / policy.name))


def test_an_access_list_that_lets_somebody_write_is_seen(policy: Path) -> None:
    """acl(5): the mask stands where the group's bits stand in stat(2)."""
    entries = [(0x01, 6, -1), (0x02, 6, NOBODY), (0x04, 4, -1), (0x10, 6, -1)]
    entries.append((0x20, 4, -1))
    # struct posix_acl_xattr_header and _entry, linux/posix_acl_xattr.h
    raw = struct.pack("<I", 2)
    raw += b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(policy, "system.posix_acl_access", raw)
    assert "can be written by group" in refusal(lambda: load(policy))


def test_the_policy_file_is_no_link(policy: Path) -> None:
    link = policy.with_name("link.toml")
    link.symlink_to(policy)
    assert "is a symbolic link" in refusal(lambda: load(link))


def test_a_fifo_does_not_hang_us(policy: Path) -> None:
    policy.unlink()
    os.mkfifo(policy, 0o644)
    assert "not a regular file" in refusal(lambda: load(policy))


def test_a_sticky_directory_above_is_root_s_all_the_same(policy: Path) -> None:
    policy.parent.parent.chmod(0o1777)
    load(policy)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    path = tmp_path / "bin/mta"
    path.parent.mkdir(mode=0o755)
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    check(path)
    return path


def check(path: Path) -> list[str]:
    text = f'{HEAD}[[rule]]\nname = "r"\nuser = 0\nverdict = "allow"\nexe = "{path}"'
    return [problem.message for problem in parse(text).warnings]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.chmod(0o775), "mta can be written by group"),
        (lambda p: p.chmod(0o757), "mta can be written by others"),
        (lambda p: os.chown(p, NOBODY, 0), "mta belongs to nobody"),
        (lambda p: p.parent.chmod(0o775), "bin can be written by group"),
        (lambda p: p.parent.chmod(0o1777), "bin can be written by others"),
        (lambda p: os.chown(p.parent, NOBODY, 0), "bin belongs to nobody"),
        (lambda p: p.parent.parent.chmod(0o757), "can be written by others"),
    ],
)
def test_a_program_others_can_change_is_refused(
    program: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(program)
    report = refusal(lambda: check(program))
    assert "cannot be relied on" in report and message in report


def test_every_link_on_the_way_is_looked_at(program: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    link = open_to_all / "mta"
    link.symlink_to("../bin/mta")
    outer = tmp_path / "outer"
    outer.symlink_to(link)
    assert check(outer) == []
    open_to_all.chmod(0o777)
    report = refusal(lambda: check(outer))
    assert f"{open_to_all} can be written by others" in report


def test_links_are_watched_with_what_they_lead_to(
    program: Path, tmp_path: Path
) -> None:
    link = tmp_path / "mta-alternative"
    link.symlink_to(program)
    gone = tmp_path / "gone"
    text = (
        f'{HEAD}[[rule]]\nname = "r"\nuser = 0\nverdict = "allow"\n'
        f'exe = ["{link}", "{gone}"]'
    )
    assert parse(text).exes == {link, program, gone}


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert f"{loop}: no such file" in check(loop)[0]


def test_a_script_is_not_what_its_process_runs(program: Path) -> None:
    program.write_text("#!/bin/sh\n")
    assert "is a script" in check(program)[0]
