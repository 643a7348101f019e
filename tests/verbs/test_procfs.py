# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told of a process that no hook saw is what /proc says of it."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.abi import ARGS_LEN
from guard.finding import Finding, Kind
from guard.origin import Naming
from guard.policy import parse
from guard.policy.evaluate import Destination, evaluate
from guard.procfs import Seen, finding, holders, look
from tests.faults.site import lacking
from tests.kernel.world import PROGRAMS, PROGRAMS_PREFIX
from tests.lab.lab import wait_until

NOBODY = 65534
SLEEP = shutil.which("sleep") or "/bin/sleep"


@pytest.fixture
def program() -> Iterator[Path]:
    """A program that only root can write, and that may be replaced."""
    folder = PROGRAMS / f"{PROGRAMS_PREFIX}{os.getpid()}-procfs"
    folder.mkdir(mode=0o755)
    try:
        path = folder / "sleeper"
        shutil.copy(SLEEP, path)
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(folder)


def asleep(*command: str | Path, user: int | None = None) -> subprocess.Popen[bytes]:
    """Start what sleeps, and wait until it is the program that it is to be."""
    child = subprocess.Popen([*command, "60"], user=user, group=user, cwd="/usr")
    wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text() != "", "a start")
    wait_until(
        lambda: b"60\0" in Path(f"/proc/{child.pid}/cmdline").read_bytes(), "its exec"
    )
    return child


def ended(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def matches(seen: Seen, rule: str) -> bool:
    """Tell whether a rule that allows would match this process."""
    policy = parse(f'mode = "enforce"\n[[rule]]\nname = "r"\n{rule}\nverdict = "allow"')
    to = ipaddress.ip_address("192.0.2.25")
    return evaluate(policy, seen.caller, Destination(to, 25)).rule == 0


# prctl(2), PR_SET_MM_MAP: struct prctl_mm_map of linux/prctl.h
ENDLESS = """\
import ctypes, struct, time
libc = ctypes.CDLL(None)
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
code, data = (fields[23], fields[24]), (fields[42], fields[43], fields[44])
libc.sbrk.restype = libc.mmap.restype = ctypes.c_void_p
size = 1 << 40
at = libc.mmap(None, ctypes.c_size_t(size), 1, 0x4022, -1, ctypes.c_long(0))
numbers = [*map(int, (*code, *data)), libc.sbrk(0), int(fields[25]), at, at + size]
numbers += [int(fields[47]), int(fields[48]), 0]
map_ = struct.pack("=12Q2I", *numbers, 0, 0xFFFFFFFF)
assert libc.prctl(35, 14, map_, ctypes.c_long(len(map_)), ctypes.c_long(0)) == 0
print("60", flush=True)
time.sleep(60)
"""


def test_arguments_without_end_are_cut() -> None:
    """Anybody may have a terabyte of them; guardd has not the memory."""
    argv = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, user=NOBODY) as child:
        try:
            assert child.stdout and child.stdout.readline() == b"60\n"
            seen = look(child.pid)
        finally:
            child.kill()
    assert seen and "args-cut" in seen.incomplete
    assert len("".join(seen.args)) + len(seen.args) <= ARGS_LEN + 1


def test_a_process_is_told_whole(program: Path) -> None:
    child = asleep(program, user=NOBODY)
    try:
        seen = look(child.pid)
    finally:
        ended(child)
    assert seen and seen.file
    assert (seen.pid, seen.ppid, seen.comm) == (child.pid, os.getpid(), "sleeper")
    assert (seen.exe, seen.args, seen.cwd) == (
        str(program),
        (str(program), "60"),
        "/usr",
    )
    assert seen.uids == seen.gids == (NOBODY, NOBODY)
    assert os.path.samestat(seen.file, program.stat())
    assert seen.ancestors[0].pid == os.getpid()
    assert seen.ancestors[0].start_ns > 0 and seen.ancestors[0].comm
    assert seen.netns == os.stat("/proc/self/ns/net").st_ino
    assert look(child.pid) is None  # it has ended


def test_a_finding_says_where_it_is_from() -> None:
    naming = Naming()
    common = {"connection": "c", "src": None, "dst": ("192.0.2.25", 25)}
    common |= {"verdict": "deny", "mode": "enforce", "direction": "outbound"}
    told = finding(
        Kind.PRE_EXISTING, look(os.getpid()), naming, outcome="established", **common
    )
    assert told.incomplete[0] == "from-proc"
    assert (told.pid, told.user) == (os.getpid(), naming.user(os.geteuid()))
    told = finding(
        Kind.PRE_EXISTING, None, naming, outcome="established", uid=NOBODY, **common
    )
    assert (told.uid, told.user) == (NOBODY, naming.user(NOBODY))
    assert told.incomplete == ("from-proc", "no-process")
    told = finding(Kind.PRE_EXISTING, None, naming, outcome="established", **common)
    assert (told.uid, told.user) == (0, None)
    assert told.incomplete == ("from-proc", "no-process", "no-user")


def test_all_who_hold_a_socket_are_found() -> None:
    with socket.socket() as held, socket.socket() as other:
        inode = os.fstat(held.fileno()).st_ino
        child = subprocess.Popen([SLEEP, "60"], pass_fds=[held.fileno()])
        try:
            wait_until(
                lambda: (
                    holders({inode}) == {inode: tuple(sorted([os.getpid(), child.pid]))}
                ),
                "both holders",
            )
        finally:
            ended(child)
        other_inode = os.fstat(other.fileno()).st_ino
        assert holders({inode, other_inode}) == {
            inode: (os.getpid(),),
            other_inode: (os.getpid(),),
        }
    assert holders({inode}) == {}


def test_root_without_our_kernel_programs_finds_them_too() -> None:
    code = "import sys; from guard.procfs import holders; "
    code += "print(holders({int(sys.argv[1])}))"
    with socket.socket() as held:
        inode = os.fstat(held.fileno()).st_ino
        argv = [*lacking("bpf,perfmon,sys_admin"), sys.executable, "-c", code]
        done = subprocess.run(
            [*argv, str(inode)], capture_output=True, text=True, check=True
        )
    assert done.stdout.strip() == str({inode: (os.getpid(),)}), done


def test_an_executable_is_compared_as_the_kernel_does(program: Path) -> None:
    child = asleep(program)
    try:
        seen = look(child.pid)
        assert seen and matches(seen, f'exe = "{program}"')
        assert not matches(seen, f'exe = "{SLEEP}"')
        # An upgrade puts another file in its place: its name holds.
        new = program.with_name("new")
        shutil.copy(SLEEP, new)
        new.chmod(0o755)
        new.rename(program)
        seen = look(child.pid)
        assert seen and seen.file
        assert seen.file.st_nlink == 0 and seen.exe == str(program)
        assert matches(seen, f'exe = "{program}"')
        program.parent.chmod(0o777)  # now anybody could have put it there
        seen = look(child.pid)
        assert seen and seen.executable
        assert not seen.executable.name[3]
    finally:
        ended(child)


def test_what_others_can_write_is_no_executable_of_a_rule(program: Path) -> None:
    child = asleep(program)
    try:
        program.chmod(0o777)
        seen = look(child.pid)
        assert seen and seen.executable and not seen.executable.trusted
    finally:
        ended(child)


def test_a_user_namespace_may_lie_about_its_executable(program: Path) -> None:
    child = asleep("unshare", "--user", "--map-root-user", program)
    try:
        wait_until(
            lambda: os.readlink(f"/proc/{child.pid}/exe") == str(program), "its exec"
        )
        seen = look(child.pid)
        assert seen and seen.executable and not seen.executable.trusted
    finally:
        ended(child)


def test_a_mount_namespace_cannot_give_a_false_folder(program: Path) -> None:
    """Another folder lies at the path of the one that a rule names."""
    fake = program.parent / "fake"
    fake.mkdir()
    shutil.copy(SLEEP, fake / "sleeper")
    wanted = program.parent / "true"
    wanted.mkdir()
    shutil.copy(SLEEP, wanted / "sleeper")
    script = f'mount --bind "{fake}" "{wanted}" && exec "{wanted}/sleeper" 60'
    child = asleep("unshare", "--mount", "sh", "-c", script)
    try:
        wait_until(
            lambda: os.readlink(f"/proc/{child.pid}/exe") == f"{wanted}/sleeper",
            "its exec",
        )
        seen = look(child.pid)
        assert seen and not matches(seen, f'exe = "{wanted}/sleeper"')
        assert matches(seen, f'exe = "{fake}/sleeper"')  # the control
    finally:
        ended(child)


def test_a_script_and_a_folder_that_is_gone(tmp_path: Path) -> None:
    script, gone = tmp_path / "wait.sh", tmp_path / "gone"
    script.write_text("exec 1>&-; while read -r line; do :; done\n")
    gone.mkdir()
    for cwd, remove, known in ((tmp_path, False, True), (gone, True, False)):
        way = "wait.sh" if known else "../wait.sh"
        child = subprocess.Popen(
            ["/bin/sh", way], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin and child.stdout
        try:
            assert child.stdout.read() == b"", "the shell runs it: it closed its end"
            if remove:
                gone.rmdir()
            found = _told(child.pid)
            assert found.script == (str(script) if known else None)
            assert ("cwd-gone" in found.incomplete) is remove
        finally:
            child.stdin.close()
            child.stdout.close()
            child.wait()


def _told(pid: int) -> Finding:
    return finding(
        Kind.PRE_EXISTING,
        look(pid),
        Naming(),
        connection="x",
        src=None,
        dst=("127.0.0.1", 25),
        verdict="allow",
        mode="observe",
        direction="local",
        outcome="established",
    )
