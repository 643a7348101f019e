# SPDX-License-Identifier: GPL-2.0-or-later
"""Who called sendmail(1): samples, chains, and what is said where it is not known."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard import abi
from guard.elf import exported
from guard.errors import JournalError, KernelError, TornEvent
from guard.event import unpack_event
from guard.finding import Kind, Notice
from guard.journal import lines
from guard.mta import handin, handins
from guard.mta.handin import (
    Caller,
    CallingScript,
    Dropped,
    Joiner,
    Queued,
    caller_of,
    handed_in,
    read_sample,
)
from guard.mta.handins import LIBRARIES, Handins
from guard.mta.limits import Met, Window
from guard.mta.telling import limit_notice
from guard.origin import Naming
from guard.policy.model import Limit
from guard.tables import KEY0
from guard.touched import touched_notice
from tests.journal.findings import finding
from tests.journald import until

POSTDROP = Caller(
    *(9, 33, "postdrop", "/usr/sbin/postdrop", ("postdrop", "-r"), "/", None),
    known="kernel",
    real=True,
)
MAIL = replace(
    POSTDROP, pid=8, comm="sendmail", exe="/usr/sbin/sendmail", args=("sendmail", "-t")
)
SHELL = replace(
    MAIL, pid=7, comm="sh", exe="/usr/bin/dash", args=("sh", "-c", "sendmail -t")
)
SCRIPT = replace(
    MAIL, pid=6, comm="php", exe="/usr/bin/php8.2", args=("php", "/srv/x.php")
)


@pytest.mark.parametrize(
    ("between", "caller"),
    [
        ([MAIL, SCRIPT], SCRIPT),
        ([MAIL, SHELL, SCRIPT], SCRIPT),
        (
            [MAIL, replace(SHELL, args=("sh", "-c", "--", "sendmail -t")), SCRIPT],
            SCRIPT,
        ),
        ([MAIL, replace(SHELL, args=("sh", "-c", "sendmail '-t'")), SCRIPT], SCRIPT),
        # the command says more: it is what called
        (
            [MAIL, one := replace(SHELL, args=("sh", "-c", "x | sendmail -t")), SCRIPT],
            one,
        ),
        ([MAIL, two := replace(SHELL, args=("sh", "-c", "sendmail '-t")), SCRIPT], two),
        ([MAIL, three := replace(SHELL, args=("sh", "run.sh")), SCRIPT], three),
        # `sendmail -bs` has become this
        (
            [
                replace(
                    MAIL, exe="/usr/lib/postfix/sbin/smtpd", args=("smtpd", "-S", "-c")
                ),
                SCRIPT,
            ],
            SCRIPT,
        ),
        # a name is not enough: who calls himself sendmail stands elsewhere
        ([four := replace(MAIL, exe="/tmp/sendmail"), SCRIPT], four),
        # nor is a path, where a user may have mounted something there
        ([five := replace(MAIL, real=False), SCRIPT], five),
        (
            [
                six := replace(
                    MAIL,
                    exe="/usr/lib/postfix/sbin/smtpd",
                    args=("smtpd", "-S"),
                    real=False,
                ),
                SCRIPT,
            ],
            six,
        ),
        # nor are arguments: they are what a program was given by who started it
        *(
            ([MAIL, seven, SCRIPT], seven)
            for seven in (
                replace(SHELL, real=False),
                replace(SHELL, exe="/tmp/sh"),
                replace(SHELL, exe="/srv/bin/dash"),
                replace(SHELL, exe="/usr/bin/python3.11"),
                replace(SHELL, exe=None),
            )
        ),
        ([MAIL, replace(SHELL, exe="/bin/busybox"), SCRIPT], SCRIPT),
        ([SCRIPT], SCRIPT),
        ([MAIL], MAIL),
        ([], POSTDROP),
    ],
)
def test_who_called(between: list[Caller], caller: Caller) -> None:
    assert caller_of((POSTDROP, *between)) == caller


@given(st.binary(max_size=400))
def test_other_bytes_are_no_sample(raw: bytes) -> None:
    with pytest.raises(TornEvent):
        read_sample(raw)


def dropped(name: bytes, step: int, pid: int) -> Dropped:
    """Give a step of a chain, of a process that nobody saw and that is gone."""
    raw = abi.RawEvent(abi=abi.ABI, kind=abi.EventKind.STARTED, pid=pid)
    head = handin._HEAD.pack(1, step, 0, 1, 2, 3, name, b"")
    sample = read_sample(head + bytes(raw))
    assert isinstance(sample, Dropped)
    return sample


def queued(name: bytes) -> Queued:
    return Queued((1, 2, name), f"ID{name.decode()}", 5)


def chain(notice: Notice | None) -> list[int]:
    assert notice is not None
    return [one.pid for one in handed_in(notice).chain]


def test_files_of_one_moment_are_kept_apart() -> None:
    joiner = Joiner(Naming())
    for step in range(3):
        for name, pid in ((b"A", 100), (b"B", 200)):
            assert joiner.take(dropped(name, step, pid + step)) is None
    assert chain(joiner.take(queued(b"B"))) == [200, 201, 202]
    assert chain(joiner.take(queued(b"A"))) == [100, 101, 102]
    assert joiner.take(queued(b"A")) is None  # told once
    assert joiner.take(queued(b"C")) is None  # nobody saw that one


def test_a_name_that_is_used_again_has_the_later_one() -> None:
    joiner = Joiner(Naming())
    joiner.take(dropped(b"A", 0, 1))
    joiner.take(dropped(b"A", 0, 2))
    assert chain(joiner.take(queued(b"A"))) == [2]


def test_a_step_that_was_lost_ends_the_chain() -> None:
    joiner = Joiner(Naming())
    joiner.take(dropped(b"A", 0, 1))
    joiner.take(dropped(b"A", 2, 3))
    assert chain(joiner.take(queued(b"A"))) == [1]


def test_what_waits_too_long_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handin, "MOST_WAITING", 2)
    joiner = Joiner(Naming())
    for name in (b"A", b"B", b"C"):
        joiner.take(dropped(name, 0, 1))
    assert joiner.forgotten == 1
    assert joiner.take(queued(b"A")) is None
    assert joiner.take(queued(b"C")) is not None


def test_a_finding_that_was_changed_is_refused() -> None:
    joiner = Joiner(Naming())
    joiner.take(dropped(b"A", 0, 1))
    notice = joiner.take(queued(b"A"))
    assert notice is not None and notice.kind is Kind.HANDED_IN
    for chain_ in ("", "[]", "[1]", '[{"pid": 1}]', json.dumps([{"pid": "x"}])):
        with pytest.raises(JournalError):
            handed_in(replace(notice, fields={**notice.fields, "CHAIN": chain_}))


# ---- the library


def test_a_function_is_found_where_it_is() -> None:
    """What is there in the file is what the loader has put into memory."""
    library = ctypes.CDLL("libbpf.so.1")
    [path] = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "libbpf.so" in line
    }
    for name in ("bpf_obj_get", "bpf_link_create", "ring_buffer__poll"):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        assert address
        offset = exported(Path(path), name)
        assert Path(path).read_bytes()[offset : offset + 32] == ctypes.string_at(
            address, 32
        )


@pytest.mark.parametrize(
    "raw", [b"", b"\x7fELF\x01" + bytes(100), b"\x7fELF\x02" + bytes(20), b"\xff" * 999]
)
def test_what_is_no_library_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(raw)
    with pytest.raises(KernelError, match=r"lib\.so has no f\(\)"):
        exported(path, "f")
    with pytest.raises(KernelError, match="cannot read"):
        exported(tmp_path / "none", "f")


@pytest.mark.skipif(os.geteuid() != 0, reason="loads programs: run as root")
def test_it_says_whether_it_follows(tmp_path: Path) -> None:
    told: list[Notice] = []
    strange = tmp_path / "strange.so"
    strange.write_bytes(b"no library")
    for libraries, state in (
        ((tmp_path / "none",), ("no Postfix library is here",)),
        # by the LSM, if this kernel has it; a library matters nothing then
        ((strange,), ("not followed: ", "followed")),
        (LIBRARIES, ("followed",)),
    ):
        thread = Handins(Naming(), told.append, libraries=libraries)
        thread.start()
        try:
            until(
                lambda wanted=state, of=thread: of.state.startswith(wanted),  # type: ignore
                f"{state}",
            )
        finally:
            thread.stop(20)
        assert not thread.is_alive()
    assert told == []


FOLLOW = """\
import time
from guard.mta.handins import Handins
from guard.origin import Naming
thread = Handins(Naming(), print)
thread.start()
end = time.monotonic() + 30
while thread.state.startswith("no Postfix") and time.monotonic() < end:
    time.sleep(0.01)
print(thread.state)
thread.stop(20)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up capabilities: run as root")
def test_what_the_unit_may_do_is_enough() -> None:
    """Followed with its four capabilities, in whatever way the kernel has."""
    said = {}
    for held in ("+bpf,+perfmon,+net_admin,+sys_ptrace", "+net_admin,+sys_ptrace"):
        less = f"-all,{held}"
        argv = ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}"]
        done = subprocess.run(
            [*argv, sys.executable, "-c", FOLLOW], capture_output=True, text=True
        )
        said[held] = done.stdout.strip()
    with_them, without = said.values()
    assert with_them == "followed", said
    assert without.startswith("not followed: "), said


@pytest.mark.skipif(os.geteuid() != 0, reason="loads programs: run as root")
def test_what_was_lost_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a ring that is given up, and by the next one, which begins at none."""
    told: list[Notice] = []
    thread = Handins(Naming(), told.append)

    def lose(number: int) -> None:
        assert thread._state
        state = list(handins._STATE.unpack(thread._state.get(KEY0) or b""))
        thread._state.put(KEY0, handins._STATE.pack(number, *state[1:]))

    try:
        thread._load(probe=True)
        lose(5)
        thread._joiner.forgotten = 2
        thread._count_lost()
        thread._count_lost()
        lose(6)
        thread._close()
        thread._load(probe=True)
        thread._count_lost()
        thread._joiner.forgotten = 3
        thread._count_lost()
    finally:
        thread._close()
    assert [notice.fields["LOST_HANDED_IN"] for notice in told] == ["7", "1", "1"]


@pytest.mark.parametrize("text", ["x\ny", "\x1b[2J", "\udcff\u202e", "n" * 4096])
def test_no_name_of_a_process_ends_a_line(text: str) -> None:
    """Of what is told of hand-ins, limits, and who reached for the guard."""
    by = replace(SCRIPT, comm=text, args=(text,), cwd=f"/{text}", unit=text)
    script = CallingScript(text, "request", text, text, text)
    toucher = replace(finding(), comm=text, exe=text, args=(text,), unit=text)
    raw = abi.RawEvent(abi=abi.ABI, kind=abi.EventKind.TAMPER, act=abi.Act.MAP)
    event = unpack_event(bytes(raw))
    window = Window(0)
    limit = Limit("x", "folder", "defer", (1, None), (None, None))
    for notice in (
        handin._notice_of(queued(b"A"), (POSTDROP, MAIL, by), script, Naming()),
        touched_notice(event, toucher),
        limit_notice(Met(limit, f"folder /srv/{text}", 0, window), True),
    ):
        assert notice.message.isprintable()
        [said] = [line for line in lines(notice) if line.startswith("MESSAGE=")]
        assert said.isprintable()
