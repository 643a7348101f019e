# SPDX-License-Identifier: GPL-2.0-or-later
"""Executables that a rule names, replaced under load: never a lawful denial.

The program is a real one in a folder that only root can write; what runs from
before, and what starts after, are both the mail server.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.site import Guardd, Site, Tally, policy
from tests.journald import until


@pytest.fixture
def program(site: Site) -> Path:
    program = site.folder / "mta" / "smtp"
    site.install(program)
    return program


@pytest.fixture
def guardd(site: Site, program: Path) -> Guardd:
    site.write_policy(policy(site.port, allow=f'exe = "{program}"'))
    return site.start()


class Starting(threading.Thread):
    """Starts the program again and again, each start a connect."""

    def __init__(self, site: Site, program: Path) -> None:
        super().__init__()
        self.site, self.program = site, program
        self.enough = False
        self.tallies: list[Tally] = []

    def run(self) -> None:
        while not self.enough:
            try:
                self.tallies.append(self.site.connect(1, self.program))
            except FileNotFoundError:  # deleted at the moment
                continue

    def __enter__(self) -> Starting:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.enough = True
        self.join()


def replacing(site: Site, program: Path) -> Iterator[None]:
    """Give a turn to replace the program; meanwhile it runs and is started."""
    old = site.load(pause_us=100, program=program)
    with Starting(site, program) as starting:
        until(lambda: len(starting.tallies) > 3, "starts before")
        yield
        before = len(starting.tallies)
        until(lambda: len(starting.tallies) > before + 10, "starts after")
    ran = site.tally(old)
    assert ran.tried == ran.passed > 10, ran
    assert [t for t in starting.tallies if t.denied] == []
    assert site.connect(1).denied == 1, "everybody may connect: no test"


def test_replaced_by_a_rename(site: Site, guardd: Guardd, program: Path) -> None:
    for _ in replacing(site, program):
        for _ in range(200):
            site.install(program)
    assert "Traceback" not in guardd.said()


def test_deleted_and_installed_anew(site: Site, guardd: Guardd, program: Path) -> None:
    for _ in replacing(site, program):
        for _ in range(50):
            program.unlink()
            site.install(program)


def test_an_old_process_after_guardd_was_restarted(
    site: Site, guardd: Guardd, program: Path
) -> None:
    """Its file has no name any more: only the inode that a rule no longer has."""
    old = site.load(pause_us=1000, program=program)
    site.install(program)
    guardd.end()
    site.start()
    for _ in range(3):
        site.install(program)
    site.connect(50, program)
    assert site.tally(old).denied == 0


def test_its_directory_replaced(site: Site, guardd: Guardd, program: Path) -> None:
    folder = program.parent
    for _ in range(5):
        new = folder.with_name("new")
        site.install(new / program.name)
        old = folder.with_name("old")
        folder.rename(old)
        new.rename(folder)
        guardd.until(lambda: site.connect(1, program).passed, "the new one")
        shutil.rmtree(old)
    assert site.connect(1).denied == 1


def test_a_symlink_switched(site: Site) -> None:
    link = site.folder / "current"
    versions = [site.folder / f"v{number}" for number in range(3)]
    for version in versions:
        site.install(version / "smtp")
    link.symlink_to(versions[0])
    site.write_policy(policy(site.port, allow=f'exe = "{link}/smtp"'))
    guardd = site.start()
    assert site.connect(1, link / "smtp").passed == 1
    for version in (*versions[1:], *versions):
        new = link.with_name("next")
        new.symlink_to(version)
        new.rename(link)
        guardd.until(lambda: site.connect(1, link / "smtp").passed, str(version))
        # and what is inside of it, at once
        site.install(version / "smtp")
        assert site.connect(1, link / "smtp").passed == 1
    assert site.connect(1).denied == 1


def test_appearing_only_later(site: Site) -> None:
    program = site.folder / "opt" / "mail" / "smtp"
    site.write_policy(policy(site.port, allow=f'exe = "{program}"'))
    guardd = site.start()
    program.parent.parent.mkdir()
    site.install(program)
    guardd.until(lambda: site.connect(1, program).passed, "the program")
    assert site.connect(1).denied == 1


def test_no_longer_roots_alone_is_no_longer_lawful(
    site: Site, guardd: Guardd, program: Path
) -> None:
    assert site.connect(1, program).passed == 1
    program.chmod(0o777)
    assert site.connect(1, program).denied == 1
    program.chmod(0o755)
    assert site.connect(1, program).passed == 1


def test_a_file_of_that_name_in_another_folder_is_not_lawful(
    site: Site, guardd: Guardd, program: Path
) -> None:
    other = site.folder / "elsewhere" / program.name
    site.install(other)
    assert site.connect(1, other).denied == 1
    hard_link = site.folder / "linked"
    subprocess.run(["ln", program, hard_link], check=True)
    # the same file: root made the link, and it is the same program
    assert site.connect(1, hard_link).passed == 1
