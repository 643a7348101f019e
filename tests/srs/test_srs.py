# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl srs and a real postsrsd are of one mind about every address."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import SrsError
from guard.mta import postsrsd as setup
from guard.mta.maillog import files
from guard.mta.postsrsd import forwarder
from guard.mta.rewritten import rewritten
from guard.mta.srs import DAY, NotSrs, Settings, decode, hash_of, judge
from tests.srs.daemon import Postsrsd, postsrsd

SECRETS = ["first secret of ours", "an older one, 2024"]
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postsrsd, Path]]:
    folder = tmp_path_factory.mktemp("srs")
    with postsrsd(folder, SECRETS, "-n8", "-N4") as both:
        yield both


def settings(file: Path) -> Settings:
    return forwarder(file, 8, 4).settings


def stamp(days_ago: int) -> str:
    day = (int(time.time() // DAY) - days_ago) % 1024
    return DIGITS[day >> 5] + DIGITS[day & 31]


def signed(
    days_ago: int = 0, secret: str = SECRETS[0], length: int = 8, to: str = "alice"
) -> str:
    tt = stamp(days_ago)
    digest = hash_of((tt, "a.example", to), secret.encode())[:length]
    return f"SRS0={digest}={tt}=a.example={to}@f.example"


def guardctl(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "guard.cli.main", "srs", *argv],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "sender",
    ["alice@a.example", "UPPER.Case@A.Example", "a=b=c@a.example", "x+y-z@a.example"],
)
def test_what_the_daemon_makes_is_read(
    daemon: tuple[Postsrsd, Path], sender: str
) -> None:
    server, file = daemon
    made = server.forward(sender)
    srs = decode(made)
    assert (srs.kind, srs.original, srs.forwarder) == (0, sender, "f.example")
    judgement = judge(srs, settings(file))
    assert (judgement.state, judgement.age, judgement.secret) == ("good", 0, 1)
    assert server.reverse(made) == srs.bounce == sender
    # relays fold the case of what they do not understand
    for folded in (made.lower(), made.upper(), f"<{made}>"):
        assert judge(decode(folded), settings(file)).state == "good", folded
    assert server.reverse(made.lower()).lower() == sender.lower()


@pytest.mark.parametrize("separator", "=+-")
def test_what_was_rewritten_before_is_rewritten_again(
    daemon: tuple[Postsrsd, Path], tmp_path: Path, separator: str
) -> None:
    server, file = daemon
    with postsrsd(tmp_path, ["another host's"], f"-a{separator}") as (first, _):
        once = first.forward("alice@a.example").replace("f.example", "first.example")
        assert once.startswith(f"SRS0{separator}")
        twice = server.forward(once)
        srs = decode(twice)
        assert (srs.kind, srs.original) == (1, "alice@a.example")
        assert (srs.first, srs.forwarder) == ("first.example", "f.example")
        assert judge(srs, settings(file)).state == "good"
        assert server.reverse(twice) == srs.bounce == once
        assert judge(decode(once), settings(file)).state == "bad-hash"
        thrice = first.forward(twice.replace("f.example", "second.example"))
        assert decode(thrice).kind == 1
        assert decode(thrice).bounce == once, "SRS1 is not wrapped in another"


def test_age_is_counted_as_the_daemon_does(daemon: tuple[Postsrsd, Path]) -> None:
    server, file = daemon
    for days in (-1, 0, 1, 20, 21, 22, 23, 500, 1023):
        address = signed(days)
        judgement = judge(decode(address), settings(file))
        assert (judgement.state == "good") is bool(server.reverse(address)), days
        assert judgement.state == ("good" if 0 <= days <= 21 else "expired")
    done = guardctl("check", "--secrets", str(file), "--hash-length", "8", signed(22))
    assert done.returncode == 4 and "22 days old" in done.stdout
    more = ["--secrets", str(file), "--hash-length", "8", "--max-age", "22"]
    assert guardctl("check", *more, signed(22)).returncode == 0


def test_secrets_after_a_rotation(daemon: tuple[Postsrsd, Path]) -> None:
    server, file = daemon
    old, other = signed(secret=SECRETS[1]), signed(secret="somebody else's")
    assert judge(decode(old), settings(file)).secret == 2 and server.reverse(old)
    assert judge(decode(other), settings(file)).state == "bad-hash"
    assert not server.reverse(other)


def test_the_daemon_and_we_agree_on_whatever_is_changed(
    daemon: tuple[Postsrsd, Path],
) -> None:
    """Thousands of forged, cut, folded and stale addresses: one verdict."""
    server, file = daemon
    rng = random.Random(2004)
    verdicts = {True: 0, False: 0}
    for _ in range(1500):
        address = signed(
            rng.choice([0, 5, 21, 22, 400]),
            rng.choice([*SECRETS, "forged"]),
            rng.choice([3, 4, 5, 8, 12]),
            rng.choice(["alice", "Bob", "a=b"]),
        )
        local, _, domain = address.partition("@")
        if rng.random() < 0.5:
            at = rng.randrange(5, len(local))
            local = local[:at] + rng.choice("aZ=+-/7") + local[at + rng.randrange(2) :]
        if rng.random() < 0.3:
            local = rng.choice([local.lower(), local.upper()])
        address = f"{local}@{domain}"
        try:
            good = judge(decode(address), settings(file)).state == "good"
        except NotSrs:
            good = False
        assert good is bool(server.reverse(address)), address
        verdicts[good] += 1
    assert min(verdicts.values()) > 200, verdicts


@pytest.mark.parametrize(
    "text",
    [
        *("", "alice@a.example", "SRS0@f.example", "SRS0=a@f.example", "SRS0=a=b=c=d"),
        *("SRS2=a=b=c=d@f", "SRS0.a=b=c=d@f", "SRS0=a=b=c=@f.example", "SRS1=a=b@f"),
        *("SRS1=a=b=c@f", "SRS1=a=b=.x=y=z=w@f", "x" * 5000, "\0", "SRS0====@f"),
    ],
)
def test_what_is_no_srs_address_says_so(text: str) -> None:
    with pytest.raises(NotSrs):
        decode(text)


@given(st.text(), st.sampled_from(["", "SRS0=", "srs1+"]), st.sampled_from("=@\u212aß"))
def test_any_text_is_read_or_refused(text: str, head: str, more: str) -> None:
    words = f"{head}{text}{more}{text}=a=b=c=d@e".encode("utf-8", "replace")
    with contextlib.suppress(NotSrs):
        srs = decode(words.decode("utf-8", "surrogateescape"))
        assert judge(srs, Settings((b"secret",))).state == "bad-hash"
        assert srs.age(0) is None or 0 <= srs.age(0) < 1024


def test_letters_that_only_unicode_folds_are_no_hash() -> None:
    """The Kelvin sign in lower case is k: not to a daemon that compares bytes."""
    settings = Settings((b"a secret",))
    for number in range(2000):
        local = hash_of(("AA", "a.example", f"u{number}"), b"a secret")[:4]
        if "k" in local.lower():
            break
    forged = re.sub("k", "\u212a", local, flags=re.IGNORECASE)
    for digest, state in ((local, "good"), (forged, "bad-hash")):
        srs = decode(f"SRS0={digest}=AA=a.example=u{number}@f.example")
        assert judge(srs, settings, now=0.0).state == state


def test_exit_statuses_and_json(daemon: tuple[Postsrsd, Path]) -> None:
    server, file = daemon
    made = server.forward("alice@a.example")
    options = ["--secrets", str(file), "--hash-length", "8", "--hash-min", "4"]
    good = guardctl("check", *options, "--json", made)
    assert good.returncode == 0
    assert json.loads(good.stdout)["original"] == "alice@a.example"
    forged = guardctl("check", *options, made.replace("=a.example=", "=b.example="))
    assert forged.returncode == 3 and "bad-hash" in forged.stdout
    nothing = guardctl("check", *options, "--json", "alice@a.example")
    assert nothing.returncode == 1
    assert json.loads(nothing.stdout)["state"] == "not-srs"
    assert guardctl("decode", "alice@a.example").returncode == 1
    hostile = guardctl("decode", "SRS0=a=AA=h=\x1b[31mred@f.example")
    assert hostile.returncode == 0 and "\x1b" not in hostile.stdout
    shown = [good, forged, nothing]
    assert not any(s in done.stdout + done.stderr for s in SECRETS for done in shown)


def test_a_secret_that_others_can_read_is_told(daemon: tuple[Postsrsd, Path]) -> None:
    server, file = daemon
    made = server.forward("alice@a.example")
    options = ["check", "--secrets", str(file), "--hash-length", "8"]
    assert not guardctl(*options, made).stderr
    file.chmod(0o644)
    try:
        done = guardctl(*options, made)
    finally:
        file.chmod(0o600)
    assert done.returncode == 0 and f"chmod 600 {file}" in done.stderr
    missing = guardctl("check", "--secrets", "/nonexistent", made)
    assert missing.returncode == 78 and "--secrets" in missing.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "DEFAULTS",
            'SRS_SEPARATOR==\nSRS_SECRET="{file}" # here\nSRS_HASHLENGTH=8\n'
            "#SRS_HASHMIN=2\nSRS_HASHMIN='4'\n",
        ),
        ("CONF", 'secrets-file = "{file}"\nhash-length=8 # c\nhash-minimum = 4\n'),
    ],
)
def test_both_configurations_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"one\r\n\ntwo two two\n")
    (tmp_path / name).write_text(text.format(file=file))
    monkeypatch.setattr(setup, "DEFAULTS", tmp_path / "DEFAULTS")
    monkeypatch.setattr(setup, "CONF", tmp_path / "CONF")
    found = forwarder()
    assert found.settings == Settings((b"one", b"two two two"), 8, 4)
    assert found.configured == tmp_path / name
    assert "shorter than 8" in str(found.warnings)
    (tmp_path / name).write_text(text.format(file=file).replace("8", "99"))
    with pytest.raises(SrsError):
        forwarder()


LOG = """\
Nov 24 10:00:00 h postfix/pickup[1]: 4AAA: uid=33 from=<www-data>
Nov 24 10:00:00 h postfix/cleanup[2]: 4AAA: message-id=<1@h>
Nov 24 10:00:01 h postfix/qmgr[3]: 4AAA: from=<{srs}>, size=1, nrcpt=1 (queue active)
Nov 24 10:00:09 h postfix/qmgr[3]: 4AAA: from=<{srs}>, size=1, nrcpt=1 (queue active)
Nov 24 10:01:00 h postfix/smtpd[4]: 4BBB: client=mx.a.example[192.0.2.1]:999
Nov 24 10:01:01 h postfix/qmgr[3]: 4BBB: from=<{srs}>, size=1, nrcpt=1 (queue active)
Nov 24 10:02:00 h postfix/smtpd[4]: 4CCC: client=localhost[127.0.0.1]:40112
Nov 24 10:02:01 h postfix/qmgr[3]: 4CCC: from=<{srs}>, size=1, nrcpt=1 (queue active)
Nov 24 10:03:00 h postfix/smtpd[4]: 4DDD: client=localhost[127.0.0.1], \
orig_queue_id=4BBB, orig_client=mx.a.example[192.0.2.1]
Nov 24 10:03:01 h postfix/qmgr[3]: 4DDD: from=<{srs}>, size=1, nrcpt=1 (queue active)
Nov 24 10:04:00 h postfix/pickup[1]: 4EEE: uid=33 from=<www-data>
Nov 24 10:04:01 h postfix/qmgr[3]: 4EEE: from=<w@h>, size=1, nrcpt=1 (queue active)
Nov 24 10:05:00 h postfix/smtpd[4]: 4FFF: client=x[192.0.2.9], sasl_username=joe
Nov 24 10:05:01 h postfix/qmgr[3]: 4FFF: from=<{srs}>, size=1, nrcpt=1 (queue active)
"""


def test_local_mail_that_was_rewritten_is_found_in_a_log(tmp_path: Path) -> None:
    srs = "srs0=daf/=pl=a.example=postmaster@f.example"
    log = tmp_path / "mail.log"
    log.write_text(LOG.format(srs=srs))
    found = list(rewritten(files([log]), frozenset({"192.0.2.10"})))
    assert [one.queue_id for one in found] == ["4AAA", "4CCC", "4FFF"]
    assert {one.srs.original for one in found} == {"postmaster@a.example"}
    done = guardctl("local", "--log", str(log))
    assert done.returncode == 0 and "sendmail, uid 33 (www-data)" in done.stdout
    rows = [
        json.loads(line)
        for line in guardctl("local", "--log", str(log), "--json").stdout.splitlines()
    ]
    assert rows[1]["client"] == {"addr": "127.0.0.1", "port": 40112}
    assert guardctl("local", "--log", "/dev/null").returncode == 1
