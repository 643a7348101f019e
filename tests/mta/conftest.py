# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab for each test file: a Postfix that asks, a guard that answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.lab.guarded import Guard, start_journald
from tests.mta.desk import Desk
from tests.mta.mailhost import POLICY, MailHost


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def desk(lab: Lab) -> Iterator[Desk]:
    """All of it at work."""
    start_journald(lab)
    postfix = MailHost(lab)
    postfix.start()
    desk = Desk(lab, postfix, Guard(lab, POLICY))
    desk.start_guard()
    yield desk
    desk.guard.stop()
