# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl policy check, policy show and explain, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from guard.cli import explain
from guard.cli import policy as policy_verb
from guard.errors import PolicyError

SMTP = "/usr/lib/postfix/sbin/smtp"
TEXT = f"""\
mode = "enforce"
[[rule]]
name = "own-postfix"
unit = "postfix@*.service"
exe = "{SMTP}"
user = "postfix"
verdict = "allow"
[[rule]]
name = "to-own-mta"
user = "www-data"
verdict = "redirect"
[local]
default = "deny"
[[local.rule]]
name = "root-submits"
user = "root"
verdict = "allow"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(TEXT)
    path.chmod(0o644)
    return path


def policy(*argv: object) -> Result:
    return CliRunner().invoke(policy_verb.command, list(map(str, argv)))


def ask(*argv: object, given: str | None = None) -> Result:
    return CliRunner().invoke(explain.command, list(map(str, argv)), input=given)


def answer(result: Result) -> Any:
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.output)


def fits(result: Result, file: Path) -> None:
    """Demand under 80 columns, but for the test's own long path."""
    for line in result.output.splitlines():
        assert len(line) < 80 or str(file) in line, line


def test_check_of_a_good_policy(file: Path) -> None:
    result = policy("check", file)
    assert result.exit_code == 0
    assert f"{file}: good, mode enforce\n  3 rules in 1 file, 3 of 512" in result.output
    told = answer(policy("check", file, "--json"))
    assert (told["ok"], told["rules"], told["problems"]) == (True, 3, [])


def test_check_of_a_bad_policy(file: Path) -> None:
    file.write_text(TEXT.replace("own-postfix", "to-own-mta"))
    result = policy("check", file)
    assert isinstance(result.exception, PolicyError)  # main prints its report
    assert result.exception.exit_status == 78
    told = policy("check", file, "--json")
    assert told.exit_code == 78
    problem = json.loads(told.output)["problems"][0]
    assert (problem["line"], problem["severity"]) == (8, "error")
    assert "taken" in problem["message"] and problem["remedy"]


def test_show(file: Path) -> None:
    result = policy("show", file)
    assert result.exit_code == 0
    assert "redirect to-own-mta\n" in result.output
    assert "local allow root-submits\n" in result.output
    assert "to 127.0.0.1:25 and [::1]:25" in result.output
    fits(result, file)
    told = json.loads(policy("show", file, "--json").output)
    assert [rule["name"] for rule in told["rules"]] == [
        *("own-postfix", "to-own-mta", "root-submits")
    ]
    assert told["tamper"] == "repair" and "tamper    repair: " in result.output
    assert told["before"] == {"end": False, "grace_ns": 60_000_000_000}
    assert "before    connections older than the guard are told" in result.output
    assert told["redirect"]["to6"] == {"addr": "::1", "port": 25}


def test_explain_names_the_rule_and_why_others_do_not_match(file: Path) -> None:
    told = answer(ask("--policy", file, "--json", "--user", "www-data",
                      "--to", "203.0.113.5", "--exe", SMTP))  # fmt: skip
    assert (told["verdict"], told["rule"]) == ("redirect", "to-own-mta")
    assert told["rules"][0]["failed"] == ["unit", "user"]
    assert told["rules"][1]["matched"] is True
    result = ask("--policy", file, "--uid", 33, "--to", "203.0.113.5")
    assert 'verdict     redirect: rule "to-own-mta" at' in result.output
    assert "effect      redirected to 127.0.0.1:25, and journalled" in result.output
    fits(result, file)


def test_explain_says_who_is_pinned_to_the_smart_host(file: Path) -> None:
    """A denial names no rule: that a pin is behind it must be found out."""
    head = 'mode = "enforce"\nports = [25, 587]\nsmart_host = "[192.0.2.1]:587"\n'
    file.write_text(head + 'include = ["postfix-smart-host"]\n')
    caller = ("--user", "postfix", "--exe", SMTP, "--policy", file)
    told = answer(ask(*caller, "--to", "203.0.113.5", "--json"))
    assert told["verdict"] == "deny"
    assert "[192.0.2.1]:587 (192.0.2.1) alone" in told["hint"]
    for remedy in ("pin = true", "guardctl mail apply", "guardctl policy apply"):
        assert remedy in told["hint"]
    assert "hint        rule" in ask(*caller, "--to", "203.0.113.5").output
    to_it = ("--to", "192.0.2.1", "--port", 587, "--json")
    assert answer(ask(*caller, *to_it))["hint"] is None, "control: it is let pass"
    other = ("--user", "nobody", "--policy", file, "--to", "203.0.113.5", "--json")
    assert answer(ask(*other))["hint"] is None, "it is nobody's pin"
    own = head + (
        '[[rule]]\nname = "own"\nuser = "nobody"\nto = "smart-host"\n'
        'verdict = "allow"\n'
    )
    file.write_text(own)
    hint = answer(ask(*other))["hint"]
    assert 'rule "own" lets it connect to' in hint and "pin" not in hint


def test_explain_compares_files_not_paths(file: Path, tmp_path: Path) -> None:
    who = ("--policy", file, "--json", "--user", "postfix", "--to", "203.0.113.5",
           "--unit", "postfix@-.service")  # fmt: skip
    link = tmp_path / "link"
    link.symlink_to(SMTP)
    copy = tmp_path / "copy"
    shutil.copy(SMTP, copy)
    verdicts = [
        answer(ask(*who, "--exe", path))["verdict"]
        for path in (SMTP, link, copy, tmp_path / "none")
    ]
    assert verdicts == ["allow", "allow", "deny", "deny"]


def test_explain_looks_whether_an_address_is_the_hosts_own(file: Path) -> None:
    who = ("--policy", file, "--json", "--user", "daemon", "--to")
    own, far = answer(ask(*who, "::ffff:127.0.0.1")), answer(ask(*who, "192.0.2.1"))
    assert (own["direction"], own["verdict"]) == ("local", "deny")
    assert far["direction"] == "outbound"
    assert answer(ask(*who, "127.0.0.1", "--outbound"))["direction"] == "outbound"


def test_explain_an_unguarded_port(file: Path) -> None:
    told = answer(ask("--policy", file, "--json", "--to", "192.0.2.1", "--port", 443))
    assert told["guarded"] is told["journalled"] is False
    assert "not guarded" in told["effect"]


def test_explain_a_past_finding(file: Path) -> None:
    row = {
        "uid": 33,
        "gid": 33,
        "exe": "/usr/bin/no-such-php",
        "cgroup": "/system.slice/php.service",
        "direction": "outbound",
        "dst": {"addr": "203.0.113.5", "port": 587},
    }
    who = ("--policy", file, "--json", "--finding", "-")
    told = answer(ask(*who, given=json.dumps(row)))
    assert (told["rule"], told["dst"]["port"]) == ("to-own-mta", 587)
    assert told["caller"]["exe_found"] is False
    for bad in ("", "{}", "[]", "{}\n{}", "[1]", '{"uid": "x"}'):
        result = ask(*who, given=bad)
        assert result.exit_code == 2 and "--finding" in result.output, bad


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--to", "mx.example"),
        ("--to", "192.0.2.1", "--user", "no-such\x1b"),
        ("--to", "192.0.2.1", "--uid", "4294967296"),
        ("--to", "192.0.2.1", "--group", "no-such"),
        ("--to", "192.0.2.1", "--unit", "postfix"),
        ("--to", "192.0.2.1", "--unit", "postfix@*.service"),
        ("--to", "192.0.2.1", "--port", "0"),
    ],
)
def test_bad_usage(file: Path, argv: tuple[str, ...]) -> None:
    result = ask("--policy", file, *argv)
    assert result.exit_code == 2
    assert "Error: " in result.output and "\x1b" not in result.output


def test_help_ends_with_examples() -> None:
    for result in (
        policy("--help"),
        policy("check", "--help"),
        policy("show", "--help"),
        ask("--help"),
    ):
        assert "guardctl " in result.output.rstrip().splitlines()[-1]
        assert all(len(line) < 80 for line in result.output.splitlines())
