# SPDX-License-Identifier: GPL-2.0-or-later
"""Several files replaced together: killed, what somebody wrote since is not lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from guard.mail.transaction import Target, commit, pending, roll_back

OLD, NEW, HIS = "old\n", "new\n", "by hand\n"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder where all files are new, and the process that made them is dead."""
    (tmp_path / "state").mkdir(mode=0o700)
    for name in ("a", "gone"):
        (tmp_path / name).write_text(OLD)
    targets = [Target(tmp_path / name, NEW.encode()) for name in ("a", "fresh")]
    targets.append(Target(tmp_path / "gone", None))
    if not (pid := os.fork()):
        die = signal.raise_signal
        try:
            commit(
                tmp_path / "state",
                targets,
                lambda: die(signal.SIGKILL),
                lambda: None,
            )
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == (tmp_path / "fresh").read_text() == NEW
    assert not (tmp_path / "gone").exists()
    assert pending(tmp_path / "state")
    return tmp_path


def left(folder: Path) -> dict[str, str]:
    return {
        str(x.relative_to(folder)): x.read_text()
        for x in folder.rglob("*")
        if x.is_file()
    }


def test_all_is_as_before(killed: Path) -> None:
    told = roll_back(killed / "state")
    assert told == [str(killed / name) for name in ("a", "fresh", "gone")]
    assert left(killed) == {"a": OLD, "gone": OLD}
    assert not pending(killed / "state")
    assert roll_back(killed / "state") == []


@pytest.mark.parametrize("name", ["a", "fresh", "gone"])
@pytest.mark.parametrize("in_place", [True, False])
def test_what_somebody_wrote_since_stays_beside_it(
    killed: Path, name: str, in_place: bool
) -> None:
    if in_place:
        (killed / name).write_text(HIS)
    else:
        (killed / "draft").write_text(HIS)
        (killed / "draft").rename(killed / name)
    told = roll_back(killed / "state")
    kept = f"{name}.smtp-guard-edited"
    assert told[-1] == f"{killed / kept} has what somebody wrote since"
    assert left(killed) == {"a": OLD, "gone": OLD, kept: HIS}


def test_a_roll_back_that_is_killed_itself(killed: Path) -> None:
    """Begun again it takes what is back already for nobody's edit."""
    (killed / ".a.smtp-guard-old").rename(killed / "a")
    roll_back(killed / "state")
    assert left(killed) == {"a": OLD, "gone": OLD}
