# SPDX-License-Identifier: GPL-2.0-or-later
"""mail.toml changed by a verb: what the admin wrote beside it stays, however it is."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path

import pytest

from guard.errors import MailError, MailNotApplied
from guard.mail import edit
from guard.mail.planning import _shown
from guard.mail.transaction import commit, not_applied

HOST = "[relay.example.com]:587"
TABLE = f"""\
# of the admin's own
[smart_host]
host = "{HOST}"
user = "someuser"
password_file = "/etc/smtp-guard/old"
tls = "secure"
ca_file = "/etc/ssl/relay.pem"
authenticated_header = true

# Yahoo has few connections for us
[transports]
"yahoo.com" = "relaylim"

# the last words
"""
NEW = {"host": HOST, "user": "someuser", "password_file": "/etc/smtp-guard/new"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.toml"


def edited(path: Path, text: str, change: edit.Edit) -> str:
    path.write_text(text)
    path.chmod(0o644)
    return edit.edited(path, change)[1]


@pytest.mark.parametrize(
    "change",
    [
        edit.smart_host_on(NEW),
        edit.smart_host_off,
        edit.transport(".ru", "oneshot"),
        edit.transport("yahoo.com", None),
    ],
    ids=["set", "off", "transport set", "transport unset"],
)
def test_comments_stay_where_they_were(path: Path, change: edit.Edit) -> None:
    text = edited(path, TABLE, change)
    for before, after in (
        ("# Yahoo has few connections for us\n", "[transports]\n"),
        ("\n\n# the last words\n", ""),
    ):
        assert before + after in text, text
    assert text.startswith("# of the admin's own\n")


def test_a_new_password_leaves_what_else_was_asked_of_the_relay(path: Path) -> None:
    found = tomllib.loads(edited(path, TABLE, edit.smart_host_on(NEW)))["smart_host"]
    kept = {"tls": "secure", "ca_file": "/etc/ssl/relay.pem"}
    assert found.pop("authenticated_header") is True
    assert found == {**NEW, **kept}
    asked = edit.smart_host_on({**NEW, "tls": "encrypt", "authenticated_header": False})
    found = tomllib.loads(edited(path, TABLE, asked))["smart_host"]
    assert found["tls"] == "encrypt" and not found["authenticated_header"]
    other = {**NEW, "host": "[other.example]"}
    found = tomllib.loads(edited(path, TABLE, edit.smart_host_on(other)))["smart_host"]
    assert found == other


COMMENTED = f"""\
[smart_host]
# of our provider, ticket 4711
host = "{HOST}"   # no MX
# the account
user = "someuser"
password_file = "/etc/smtp-guard/old"  # root's
tls = "secure"   # do not lower
pin = true
# its last words

# of another
[transports]
".ru" = "oneshot"
"""


def test_comments_in_the_section_stay_with_their_lines(path: Path) -> None:
    text = edited(path, COMMENTED, edit.smart_host_on(NEW))
    assert text == COMMENTED.replace("guard/old", "guard/new")
    other: dict[str, object] = {"preset": "mailchannels", "user": "b"}
    other["password_file"] = "/b"
    text = edited(path, COMMENTED, edit.smart_host_on(other))
    assert tomllib.loads(text)["smart_host"] == other | {"pin": True}
    kept = [line for line in COMMENTED.splitlines() if line.startswith("#")]
    assert [line for line in text.splitlines() if line.startswith("#")] == kept


@pytest.mark.parametrize(
    "text",
    [
        f'smart_host = {{ host = "{HOST}", tls = "verify", pin = true }} # mine\n',
        f'smart_host.host = "{HOST}"\nsmart_host.tls = "verify"\nsmart_host.pin=true\n',
        "client_port_logging = true\nsmart_host = false\n",
    ],
    ids=["inline", "dotted", "false"],
)
def test_a_smart_host_written_otherwise(path: Path, text: str) -> None:
    before = tomllib.loads(text)
    found = tomllib.loads(edited(path, text, edit.smart_host_on(NEW)))
    section: dict[str, object] = dict(NEW)
    if before["smart_host"]:
        section |= {"tls": "verify", "pin": True}
    assert found == {**before, "smart_host": section}


INLINE = 'transports = { "Yahoo.com" = "relaylim", "a.example" = "oneshot" }\n'


def test_transports_on_one_line(path: Path) -> None:
    text = edited(path, INLINE, edit.transport(".ru", "oneshot"))
    assert tomllib.loads(text)["transports"] == {
        "Yahoo.com": "relaylim",
        "a.example": "oneshot",
        ".ru": "oneshot",
    }
    text = edited(path, INLINE, edit.transport("yahoo.com", None))
    assert tomllib.loads(text)["transports"] == {"a.example": "oneshot"}


@pytest.mark.parametrize(
    "text",
    [
        'transports."yahoo.com" = "relaylim"\n',
        'transports."yahoo.com" = "relaylim"\ntransports."b.example" = "oneshot"\n',
    ],
)
def test_keys_with_dots_are_edited_or_refused(path: Path, text: str) -> None:
    """tomlkit loses or misplaces some: never silently."""
    try:
        new = edited(path, text, edit.transport("yahoo.com", None))
    except MailError as error:
        assert "cannot be edited as it is written" in str(error)
        assert "[transports]" in str(error.hint)
    else:
        assert "yahoo.com" not in tomllib.loads(new)["transports"]


def test_its_mode_stays_and_nothing_else(path: Path, tmp_path: Path) -> None:
    path.write_text("client_port_logging = true\n")
    path.chmod(0o600)
    assert edit.written(path, "client_port_logging = true\n") == []
    (tmp_path / "state").mkdir(mode=0o700)
    targets = edit.written(path, "client_port_logging = false\n")

    def complain() -> None:
        assert path.read_text() == "client_port_logging = false\n"
        raise MailNotApplied("no")

    with pytest.raises(MailNotApplied):
        commit(tmp_path / "state", targets, complain, lambda: None)
    assert path.read_text() == "client_port_logging = true\n"
    commit(tmp_path / "state", targets, lambda: None, lambda: None)
    assert path.read_text() == "client_port_logging = false\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert {x.name for x in tmp_path.rglob("*")} == {"mail.toml", "state"}


def test_a_new_one_can_be_read_whatever_umask_root_has(tmp_path: Path) -> None:
    """guardd, as its own user, reads what lies beside it."""
    path = tmp_path / "smtp-guard/mail.toml"
    (tmp_path / "state").mkdir(mode=0o700)
    before = os.umask(0o077)
    try:
        targets = edit.written(path, "client_port_logging = true\n")
        commit(tmp_path / "state", targets, lambda: None, lambda: None)
    finally:
        os.umask(before)
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "line",
    [
        f"{HOST}\tsomeuser:hidden",
        f"{HOST} hidden",
        f"{HOST} someuser hidden",
        "# hidden",
        "hidden",
        f"{HOST}\tsomeuser:a:hidden : hidden",
    ],
)
def test_a_plan_shows_no_password_whatever_became_of_the_table(line: str) -> None:
    shown = _shown(f"{line}\n{HOST}\tsomeuser:other\n", True)
    assert shown and "hidden" not in shown and "other" not in shown


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "full"),
        (errno.EPERM, "lsattr /main.cf"),
    ],
)
def test_what_cannot_be_written_has_its_remedy(number: int, said: str) -> None:
    found = not_applied(OSError(number, os.strerror(number), "/main.cf"), Path("/"))
    assert "/main.cf: " in str(found) and said in found.hint
