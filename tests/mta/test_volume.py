# SPDX-License-Identifier: GPL-2.0-or-later
"""2,000 messages of 50 origins at once: each queue id leads to its own, and no other.

The truth is what the generator did, see tests/mta/crowd.py.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.lab import Lab, wait_until
from tests.lab.guarded import Guard, start_journald
from tests.mta import crowd
from tests.mta.crowd import MESSAGES, Origin, Truth
from tests.mta.desk import LOG, Desk
from tests.mta.mailhost import POLICY, XCLIENT_PORT, MailHost
from tests.mta.others import relay_by_exim, relay_by_nullmailer, relays
from tests.mta.test_sendmail import await_following

# What is taken goes nowhere, and an smtpd lives as long as elsewhere.
_MAIN_CF = """\
transport_maps = inline:{ volume.example=discard: }
max_use = 100
"""


@pytest.fixture(scope="module")
def origins(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> list[Origin]:
    there = relays(lab, tmp_path_factory.mktemp("packages"))
    origins = crowd.crowd(there)
    lab.check(["chmod", "1777", "/tmp"])
    crowd.furnish(lab, origins)
    return origins


@pytest.fixture(scope="module")
def desk(lab: Lab, origins: list[Origin]) -> Iterator[Desk]:
    start_journald(lab)
    postfix = MailHost(lab)
    path = lab.path("/etc/postfix/main.cf")
    text = re.sub(r"(?m)^(transport_maps|max_use).*\n", "", path.read_text())
    path.write_text(text + _MAIN_CF)
    postfix.start()
    postfix.start_haproxy()
    for one in origins:
        if one.kind == "relayed nullmailer":
            relay_by_nullmailer(lab)
        if one.kind == "relayed exim":
            relay_by_exim(lab)
    desk = Desk(lab, postfix, Guard(lab, POLICY))
    desk.start_guard()
    await_following(desk)
    yield desk
    desk.guard.stop()


@pytest.fixture(scope="module")
def sent(desk: Desk, origins: list[Origin]) -> dict[str, Truth]:
    """Send them all; gives the truth by queue id."""
    crowd.start(desk.lab, origins)
    sent = crowd.send(desk.lab, origins)
    truth = wait_until(
        lambda: (
            found
            if len(found := crowd.queue_ids(desk.postfix.log(), sent)) >= MESSAGES
            else None
        ),
        f"{MESSAGES} queue ids in the log",
    )
    assert truth is not None
    return truth


@pytest.fixture(scope="module")
def answers(desk: Desk, sent: dict[str, Truth]) -> crowd.Answers:
    """Ask for every queue id until each has an answer, or none has come for long."""
    found = crowd.ask(desk.lab, list(sent))
    missing = {queue_id for queue_id, rows in found.items() if not rows}

    def more() -> bool:
        found.update(crowd.ask(desk.lab, list(missing)))
        return all(found.values()) or any(found[queue_id] for queue_id in missing)

    # of what Postfix got no answer to there will be none without the log
    while len(missing) > crowd.unanswered(desk.postfix.log()):
        wait_until(more, f"an answer for {missing}")
        missing = {queue_id for queue_id in missing if not found[queue_id]}

    def joined() -> bool:
        found.update(crowd.ask(desk.lab, list(missing), LOG))
        return all(found[one] and found[one][0]["origin"] for one in missing)

    if missing:
        with contextlib.suppress(TimeoutError):
            wait_until(joined, f"connections of {missing}")
    return found


def test_every_queue_id_leads_to_its_origin(
    desk: Desk, sent: dict[str, Truth], answers: crowd.Answers
) -> None:
    assert len(sent) == len({one.sender for one in sent.values()}) == MESSAGES
    for queue_id, one in sent.items():  # the log says what the clients were told
        assert one.queue_id in ("", queue_id)
    assert crowd.differences(sent, answers) == {}
    joined = [rows for rows in answers.values() if rows[0]["how"] == crowd.JOINED]
    assert len(joined) <= crowd.unanswered(desk.postfix.log())


def test_they_were_at_it_at_once(desk: Desk, sent: dict[str, Truth]) -> None:
    """What is above would be easy one after the other."""
    busy: dict[str, set[int]] = defaultdict(set)
    for line in desk.postfix.log().splitlines():
        if found := re.match(r"(\S+ +\d+ \S+) .*qmgr.*: (\w+): from=", line):
            busy[found[1]].add(sent[found[2]].origin.number)
    assert max(map(len, busy.values())) >= 20, busy


def test_guardctl_says_the_same(desk: Desk, sent: dict[str, Truth]) -> None:
    """The verb itself, for one message of each kind of origin."""
    sample = {one.origin.kind: queue_id for queue_id, one in sent.items()}
    assert len(sample) >= 16
    told = {
        queue_id: desk.who_sent(queue_id, "--log", LOG) for queue_id in sample.values()
    }
    assert crowd.differences({one: sent[one] for one in told}, told) == {}


def test_a_message_that_is_told_as_anothers(desk: Desk, origins: list[Origin]) -> None:
    """The control, by a real wrong answer: XCLIENT gives the ends of another's."""
    [one] = [one for one in origins if one.kind == "smtp swaks"]
    whose = {"user": one.user, "unit": f"system.slice/{one.unit}", "cwd": one.folder}
    begin = ["--to", "somebody@volume.example", "--from"]
    first = desk.swaks(*begin, "first@host.example.net", **whose)
    [first_id] = desk.ids_of(first.stdout)
    port = desk.told(first_id)["client"]["port"]
    ends = f"ADDR=127.0.0.1 PORT={port} DESTADDR=127.0.0.1 DESTPORT=25"
    server = f"127.0.0.1:{XCLIENT_PORT}"
    last = desk.swaks(
        *begin, "last@host.example.net", "--xclient", ends, server=server, **whose
    )
    [last_id] = desk.ids_of(last.stdout)
    truth = {
        first_id: Truth(one, "first@host.example.net", first.pid),
        last_id: Truth(one, "last@host.example.net", last.pid),
    }
    told = {queue_id: [desk.told(queue_id)] for queue_id in truth}
    wrong = crowd.differences(truth, told)
    assert wrong.keys() == {last_id}
    assert f"pid {first.pid} for {last.pid}" in wrong[last_id]


def test_a_wrong_mapping_is_told(
    sent: dict[str, Truth], answers: crowd.Answers
) -> None:
    """The control: answers that are another's, in any way, are each found."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for queue_id, one in sent.items():
        kinds[one.origin.kind].append(queue_id)
    for ids in kinds.values():
        first = ids[0]
        others = (one for one in sent if sent[one].origin is not sent[first].origin)
        last = next(others)
        two = {first: sent[first], last: sent[last]}
        swapped = {first: answers[last], last: answers[first]}
        assert crowd.differences(two, swapped).keys() == two.keys()
        one = {first: sent[first]}
        for change in ("pid", "uid", "unit", "exe", "cwd"):
            changed = copy.deepcopy(answers[first])
            if (by := changed[0]["origin"]) is None:
                by = changed[0]["handed_in"]["caller"]
            by[change] = "another"
            named = not sent[first].origin.kind.startswith("relayed")
            told = first in crowd.differences(one, {first: changed})
            assert told is (named or change in ("unit", "exe"))
        assert crowd.differences(one, {first: []})
        assert crowd.differences(one, {first: answers[first] * 2})
