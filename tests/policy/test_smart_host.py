# SPDX-License-Identifier: GPL-2.0-or-later
"""to = "smart-host": which one, and what of files of answers is believed."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.abi import Verdict
from guard.errors import PolicyError
from guard.policy import (
    Caller,
    Destination,
    Policy,
    evaluate,
    parse,
    refresh,
    smarthost,
)
from guard.policy.smarthost import (
    MAX_HELD,
    known_of,
    read_known,
    smart_host_of,
)
from guard.smarthost import Follower

NAME = "[relay.example.com]:587"
ONE, SIX = "192.0.2.1", "2001:db8::1"
RULE = """\
[[rule]]
name = "relay"
to = "smart-host"
verdict = "allow"
user = "root"
"""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of answers, and a Postfix, of this test's own."""
    monkeypatch.setattr(smarthost, "ANSWERS", tmp_path / "answers/smart-host.json")
    monkeypatch.setattr("guard.smarthost.LOOKED", tmp_path / "answers/looked")
    for module in ("guard.smarthost", "guard.policy.smarthost"):
        monkeypatch.setattr(f"{module}.ASKED", tmp_path / "run/smart-host")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "answers").mkdir()
    (tmp_path / "state").mkdir()
    return tmp_path


def answer(places: Path, *addresses: str, error: str = "", name: str = NAME) -> Path:
    path = places / "answers/smart-host.json"
    record = {"name": name, "addresses": list(addresses), "error": error}
    path.write_text(json.dumps(record))
    path.chmod(0o644)
    return path


def policy(rule: str = RULE, key: str = f'smart_host = "{NAME}"') -> Policy:
    return parse(f'mode = "enforce"\nports = [25, 587]\n{key}\n{rule}')


def verdict(given: Policy, address: str, port: int) -> Verdict:
    to = Destination(ipaddress.ip_address(address), port)
    return evaluate(given, Caller(uid=0), to).verdict


def test_exactly_its_addresses_and_port(places: Path) -> None:
    answer(places, ONE, SIX)
    made = policy()
    for address in (ONE, SIX):
        assert verdict(made, address, 587) is Verdict.ALLOW
        assert verdict(made, address, 25) is Verdict.DENY
    for other in ("192.0.2.2", "2001:db8::2"):
        assert verdict(made, other, 587) is Verdict.DENY
    assert smarthost.ANSWERS in made.watch
    assert made.smart_host and str(made.smart_host) == NAME


def test_nothing_known_allows_nothing(places: Path) -> None:
    made = policy()
    assert verdict(made, ONE, 587) is Verdict.DENY
    assert made.known and made.known.error == "it was not looked up yet"
    answer(places, ONE, name="[another.example.com]:587")
    assert verdict(policy(), ONE, 587) is Verdict.DENY


def test_what_was_kept_holds_at_a_boot_and_no_longer(places: Path) -> None:
    answer(places, ONE)
    follower = Follower()
    assert len(follower.put(policy())) == 1
    name, _, known = (places / "run/smart-host").read_text().partition("\n")
    assert name == NAME and ONE in known
    (places / "answers/smart-host.json").unlink()
    booted = policy()
    assert verdict(booted, ONE, 587) is Verdict.ALLOW
    answer(places, error="A: no name server answers")
    assert verdict(policy(), ONE, 587) is Verdict.ALLOW
    answer(places, SIX)
    assert verdict(policy(), ONE, 587) is Verdict.DENY
    assert (places / "state/smart-host.json").stat().st_mode & 0o777 == 0o600


def test_by_hand_nothing_is_kept(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set to nothing names no folder: least of all this one."""
    monkeypatch.chdir(places)
    monkeypatch.setenv("STATE_DIRECTORY", "")
    answer(places, ONE)
    Follower().put(policy())
    assert not (places / "smart-host.json").exists()
    assert smarthost.kept_file() == Path("/var/lib/smtp-guard/smart-host.json")
    monkeypatch.setenv("STATE_DIRECTORY", str(places))
    Follower().put(policy())
    assert (places / "smart-host.json").exists(), "the control"


def test_it_is_told_once_and_not_all_the_time(places: Path) -> None:
    follower = Follower()
    answer(places, ONE)
    [first] = follower.put(policy())
    assert ONE in first.message and first.fields["ADDRESSES"] == ONE
    assert not follower.put(policy()) and not follower.look()
    told = []
    for number in range(2, 50):
        answer(places, f"192.0.2.{number}")
        told += follower.put(policy())
    assert len(told) == 4, "five at once, with the first"
    assert "192.0.2.2; new: 192.0.2.2; no longer: 192.0.2.1" in told[0].message
    follower._tell_at = 0.0  # ten seconds later
    [later] = follower.look()
    assert "192.0.2.49; new: 192.0.2.49; no longer: 192.0.2.5" in later.message
    [none] = follower.put(policy(key=""))  # no Postfix configured here, or none
    assert "match nobody" in none.message or "smart host" in none.message
    assert not follower.put(parse('mode = "observe"'))
    assert not (places / "run/smart-host").exists()


@pytest.mark.parametrize(
    ("rule", "key", "word"),
    [
        (RULE.replace("[[rule]]", "[[local.rule]]"), "", "another host"),
        (RULE + "ports = [587]\n", "", "its own port"),
        (RULE.replace('"smart-host"', '["smart-host", "192.0.2.0/24"]'), "", "beside"),
        (RULE.replace('"smart-host"', '"smarthost"'), "", "not an address"),
        (RULE, 'smart_host = "a b"', "smart_host"),
        (RULE, "smart_host = 25", "not a text"),
        (RULE, 'smart_host = "192.0.2.1:25"', "must stand in brackets"),
        ("", 'smart_host = "[]"', "no next hop"),
    ],
)
def test_what_makes_no_sense_is_refused(
    places: Path, rule: str, key: str, word: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        policy(rule, key or f'smart_host = "{NAME}"')
    assert word in " ".join(caught.value.report().split())


def test_warnings(places: Path) -> None:
    told = policy(key='smart_host = "[127.0.0.1]:25"').warnings
    assert "this host itself" in str(told)
    told = policy(key='smart_host = "[192.0.2.1]:2525"').warnings
    assert "port 2525 is not guarded" in str(told)


def test_postfix_is_asked(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own postconf(1), with what a $ in it stands for."""
    (places / "main.cf").write_text(
        "compatibility_level = 3.6\nmydomain = example.com\n"
        "relayhost = [relay.$mydomain]:submission\n"
    )
    answer(places, ONE)
    run = smarthost.subprocess.run

    def here(argv: list[str], **more: object) -> object:
        assert argv[0] == "postconf"
        return run([*argv[:1], "-c", str(places), *argv[1:]], **more)

    monkeypatch.setattr(smarthost.subprocess, "run", here)
    made = policy(key="")
    assert made.smart_host and str(made.smart_host) == NAME
    assert made.smart_host.source == "postfix" and smarthost.MAIN_CF in made.watch
    assert verdict(made, ONE, 587) is Verdict.ALLOW
    for text, why in (("", "no relayhost"), ("[a], [b]", "several next hops")):
        (places / "main.cf").write_text(f"relayhost = {text}\n")
        made = policy(key="")
        assert why in str(made.warnings)
        assert verdict(made, ONE, 25) is Verdict.DENY


def test_a_postfix_that_cannot_be_asked_has_the_smart_host_it_had(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory for postconf, or a main.cf that is just written: nothing is denied."""
    answer(places, ONE)
    said = [(0, NAME, ""), (1, "", "fatal: open main.cf"), (0, "", "")]

    def asked(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if not said:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        status, out, err = said.pop(0)
        return subprocess.CompletedProcess(argv, status, out, err)

    monkeypatch.setattr(smarthost.subprocess, "run", asked)
    made = policy(key="")
    assert verdict(made, ONE, 587) is Verdict.ALLOW
    kept = refresh(made)
    assert (
        kept.smart_host == made.smart_host and verdict(kept, ONE, 587) is Verdict.ALLOW
    )
    assert kept.known and "fatal: open main.cf" in kept.known.error
    # it says that it has none: so there is none
    none = refresh(kept)
    assert none.smart_host is None and verdict(none, ONE, 587) is Verdict.DENY
    assert "Cannot allocate" in str(policy(key="").warnings)
    assert verdict(refresh(made), ONE, 587) is Verdict.ALLOW


def test_an_empty_state_directory_is_none(
    places: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    answer(places, ONE)
    assert Follower().put(policy())
    assert not list((tmp_path / "here").iterdir())
    assert smarthost.kept_file().is_absolute()


@pytest.mark.parametrize("spoil", ["writable", "link", "folder", "pipe", "big", "deep"])
def test_files_that_are_not_believed(places: Path, spoil: str) -> None:
    path = answer(places, ONE)
    assert read_known(smart_host_of(NAME)).addresses, "the control"
    if spoil == "writable":
        path.chmod(0o666)
    else:
        path.rename(places / "elsewhere")
    if spoil == "link":
        path.symlink_to(places / "elsewhere")
    elif spoil == "folder":
        path.mkdir()
    elif spoil == "pipe":
        os.mkfifo(path)
    elif spoil == "big":
        path.write_text((places / "elsewhere").read_text() + " " * 70_000 + "x")
        path.write_text("[" + path.read_text())
    elif spoil == "deep":
        path.write_text("[" * 60_000)
    assert read_known(smart_host_of(NAME)).addresses == ()


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=9,
    )
)
def test_answers_may_hold_anything(value: object) -> None:
    host = smart_host_of(NAME)
    for answer in (
        value,
        {"name": NAME, "addresses": value},
        {"name": NAME, "addresses": [value, ONE], "error": value},
    ):
        known = known_of(answer, host)
        if known is not None:
            assert known.error.isprintable() and len(known.addresses) <= 2


def test_addresses_are_checked_once_more() -> None:
    host = smart_host_of(NAME)
    bad = ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1"]
    bad += ["::ffff:192.0.2.1", "255.255.255.255", "169.254.0.1", "fe80::1%eth0", "x"]
    known = known_of({"name": NAME, "addresses": [*bad, ONE, ONE]}, host)
    assert known and list(map(str, known.addresses)) == [ONE]
    many = [str(ipaddress.ip_address(0x0A000000 + n)) for n in range(5000)]
    known = known_of({"name": NAME, "addresses": many}, host)
    assert known and len(known.addresses) == MAX_HELD
