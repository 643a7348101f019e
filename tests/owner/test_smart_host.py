# SPDX-License-Identifier: GPL-2.0-or-later
"""The owner design follows the smart host as well: addresses and port in netfilter."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator

import pytest

from guard.policy.smarthost import ANSWERS, ASKED
from tests.journald import until
from tests.kernel.world import MX4, MX6
from tests.owner.conftest import KINDS, Host, guardctl

NAME = "[relay.owner.example]:25"
OTHER = "198.51.100.77"
RULES = """\
[[rule]]
name = "nobody"
user = "nobody"
to = "smart-host"
verdict = "allow"
"""
NOBODY = 65534


@pytest.fixture
def answers() -> Iterator[None]:
    """Have the file that `guardd --resolve` writes; tests/smarthost has that itself."""
    there = ANSWERS.parent.exists()
    ANSWERS.parent.mkdir(exist_ok=True)
    yield
    ANSWERS.unlink(missing_ok=True)
    ASKED.unlink(missing_ok=True)
    if not there:
        ANSWERS.parent.rmdir()


def answer(*addresses: str) -> None:
    new = ANSWERS.with_suffix(".test")
    new.write_text(json.dumps({"name": NAME, "addresses": list(addresses)}))
    new.rename(ANSWERS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_go_with_the_smart_host(host: Host, answers: None, kind: str) -> None:
    assert host.connect(MX4, uid=NOBODY).errno == 0, "the control"
    assert host.connect(MX6, uid=NOBODY).errno == 0, "the control"
    answer(MX4)
    host.policy(kind, RULES)
    text = host.site.policy_file.read_text()
    host.site.write_policy(f'smart_host = "{NAME}"\n{text}')
    host.site.start("--design", "owner", netns=host.netns)
    assert host.connect(MX4, uid=NOBODY).errno == 0
    assert host.connect(MX6, uid=NOBODY).errno == errno.ECONNREFUSED
    assert host.connect(MX4).errno == errno.ECONNREFUSED, "another user"

    answer(MX4, MX6)
    until(lambda: host.connect(MX6, uid=NOBODY).errno == 0, "the new address")
    assert host.connect(MX4, uid=NOBODY).errno == 0
    answer(MX6)
    until(
        lambda: host.connect(MX4, uid=NOBODY).errno == errno.ECONNREFUSED,
        "the end of the old one",
    )
    assert host.connect(MX6, uid=NOBODY).errno == 0
    shown = guardctl(host, "status", "--json")
    assert json.loads(shown.stdout)["smart_host"]["addresses"] == [MX6]
