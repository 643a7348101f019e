# SPDX-License-Identifier: GPL-2.0-or-later
"""The header that leads from a mail to its sender: only ours, and it tells nobody."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import BadToken, MtaError
from guard.mta.origintoken import (
    HEADER,
    Keys,
    add_key,
    check_token,
    make_token,
    read_keys,
)
from tests.lab import wait_until
from tests.mta.desk import Desk, is_by
from tests.mta.mailhost import POLICY

KEY, OTHER = bytes(range(32)), bytes(32)
FILE = "/etc/smtp-guard/token.keys"
TOKEN = make_token(KEY, "2b6c0d1e-4a1", "1a2b.6745f0c2.3d.0")
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def test_a_token_is_its_keys_and_nobody_elses() -> None:
    assert check_token([KEY], TOKEN) == TOKEN
    assert check_token([OTHER, KEY], f" {TOKEN.upper()} ") == TOKEN
    with pytest.raises(BadToken, match="key that this host does not have"):
        check_token([OTHER], TOKEN)
    assert make_token(KEY, "2b6c0d1e-4a1", "1a2b.6745f0c2.3e.0")[:20] != TOKEN[:20]


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from(LETTERS))
def test_no_letter_of_it_can_be_changed(place: int, letter: str) -> None:
    changed = TOKEN[:place] + letter + TOKEN[place + 1 :]
    if changed == TOKEN:
        return
    with pytest.raises(BadToken):
        check_token([KEY], changed)


@given(st.text(max_size=80))
def test_any_other_text_is_none(text: str) -> None:
    with pytest.raises(BadToken) as refused:
        check_token([KEY], text)
    assert str(refused.value).isprintable()


def test_keys_are_kept_in_order_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "token.keys"
    assert len(add_key(path, 3, os.getegid())) == 1
    first = make_token(read_keys(path)[0], "c", "i")
    for _ in range(2):
        add_key(path, 3, os.getegid())
    assert check_token(read_keys(path), first) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert len(add_key(path, 3, os.getegid())) == 3
    with pytest.raises(BadToken, match="does not have"):
        check_token(read_keys(path), first)
    assert os.listdir(tmp_path) == ["token.keys"]


def linked(path: Path) -> None:
    path.symlink_to(path.rename(f"{path}.1"))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda path: path.chmod(0o644), "can be read by others"),
        (lambda path: path.chmod(0o660), "written by its group"),
        (lambda path: os.chown(path, 1, 0), "no file of root's"),
        (lambda path: path.write_text("short"), "holds no keys"),
        (lambda path: path.write_text(""), "holds no keys"),
        (lambda path: path.write_bytes(b"\xff" * 64), "holds no keys"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: linked(path), "symbolic links"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "no file of root's"),
    ],
)
def test_a_file_that_cannot_be_relied_on(
    tmp_path: Path, spoil: object, word: str
) -> None:
    path = tmp_path / "token.keys"
    add_key(path, 3, os.getegid())
    keys = Keys()
    keys.use(path)
    keys.renew()
    made = keys.token("c", "i")
    assert made and not keys.trouble
    spoil(path)  # type: ignore[operator]
    with pytest.raises(MtaError, match=word):
        read_keys(path)
    keys.renew()  # told, and the keys that it has stay
    assert word in keys.trouble and keys.token("c", "i") == made


@pytest.fixture(scope="module")
def signing(desk: Desk) -> Iterator[Desk]:
    """A desk that writes the header: Postfix asks at DATA, too."""
    assert desk.guard.ctl("token-key").returncode == 0
    with desk.postfix.asking("smtpd_data_restrictions"):
        desk.guard.apply(f'{POLICY}token_keys = "{FILE}"\n')
        yield desk
        desk.guard.apply(POLICY)


def token_of(desk: Desk, mark: str) -> str:
    """Give the token in the header of a delivered message."""
    content = str(desk.postfix.delivered(mark, 60)["content"])
    head = content.partition("\n\n")[0]
    found = [line for line in head.splitlines() if line.startswith(f"{HEADER}:")]
    assert len(found) == 1, content
    return found[0].partition(": ")[2].strip()


def test_a_delivered_mail_leads_to_its_process(signing: Desk) -> None:
    to = "a@example.org,b@example.org,c@example.org"
    done = signing.swaks("--to", to, "--header", "Subject: token of three")
    [queue_id] = signing.ids_of(done.stdout)
    token = token_of(signing, "token of three")
    assert signing.told(queue_id)["token"] == token
    [row] = signing.who_sent("--token", token)
    is_by(row, done)
    assert row["queue_id"] == queue_id
    for word in ("www-data", "33", str(done.pid), "swaks", "shop"):
        assert word not in token or len(word) < 3
    # of the next message it is another
    signing.swaks("--header", "Subject: token of one")
    assert token_of(signing, "token of one")[:20] != token[:20]


def test_forged_foreign_and_unknown_are_told_apart(signing: Desk) -> None:
    done = signing.swaks("--header", "Subject: to be forged")
    token = token_of(signing, "to be forged")
    signing.told(*signing.ids_of(done.stdout))
    for asked, status, word in (
        (token, 0, ""),
        (token[:-1] + ("a" if token[-1] != "a" else "q"), 65, "did not make it"),
        (TOKEN, 65, "key that this host does not have"),
        ("nonsense", 65, "no token"),
    ):
        answer = signing.guard.ctl("who-sent", "--token", asked)
        assert answer.returncode == status and word in answer.stderr, answer
    keys = read_keys(signing.lab.path(FILE))
    never = make_token(keys[0], "never", "sent")
    answer = signing.guard.ctl("who-sent", "--token", never)
    assert answer.returncode == 1 and "has no such message" in answer.stderr
    answer = signing.guard.ctl("who-sent", "4jZ0BV37cFz1f", "--token", token)
    assert answer.returncode == 2


def test_a_new_key(signing: Desk) -> None:
    """Taken up without a restart; tokens of the old one are still known."""
    signing.swaks("--header", "Subject: by the old key")
    old = token_of(signing, "by the old key")
    assert signing.guard.ctl("token-key").returncode == 0
    name = old[:6]
    number = iter(range(100))

    def new() -> str:
        mark = f"by the new key {next(number)} of it"
        signing.swaks("--header", f"Subject: {mark}")
        token = token_of(signing, mark)
        return token if token[:6] != name else ""

    token = wait_until(new, "a token of the new key", 60)
    for one in (old, token):
        assert wait_until(partial(signing.who_sent, "--token", one), one, 30)


def test_without_a_key_mail_flows_and_it_is_told(signing: Desk) -> None:
    signing.lab.path(FILE).rename(signing.lab.path(f"{FILE}.away"))
    try:
        signing.stop_guard()
        signing.start_guard()
        assert signing.ids_of(signing.swaks().stdout)
        signing.lab.path(f"{FILE}.away").rename(signing.lab.path(FILE))
        wait_until(
            lambda: bool(
                signing.told(*signing.ids_of(signing.swaks().stdout))["token"]
            ),
            "a header again",
            60,
        )
    finally:
        if signing.lab.path(f"{FILE}.away").exists():
            signing.lab.path(f"{FILE}.away").rename(signing.lab.path(FILE))
