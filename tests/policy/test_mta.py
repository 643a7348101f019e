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
    assert policy_json(policy)["mta"] == {"socket": str(path) if path else None}


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
