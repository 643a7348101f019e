# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd is killed while Postfix asks: an answer is written, or told as lost."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from guard.mta.owed import Owed
from tests.lab import wait_until
from tests.mta.desk import Desk
from tests.mta.mailhost import SOCKET
from tests.mta.test_delegation import REAL
from tests.mta.test_losses import lost

KILLS, CLIENTS = 6, 4


class Asker(threading.Thread):
    """An smtpd that goes on asking, whoever answers, and counts answers."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._end = threading.Event()
        self.asked = self.answered = 0

    def run(self) -> None:
        while not self._end.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as link:
                    link.settimeout(60)
                    link.connect(str(self._path))
                    while not self._end.is_set():
                        self.asked += 1
                        link.sendall(REAL + b"\n\n")
                        if link.recv(100) != b"action=DUNNO\n\n":
                            break
                        self.answered += 1
            except OSError:  # killed, or not there yet
                time.sleep(0.005)

    def end(self) -> None:
        self._end.set()
        self.join(60)


def written(desk: Desk) -> int:
    """Count the entries of messages."""
    argv = ["journalctl", "-qo", "cat", "--output-fields=SMTPGUARD_KIND"]
    out = desk.lab.check([*argv, "SMTPGUARD_KIND=message"], timeout=120)
    return out.count("message")


def test_every_answer_is_written_or_told_as_lost(desk: Desk) -> None:
    askers = [Asker(desk.lab.path(SOCKET)) for _ in range(CLIENTS)]
    for one in askers:
        one.start()
    try:
        for _ in range(KILLS):
            before = sum(one.answered for one in askers)
            wait_until(
                lambda before=before: sum(one.answered for one in askers) > before + 50,
                "some answers",
            )
            desk.stop_guard(signal.SIGKILL)
            desk.start_guard()
    finally:
        for one in askers:
            one.end()
    answered = sum(one.answered for one in askers)
    asked = sum(one.asked for one in askers)
    desk.stop_guard()  # what waits is written
    desk.start_guard()

    def settled() -> tuple[int, int] | None:
        found = written(desk), sum(lost(desk, "SMTPGUARD_LOST_MESSAGES"))
        return found if sum(found) >= answered else None

    kept, gone = wait_until(settled, f"{answered} messages written or told as lost")
    # a kill between the word and the answer, or the entry and the word, tells more
    assert answered <= kept + gone <= asked + KILLS
    assert gone > 0, "no kill met a message that was not written: this showed nothing"
    assert kept < answered, "the control: what was written alone is less"


def test_it_stays_when_its_process_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "run/x.owed"
    first = Owed(path)
    assert (first.left, first.trouble) == (0, "")
    first.put(7)
    assert Owed(path).left == 7  # as the next process finds it, without any close
    first.put(0)
    assert Owed(path).left == 0


@pytest.mark.parametrize("wrong", ["folder", "link"])
def test_no_place_for_it(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "x.owed"
    if wrong == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    owed = Owed(path)
    owed.put(3)
    assert owed.left is None and str(path) in owed.trouble
    assert not (tmp_path / "elsewhere").exists()
