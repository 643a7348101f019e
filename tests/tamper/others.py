# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody with root can do to a guard, by the same calls as any BPF tool."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from guard import abi, libbpf
from guard.errors import KernelError
from guard.kernel import HOOKS, Guard
from guard.tables import KEY0

SOURCE = Path(__file__).with_name("others.bpf.c")
# BPF_PROG_ATTACH flags, include/uapi/linux/bpf.h
ALONE, OVERRIDE, MULTI = 0, 1, 2
CONNECT4 = HOOKS["guard_connect4"]
_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


def compiled(folder: Path) -> Path:
    """Compile the programs of others into a folder."""
    target = folder / "others.bpf.o"
    machine = subprocess.run(
        ["gcc", "-print-multiarch"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", f"-I/usr/include/{machine}"]
        + ["-c", str(SOURCE), "-o", str(target)],
        check=True,
    )
    return target


@contextlib.contextmanager
def loaded(others: Path, name: str) -> Iterator[int]:
    """Load one of others.bpf.c's programs and give its descriptor."""
    with libbpf.Object(others) as obj:
        obj.load()
        yield obj.program(name)


@contextlib.contextmanager
def linked(program: int, cgroup: Path) -> Iterator[None]:
    """Have a program attached by a link, after those that are there."""
    folder = os.open(cgroup, os.O_RDONLY)
    link = libbpf.attach(program, folder, CONNECT4)
    os.close(folder)
    try:
        yield
    finally:
        os.close(link)


def attach(program: int, cgroup: Path, flags: int) -> int:
    """Attach as it was done before links were; gives 0 or an errno.

    The attachment ends with the cgroup.
    """
    folder = os.open(cgroup, os.O_RDONLY)
    try:
        return -int(_libbpf.bpf_prog_attach(program, folder, CONNECT4, flags))
    finally:
        os.close(folder)


def detach(program: int, cgroup: Path) -> None:
    """Take away what attach() did."""
    folder = os.open(cgroup, os.O_RDONLY)
    try:
        assert _libbpf.bpf_prog_detach2(program, folder, CONNECT4) == 0
    finally:
        os.close(folder)


def detach_link(guard: Guard, hook: str = "guard_connect4") -> None:
    """Force a link off its cgroup, BPF_LINK_DETACH."""
    link = libbpf.get_pinned(guard.link_path(hook))
    try:
        assert _libbpf.bpf_link_detach(link) == 0
    finally:
        os.close(link)


def replace_program(others: Path) -> Callable[[Guard], None]:
    """Make a tamperer that hangs a program of the same name on a link."""

    def tamper(guard: Guard) -> None:
        with loaded(others, "guard_connect4") as program:
            link = libbpf.get_pinned(guard.link_path("guard_connect4"))
            libbpf.swap(link, program)
            os.close(link)

    return tamper


def set_control(change: Callable[[abi.Control], object]) -> Callable[[Guard], None]:
    """Make a tamperer of the words that every connect() reads."""

    def tamper(guard: Guard) -> None:
        control = guard.control()
        change(control)
        guard.map("control").put(KEY0, bytes(control))

    return tamper


def other_slot(control: abi.Control) -> None:
    control.slot = 1 - control.slot


def every_port(control: abi.Control) -> None:
    for words in control.unguarded:
        for index in range(len(words)):
            words[index] = 2**64 - 1


def observe(guard: Guard) -> None:
    policy = guard.policy()
    policy.mode = abi.Mode.OBSERVE
    guard.map("policies").put(struct.pack("=I", guard.slot), bytes(policy))


def allow_root(guard: Guard) -> None:
    """Turn the verdict of the second rule, which denies what root does."""
    key = struct.pack("=I", guard.slot * abi.MAX_ROWS + 1)
    row = abi.Rule.from_buffer_copy(guard.map("rules").get(key) or b"")
    row.verdict = abi.Verdict.ALLOW
    guard.map("rules").put(key, bytes(row))


def every_rule_for_root(guard: Guard) -> None:
    """Say that every rule names uid 0; the first one allows."""
    key = abi.NumberKey(guard.slot, abi.Dimension.UID, 0)
    row = abi.Mask()
    for index in range(len(row.word)):
        row.word[index] = 2**64 - 1
    guard.map("numbers").put(bytes(key), bytes(row))


def fill(guard: Guard) -> None:
    """Leave no room for rows of numbers, and have a wrong one among them."""
    every_rule_for_root(guard)
    table = guard.map("numbers")
    with contextlib.suppress(KernelError):  # E2BIG
        for number in range(table.max_entries + 1):
            slot = guard.slot + number % 2 * 7  # some that are in no slot
            key = abi.NumberKey(slot, abi.Dimension.GID, 1 << 20 | number)
            table.put(bytes(key), bytes(table.value_size))
        raise AssertionError("there is still room")
