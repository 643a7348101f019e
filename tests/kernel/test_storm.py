# SPDX-License-Identifier: GPL-2.0-or-later
"""20,000 processes that fork, connect and exit at once: each is fully known.

What reads /proc afterwards loses exactly these. Once through the ring, and once
through guardd into a real journald.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from guard.abi import Counter, Direction, Flag
from guard.event import Event
from guard.kernel import OBJECT, Guard
from tests.faults.site import Site
from tests.kernel.world import SMTP, Child, Watch, World, compile_c
from tests.lab.lab import join_cgroup, wait_until

HOW_MANY = 20_000
STORMS = 2  # programs that fork them, each another executable
PER_STORM = HOW_MANY // STORMS
LIMIT = 60  # seconds
# All that they cause fits: nothing is lost however little of the CPU a reader or
# journald gets. An event here has 1,000 bytes.


@dataclass(frozen=True)
class Life:
    """What one of the processes was, as it said itself."""

    pid: int
    uid: int
    port: int
    exe: str
    cwd: str
    args: tuple[str, ...]


Lives = dict[tuple[int, int], Life]  # by source port and pid


@dataclass
class Storm:
    """The programs, and what they are told."""

    programs: list[Path]
    folders: list[Path]

    def argv(self, program: Path, number: int = 0) -> list[str]:
        folders = [str(folder) for folder in self.folders]
        return [str(program), str(SMTP), str(PER_STORM), *folders, f"{number:08}"]

    @contextlib.contextmanager
    def running(self, cgroup: Path) -> Iterator[list[subprocess.Popen[str]]]:
        processes = [
            subprocess.Popen(
                self.argv(program),
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: join_cgroup(cgroup),
            )
            for program in self.programs
        ]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.communicate()

    def lives(self, processes: list[subprocess.Popen[str]]) -> Lives:
        """Wait for the end, and give what each process was, by port and pid."""
        found = {}
        for program, process in zip(self.programs, processes, strict=True):
            out, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0
            for line in out.splitlines():
                number, pid, uid, port, folder, error = map(int, line.split())
                assert error == 0, os.strerror(error)
                found[port, pid] = Life(
                    pid,
                    uid,
                    port,
                    str(program),
                    str(self.folders[folder]),
                    tuple(self.argv(program, number)),
                )
        assert len(found) == HOW_MANY
        return found


@pytest.fixture(scope="module")
def storm(programs: Path) -> Storm:
    folders = [programs / f"vhost{number}" / "public_html" for number in range(7)]
    for folder in folders:
        folder.mkdir(parents=True)
    names = [programs / f"storm{number}" for number in range(STORMS)]
    return Storm([compile_c("storm.c", name) for name in names], folders)


@pytest.fixture
def accepting(world: World) -> Iterator[None]:
    """A mail server that hangs up at once, in a process of its own."""
    with world.listen(world.host, "127.0.0.1") as server:
        server.settimeout(None)

        def serve() -> None:
            while True:
                server.accept()[0].close()

        child = Child(serve, world.free)
        yield
        child.kill()


def life_of(event: Event) -> Life:
    return Life(event.pid, event.uid, event.src[1], event.exe, event.cwd, event.args)


def compare(said: Lives, found: list[Life]) -> None:
    by_key = {(life.port, life.pid): life for life in found}
    assert len(found) == len(by_key), "some are there twice"
    lost = said.keys() - by_key.keys()
    assert not lost, f"{len(lost)} lost"
    wrong = [(said[key], life) for key, life in by_key.items() if said[key] != life]
    assert not wrong, (len(wrong), wrong[0])
    assert len(found) == HOW_MANY


@pytest.fixture
def watched(world: World) -> Iterator[Watch]:
    """A guard of the test's own, its ring of the usual size, at base / "storm"."""
    cgroup = world.base / "storm"
    cgroup.mkdir()
    guard = Guard.load(world.pin_dir.with_name(f"{world.name}-storm"), OBJECT)
    try:
        watch = Watch(guard)
        watch.apply("")
        guard.attach(cgroup)
        yield watch
        watch.close()
    finally:
        guard.unload()
        cgroup.rmdir()


def test_20000_short_lives_in_the_ring(
    world: World, watched: Watch, storm: Storm, accepting: None
) -> None:
    start = time.monotonic()
    with storm.running(world.base / "storm") as processes:
        # they end when what they print is read
        while watched.moved(Counter.JUDGED) < HOW_MANY:
            watched.poll(50)
            assert time.monotonic() - start < LIMIT
        said = storm.lives(processes)
    print(f"{HOW_MANY / (time.monotonic() - start):.0f} processes a second")
    connects = watched.connects()
    compare(said, [life_of(event) for event in connects])
    assert {event.direction for event in connects} == {Direction.LOCAL}
    assert not {event.flags & ~Flag.ANCESTORS_CUT for event in connects} - {0}
    assert watched.moved(Counter.LOST_RING) == 0
    wait_until(lambda: len(watched.closes()) == HOW_MANY, "all the ends", 20)
    assert {e.connection for e in watched.closes()} == {e.connection for e in connects}
    assert not list(watched.guard.map("owners").keys())


FIELDS = ("KIND", "PID", "UID", "SRC_PORT", "EXE", "CWD", "ARGS")


def test_20000_short_lives_in_the_journal(
    world: World, programs: Path, tmp_path: Path, storm: Storm, accepting: None
) -> None:
    with Site(tmp_path, storm.programs[0]) as site:
        site.write_policy('mode = "enforce"\n')
        guardd = site.start()
        start = time.monotonic()
        with storm.running(site.cgroup) as processes:
            said = storm.lives(processes)
        print(f"{HOW_MANY / (time.monotonic() - start):.0f} processes a second")
        for kind in ("local", "closed"):
            guardd.until(partial(all_there, site, kind), f"every {kind} finding", LIMIT)
        took = time.monotonic() - start
        print(f"{2 * HOW_MANY / took:.0f} findings a second in the journal")
        compare(said, found_in(site))
        assert entries(site, "closed") == HOW_MANY
        counted = site.guard.counters()
        assert not counted[Counter.LOST_RING] + counted[Counter.LOST_CLOSED]
        assert guardd.end() == 0


def all_there(site: Site, kind: str) -> bool:
    time.sleep(0.2)  # asking is work too, and takes it from those who write
    return entries(site, kind) >= HOW_MANY


def entries(site: Site, kind: str) -> int:
    """Count guardd's entries of a kind."""
    site.journald.sync()
    done = subprocess.run(
        ["journalctl", "-q", "--no-pager", "-o", "cat", "--output-fields=_PID"]
        + ["-D", str(site.journald.directory), f"SMTPGUARD_KIND={kind}"],
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.count(b"\n")


def found_in(site: Site) -> list[Life]:
    """Read the findings back, as `guardctl who-connected` would."""
    done = subprocess.run(
        ["journalctl", "-q", "--no-pager", "-o", "json", "--all"]
        + ["-D", str(site.journald.directory), "SMTPGUARD_KIND=local"]
        + ["--output-fields=" + ",".join(f"SMTPGUARD_{name}" for name in FIELDS)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = []
    for line in done.stdout.splitlines():
        entry = json.loads(line)
        _, pid, uid, port, exe, cwd, args = (
            entry[f"SMTPGUARD_{name}"] for name in FIELDS
        )
        found.append(
            Life(int(pid), int(uid), int(port), exe, cwd, tuple(json.loads(args)))
        )
    return found
