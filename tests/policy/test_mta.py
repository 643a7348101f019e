# SPDX-License-Identifier: GPL-2.0-or-later
"""[mta]: a socket in a folder of its own, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.errors import PolicyError
from guard.policy import parse
from guard.policy.describe import policy_json

SOCKET = "/var/spool/postfix/smtp-guard/policy"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", None),
        ("[mta]", None),
        ("[mta]\nsocket = false", None),
        (f'[mta]\nsocket = "{SOCKET}"', Path(SOCKET)),
    ],
)
def test_a_socket_or_none(text: str, path: Path | None) -> None:
    policy = parse(f'mode = "observe"\n{text}')
    assert policy.mta.socket == path
    assert policy_json(policy)["mta"] == {
        "socket": str(path) if path else None,
        "mode": "observe",
        "relay_mynetworks": True,
        "unknown": "pass",
        "token_keys": None,
        "limits": [],
    }


@pytest.mark.parametrize(
    "value",
    [
        *("true", "1", '""', '"policy"', '"/policy"', '"/run/policy"', "[]"),
        *('"/var/spool/../etc/x/y"', '"/a/b/c\\u0000d"', f'"/var/{"x" * 99}/a/b"'),
    ],
)
def test_what_is_no_socket_is_refused(value: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(f'mode = "observe"\n[mta]\nsocket = {value}')
    assert refused.value.problems


def test_unknown_keys_are_named() -> None:
    with pytest.raises(PolicyError, match="unknown key"):
        parse('mode = "observe"\n[mta]\nsockets = "/a/b/c"')


DECIDES = f'mode = "enforce"\n[mta]\nsocket = "{SOCKET}"\n'
LIMIT = '[[mta.limit]]\nname = "users"\nby = "user"\naction = "defer"\n'


def messages(text: str) -> str:
    """Give all that is wrong with a policy, errors and warnings."""
    try:
        found: tuple[object, ...] = parse(text).warnings
    except PolicyError as error:
        found = error.problems
    return "\n".join(map(str, found))


def test_who_must_log_in_and_in_which_mode() -> None:
    policy = parse(f'{DECIDES}relay_mynetworks = false\nunknown = "defer"\n')
    assert not policy.mta.relay_mynetworks and policy.mta.unknown == "defer"
    assert not policy.mta_enforces  # observed until it is said otherwise
    text = f'{DECIDES}relay_mynetworks = false\nmode = "enforce"\n'
    assert parse(text).mta_enforces
    observing = text.replace('mode = "enforce"', 'mode = "observe"', 1)
    assert not parse(observing).mta_enforces
    assert "nothing is refused while" in messages(observing)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[mta]\nrelay_mynetworks = false", "there is no socket"),
        (f"[mta]\n{LIMIT}messages_per_hour = 3", "there is no socket"),
        ('[mta]\ntoken_keys = "/a/b"', "there is no socket"),
        ('[mta]\nmode = "enforce"', "there is nothing to refuse"),
        ('[mta]\nunknown = "defer"', "nobody is unknown"),
        (f'[mta]\nsocket = "{SOCKET}"\ntoken_keys = "/a/b"', "no such file"),
        (f'[mta]\nsocket = "{SOCKET}"\ntoken_keys = "a"', "no folder's whole path"),
        ("[mta]\nlimit = 3", "not a list of limits"),
    ],
)
def test_what_makes_no_sense_is_told(text: str, word: str) -> None:
    assert word in " ".join(messages(f'mode = "observe"\n{text}').split())


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ("", "it limits nothing"),
        ("messages_per_hour = 0", "is not a count"),
        ("messages_per_hour = 3\nbelow = '/srv'", "is about folders"),
        ("messages_per_hour = 3\nrule = 'nobody'", "is no rule that lets somebody"),
        ("messages_per_hour = 3\nname = 'ü'", "TOML"),
        ("messages_per_day = 3", "messages_per_hour"),
    ],
)
def test_limits_that_make_no_sense(keys: str, word: str) -> None:
    if word == "TOML":
        text = DECIDES + LIMIT.replace("users", "ü") + "messages_per_hour = 3"
        word = "not plain ASCII"
    else:
        text = f"{DECIDES}{LIMIT}{keys}"
    assert word in " ".join(messages(text).split())


def test_a_limit() -> None:
    keys = "messages_per_minute = 5\nrecipients_per_hour = 7\n"
    [limit] = parse(f"{DECIDES}{LIMIT}{keys}").mta.limits
    assert (limit.messages, limit.recipients) == ((5, None), (None, 7))
    assert "is taken by a limit" in messages(f"{DECIDES}{f'{LIMIT}{keys}' * 2}")
    assert "one folder whose subfolders" in messages(
        f"{DECIDES}{LIMIT.replace('user', 'folder')}{keys}"
    )


@pytest.mark.parametrize(
    ("keys", "vouches"),
    [
        ('user = "root"', True),
        ('unit = "cron.service"', True),
        ("ports = [25]", False),
        ("ports = [25]\nlogin = false", True),
        ('user = "root"\nlogin = true', False),
    ],
)
def test_which_rules_stand_for_a_login(keys: str, vouches: bool) -> None:
    rule = f'[[local.rule]]\nname = "x"\nverdict = "allow"\n{keys}\n'
    policy = parse(f'mode = "observe"\n{rule}')
    assert policy.rules[0].vouches is vouches
    [told] = policy_json(policy)["rules"]  # type: ignore[misc]
    assert told["login"] is not vouches


@pytest.mark.parametrize(
    ("table", "keys", "word"),
    [
        ("rule", 'user = "root"\nlogin = true', "is about the host's own mail server"),
        ("rule", 'user = "root"\nfolder = "/srv"', "is about the host's own"),
        ("local.rule", 'folder = "/srv"', "any process can go into"),
        ("local.rule", 'user = "root"\nfolder = "srv"', "no folder's whole path"),
        ("local.rule", 'user = "root"\nfolder = "/"', "no folder's whole path"),
        ("local.rule", 'user = "root"\nfolder = "/a/../b"', "no folder's whole path"),
        ("local.rule", 'user = "root"\nlogin = true\nfolder = "/a"', "asks everybody"),
    ],
)
def test_rules_that_say_too_much(table: str, keys: str, word: str) -> None:
    text = f'mode = "observe"\n[[{table}]]\nname = "x"\nverdict = "allow"\n{keys}\n'
    assert word in " ".join(messages(text).split())
    denied = text.replace('"allow"', '"deny"')
    if table == "local.rule" and word == "asks everybody":
        assert "who is denied sends nothing" in " ".join(messages(denied).split())
