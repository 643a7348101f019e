# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes are found in ELF files as they come, damaged ones too."""

from __future__ import annotations

import os
import platform
import random
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from guard import libbpf, requests
from guard.kernel import Guard
from guard.origin import Naming
from guard.requests import Requests
from guard.usdt import Probe, probes
from tests.kernel.phphost import silence
from tests.kernel.world import Watch, World, compile_c
from tests.lab.lab import join_cgroup, wait_until

PHP = Path("/usr/bin/php")


@pytest.mark.parametrize(
    ("machine", "arguments", "how"),
    [
        ("x86_64", "8@%rax 8@%rdx 8@%rcx", (10, 12, 11)),
        ("x86_64", "8@%r15 -8@%rdi 8@%rsp", (0, 14, 19)),
        ("x86_64", "8@-8(%rbp) 8@(%rsp) 8@8191(%rbx)",
         (0x44 | 0x3FF8 << 7, 0x40 | 19, 0x45 | 8191 << 7)),
        ("aarch64", "8@x0 8@x19 8@sp", (0, 19, 31)),
        ("aarch64", "8@[sp, 16] 8@[x1] 8@[x29, -8]",
         (0x40 | 31 | 16 << 7, 0x41, 0x40 | 29 | 0x3FF8 << 7)),
        ("x86_64", "8@%rax 8@%rdx", None),
        ("x86_64", "8@%rax 8@%rdx 4@%ecx", None),
        ("x86_64", "8@%rax 8@%rdx 8@$5", None),
        ("x86_64", "8@%rax 8@%rdx 8@8192(%rcx)", None),
        ("x86_64", "8@%rax 8@%rdx 8@8(%rcx,%rdx,8)", None),
        ("x86_64", "8@%rax 8@%rdx 8@php_sapi(%rip)", None),
        ("x86_64", "", None),
    ],
)  # fmt: skip
def test_where_arguments_are(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    arguments: str,
    how: tuple[int, ...] | None,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    probe = Probe("request__startup", 1, 0, arguments)
    if how is None:
        with pytest.raises(ValueError, match="arguments"):
            probe.cookie()
    else:
        assert probe.cookie() == sum(one << 21 * n for n, one in enumerate(how))


def test_a_damaged_file_has_no_probes(tmp_path: Path) -> None:
    """Whatever stands in it, nothing is raised and nothing large is read."""
    whole = PHP.read_bytes()
    with PHP.open("rb") as file:
        assert len(probes(file, "php")) > 2, "the control"
        assert not probes(file, "ph")
    (sections,) = struct.unpack_from("<Q", whole, 40)
    seed = random.Random(20261125)
    damaged = tmp_path / "damaged"
    for size in (0, 3, 63, 64, 200, 5000, len(whole) // 2, sections + 100):
        damaged.write_bytes(whole[:size])
        with damaged.open("rb") as file:
            assert not probes(file, "php")
    damaged.write_bytes(whole)
    places = [*range(16, 64), *range(64, 800), *range(sections, len(whole))]
    with damaged.open("r+b") as file:
        for _ in range(2000):
            at = seed.choice(places)
            os.pwrite(file.fileno(), seed.randbytes(8), at)
            for probe in probes(file, "php"):
                assert 0 <= probe.offset < 1 << 64
            os.pwrite(file.fileno(), whole[at : at + 8], at)


@pytest.mark.usefixtures("local_server")
def test_arguments_on_the_stack_and_no_semaphore(
    world: World, watch: Watch, guard: Guard, programs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not any(Path("/usr/include").glob("**/sys/sdt.h")):
        pytest.skip("systemtap-sdt-dev is not installed: make setup")
    program = compile_c("probes.c", programs / "php-stand-in", "-O0")
    with program.open("rb") as file:
        found = {probe.name: probe for probe in probes(file, "php")}
    startup = found["request__startup"]
    assert startup.arguments.count("(%r") == 3 and not startup.semaphore
    monkeypatch.setattr(requests, "_PATHS", (str(program),))
    look = Requests(guard)
    look.look()
    assert not look.trouble
    subprocess.run(
        [program, "/srv/stack.php", "/stack", "PUT"],
        preexec_fn=lambda: join_cgroup(world.guarded),
        check=True,
    )
    one = Naming().finding(watch.one())
    assert (one.script, one.script_from) == ("/srv/stack.php", "request")
    assert (one.request_uri, one.request_method) == ("/stack", "PUT")
    silence(guard)


def test_what_a_process_has_in_its_root_is_looked_at_before_it_is_opened(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A FIFO there would hold the thread up for ever, and every PHP behind it."""
    fifo = tmp_path / "libphp.so"
    os.mkfifo(fifo)
    monkeypatch.setattr(requests, "_places", lambda: iter([fifo, PHP]))
    made = Requests(guard)
    looking = threading.Thread(target=made.look, daemon=True)
    looking.start()
    looking.join(60)
    try:
        assert not looking.is_alive()
        assert len(requests.attached(guard.home)) == 1, made.trouble
    finally:
        silence(guard)


def test_the_end_of_a_request_is_seen_before_its_begin(guard: Guard) -> None:
    """Or one that ends in between goes on for ever."""
    made = Requests(guard)
    made.look()
    order: dict[str, list[tuple[int, str]]] = {}
    for pin in guard.home.glob(f"{requests.PIN}*"):
        link = libbpf.get_pinned(pin)
        number = libbpf.info(link, libbpf.LinkInfo).id
        os.close(link)
        file, _, program = pin.name.rpartition("-php_")
        order.setdefault(file.rpartition("-")[0], []).append((number, program))
    silence(guard)
    assert order
    for programs_of in order.values():
        first, *others = [program for _, program in sorted(programs_of)]
        assert first == "shutdown" and "startup" in others


def test_a_machine_whose_registers_are_not_known_is_told(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    made = Requests(guard, seconds=0.01)
    made.start()
    try:
        wait_until(lambda: made.trouble, "why it does not")
        assert "riscv64" in made.trouble and "x86_64" in made.trouble
        assert not requests.attached(guard.home)
        monkeypatch.undo()  # the thread goes on, and would on a machine that is known
        wait_until(lambda: requests.attached(guard.home), "it goes on")
        wait_until(lambda: not made.trouble, "no trouble any more")
    finally:
        monkeypatch.setattr(made, "look", lambda: None)
        silence(guard)
