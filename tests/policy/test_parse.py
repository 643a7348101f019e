# SPDX-License-Identifier: GPL-2.0-or-later
"""What a policy file says, and what a wrong one is told: place and remedy."""

from __future__ import annotations

import ipaddress
import pwd
import re
from pathlib import Path

import pytest

from guard.abi import Direction, Mode, Verdict
from guard.errors import EX_CONFIG, PolicyError
from guard.policy import Fold, Policy, Problem, load, parse, refresh
from guard.policy.model import Before

HEAD = 'mode = "enforce"\n'
RULE = HEAD + '[[rule]]\nname = "r"\nverdict = "allow"\nuser = "root"\n'


def problems(text: str) -> list[Problem]:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    found = list(caught.value.problems)
    assert caught.value.exit_status == EX_CONFIG
    assert all(isinstance(problem, Problem) for problem in found)
    return [problem for problem in found if isinstance(problem, Problem)]


def test_all_keys() -> None:
    policy = parse(
        """
        mode = "observe"
        ports = [25, 2525]
        [[rule]]
        name = "first"
        unit = ["postfix.service", "postfix@*.service"]
        exe = "/nowhere/smtp"
        user = ["root", 33, "4711"]
        group = 0
        to = ["203.0.113.0/24", "2001:db8::/32", "::ffff:198.51.100.7", "192.0.2.1"]
        ports = 25
        verdict = "redirect"
        [[rule]]
        name = "second"
        user = 8
        verdict = "allow"
        journal = true
        [local]
        audit = false
        default = "deny"
        [[local.rule]]
        name = "third"
        user = "root"
        verdict = "allow"
        [redirect]
        to = "127.0.0.1:2525"
        to6 = false
        [fold]
        window = "1m"
        denied = 2
        local = 3
        [before]
        end = true
        grace = "0s"
        """
    )
    first, second, third = policy.rules
    assert policy.mode is Mode.OBSERVE
    assert policy.ports == {25, 2525}
    assert [p.text for p in first.units or ()] == [
        "postfix.service",
        "postfix@*.service",
    ]
    assert first.exes == (Path("/nowhere/smtp"),)
    assert (first.uids, first.gids, first.ports) == ((0, 33, 4711), (0,), (25,))
    assert list(map(str, first.to or ())) == [
        *("203.0.113.0/24", "2001:db8::/32", "198.51.100.7/32", "192.0.2.1/32")
    ]
    assert [rule.verdict for rule in policy.rules] == [
        *(Verdict.REDIRECT, Verdict.ALLOW, Verdict.ALLOW)
    ]
    assert [rule.line for rule in policy.rules] == [4, 13, 21]
    assert third.direction is Direction.LOCAL and third.number == 2
    assert (policy.local_audit, policy.local_default) == (False, Verdict.DENY)
    assert policy.redirect4 == ("127.0.0.1", 2525)
    assert policy.redirect6 is None
    assert policy.fold == Fold(60_000_000_000, 2, 3)
    assert policy.before == Before(end=True, grace_ns=0)
    assert [policy.quiet(rule) for rule in policy.rules] == [False, False, True]
    assert policy.rule_name(1) == "second"
    assert policy.rule_name(3) is policy.rule_name(0xFFFFFFFF) is None
    assert [p.message for p in policy.warnings] == [
        "exe: /nowhere/smtp: no such file",
    ]
    assert second.exes is None and second.to is None


def test_a_grace_without_an_end_is_warned_of() -> None:
    for said in ("", "end = false\n"):
        (warning,) = parse(f'{RULE}[before]\n{said}grace = "1m"').warnings
        assert "there is no grace" in warning.message
    assert not parse(f'{RULE}[before]\nend = true\ngrace = "1m"').warnings


def test_defaults() -> None:
    policy = parse(RULE)
    assert policy.ports == {25, 465, 587}
    assert policy.local_audit and policy.local_default is Verdict.ALLOW
    assert policy.redirect4 is policy.redirect6 is None  # nothing redirects
    assert policy.fold == Fold(5_000_000_000, 5, 1000)
    assert policy.before == Before(end=False, grace_ns=60_000_000_000)
    assert policy.repair and parse('tamper = "repair"\n' + RULE).repair
    assert not parse('tamper = "report"\n' + RULE).repair
    assert policy.warnings == ()
    redirected = parse(RULE.replace("allow", "redirect"))
    assert redirected.redirect4 == ("127.0.0.1", 25)
    assert redirected.redirect6 == ("::1", 25)


@pytest.mark.parametrize(
    ("audit", "journal", "quiet"),
    [
        (True, None, (True, False)),
        (False, None, (True, True)),
        (True, False, (True, True)),
        (False, True, (False, False)),
    ],
)
def test_what_is_quiet(
    audit: bool, journal: bool | None, quiet: tuple[bool, bool]
) -> None:
    said = "" if journal is None else f"journal = {str(journal).lower()}\n"
    policy = parse(
        f"{RULE}{said}[local]\naudit = {str(audit).lower()}\n"
        f'[[local.rule]]\nname = "l"\nverdict = "allow"\nuser = 5\n{said}'
    )
    assert tuple(map(policy.quiet, policy.rules)) == quiet


@pytest.mark.parametrize(
    ("text", "line", "message", "remedy"),
    [
        ("", None, "mode is missing", 'mode = "observe" or "enforce"'),
        ('mode = "on"', 1, '"on" is not', '"enforce"'),
        ("mode = 1", 1, "1 is not", '"enforce"'),
        (HEAD + "prots = [25]", 2, "prots: unknown key", 'did you mean "ports"'),
        (HEAD + "ports = [0]", 2, "0 is not a TCP port", "1 to 65535"),
        (HEAD + "ports = [true]", 2, "true is not a TCP port", "1 to 65535"),
        (HEAD + "ports = []", 2, "an empty list", "at least one"),
        (HEAD + 'include = "nothere"', 2, 'no policy "nothere"', "shipped: "),
        (HEAD + "rule = 1", 2, "not a list of rules", "write [[rule]]"),
        (HEAD + "[rule]\nname = 1", None, "not a list of rules", "write [[rule]]"),
        (HEAD + "local = 1", 2, "not a section", "write [local]"),
        (HEAD + "[local]\naudit = 1", 3, "1 is not true or false", "true or false"),
        (HEAD + '[local]\ndefault = "redirect"', 3, "is not", '"allow" or "deny"'),
        (HEAD + "tamper = true", 2, "is not", '"repair" or "report"'),
        (HEAD + "[fold]\nwindow = 5", 3, "not a time", '"5s"'),
        (HEAD + '[fold]\nwindow = "2h"', 3, "not a time", '"0s"'),
        (HEAD + '[before]\ngrace = "2h"', 3, "not a time", '"0s" ends them'),
        (HEAD + "[before]\nend = 1", 3, "1 is not true or false", "true or false"),
        (HEAD + "[fold]\ndenied = 0", 3, "not a count", "from 1 up"),
        (RULE + 'unti = "a.service"', 6, "unti: unknown key", 'did you mean "unit"'),
        (RULE + 'exe = "smtp"', 6, "not an absolute path", "from / on"),
        (RULE + 'exe = "/a/../b"', 6, "not an absolute path", "without .."),
        (RULE + r'exe = "/a\u0000b"', 6, "not an absolute path", "from / on"),
        (RULE + 'exe = "/etc"', 6, "/etc is not a file", "the program itself"),
        (RULE + 'unit = "postfix"', 6, "without its type", '"postfix.service"'),
        (RULE + 'group = "no-such"', 6, 'no group "no-such"', "optional = true"),
        (RULE + "group = 4294967295", 6, "is not a group", "below 4294967295"),
        (RULE + "group = -1", 6, "is not a group", "below 4294967295"),
        (RULE + "group = []", 6, "an empty list", "leave group out"),
        (RULE + 'to = "10.0.0.1/8"', 6, "bits set", 'write "10.0.0.0/8"'),
        (RULE + 'to = "mx.example"', 6, "not an address", "203.0.113.0/24"),
        (RULE + 'to = "fe80::1%lo"', 6, "zone", '"fe80::1/128"'),
        (RULE + "to = 5", 6, "not an address", "203.0.113.0/24"),
        (RULE + "ports = 70000", 6, "70000 is not a TCP port", "1 to 65535"),
        (RULE + 'optional = "yes"', 6, "is not true or false", "true or false"),
        (HEAD + "[[rule]]\nuser = 0", 2, "name is missing", 'name = "postfix"'),
        (HEAD + "[[rule]]\nuser = 0", 2, "verdict is missing", '"redirect"'),
        (RULE.replace('"r"', '""'), 3, "not a name", "one letter"),
        (RULE.replace('"r"', r'"\u001b[2J"'), 3, "control characters", "shorten"),
        (RULE.replace('"r"', '"' + "r" * 65 + '"'), 3, "longer than 64", "shorten"),
        (RULE.replace("allow", "maybe"), 4, '"maybe" is not', '"redirect"'),
        (
            RULE.replace("allow", "deny") + "journal = false",
            6,
            "always journalled",
            "remove journal",
        ),
        (RULE + RULE.removeprefix(HEAD), 6, "name is taken", "a name of its own"),
        (
            HEAD + '[[local.rule]]\nname = "l"\nverdict = "redirect"',
            4,
            '"redirect" is not',
            '"allow" or "deny"',
        ),
        (
            RULE.replace("allow", "redirect") + "[redirect]\nto = false\nto6 = false",
            6,
            "nowhere to",
            'verdict = "deny"',
        ),
        (
            RULE.replace("allow", "redirect") + '[redirect]\nto6 = "127.0.0.1:25"',
            7,
            "not an IPv6 address",
            '"[::1]:25"',
        ),
        (
            RULE.replace("allow", "redirect") + '[redirect]\nto = "0.0.0.0:25"',
            7,
            "not an IPv4 address",
            '"127.0.0.1:25"',
        ),
        ("mode = \n", 1, "not TOML", "correct the file"),
        ('mode = "enforce"\nmode = "enforce"\n', 2, "not TOML", "correct the file"),
        ("a = " + "[" * 5000, None, "nested too deep", "correct the file"),
        ("a = " + "9" * 5000, None, "not TOML", "correct the file"),
    ],
)
def test_an_error_has_its_place_and_remedy(
    text: str, line: int | None, message: str, remedy: str
) -> None:
    assert any(
        problem.severity == "error"
        and problem.file == "policy.toml"
        and problem.line == line
        and message in problem.message
        and remedy in problem.remedy
        for problem in problems(text)
    ), "\n".join(map(str, problems(text)))


def test_one_run_shows_all_errors() -> None:
    text = 'mode = "x"\nports = [0]\n[[rule]]\nname = "r"\nuser = "no-such"\n[[rule]]\n'
    found = problems(text)
    assert [problem.line for problem in found] == [1, 2, 3, 5, 6, 6]
    with pytest.raises(PolicyError) as caught:
        parse(text)
    assert str(caught.value) == (
        'policy.toml: mode: "x" is not "observe" or "enforce" (and 5 more)'
    )
    report = caught.value.report().splitlines()
    assert report[0] == 'policy.toml:1: error: mode: "x" is not "observe" or "enforce"'
    assert report[-1] == "policy.toml: policy refused"
    assert max(map(len, report)) < 80


def test_more_rows_than_the_kernel_has() -> None:
    units = ", ".join(f'"u{number}.service"' for number in range(512))
    assert len(parse(f"{RULE}unit = [{units}]").rules) == 1
    assert "513 rows" in problems(f'{RULE}unit = ["x.service", {units}]')[0].message


@pytest.mark.parametrize(
    ("first", "second", "severity"),
    [
        ("user = 0", 'user = 0\nexe = "/bin/sh"', "error"),
        ("user = [0, 33]", "user = 33", "error"),
        ("user = 0", "user = 33", None),
        ("user = 0\nports = 25", "user = 0", None),
        ("user = 0\nports = [25, 465, 587]", "user = 0", "error"),
        ('unit = "system.slice"', 'unit = "postfix.service"', "error"),
        ('unit = "postfix@*.service"', 'unit = "postfix@-.service"', "error"),
        ('unit = "postfix@-.service"', 'unit = "postfix@*.service"', None),
        ('to = ["10.0.0.0/9", "10.128.0.0/9"]', 'to = "10.0.0.0/8"', "error"),
        ('to = "::/0"', 'to = "10.0.0.0/8"', None),
        ('to = "10.0.0.0/8"', 'to = "::/0"', None),
        ("group = 0", "user = 0", None),
    ],
)
def test_a_rule_never_reached(first: str, second: str, severity: str | None) -> None:
    text = (
        f'{HEAD}[[rule]]\nname = "a"\nverdict = "deny"\n{first}\n'
        f'[[rule]]\nname = "b"\nverdict = "allow"\n{second}\n'
    )
    try:
        found = list(parse(text).warnings)
    except PolicyError as error:
        found = [p for p in error.problems if isinstance(p, Problem)]
    unreachable = [p for p in found if "never reached" in p.message]
    assert [p.severity for p in unreachable] == ([severity] if severity else [])
    same = parse(text.replace("deny", "allow")).warnings
    assert any("never reached" in p.message for p in same) is bool(severity)


def warnings_of(rule: str) -> list[str]:
    text = f'{HEAD}[[rule]]\nname = "r"\nverdict = "allow"\n{rule}'
    return [problem.message for problem in parse(text).warnings]


def test_what_is_warned_of() -> None:
    assert "lets every process connect anywhere" in warnings_of("")[0]
    assert "an executable only" in warnings_of('exe = "/bin/sh"')[0]
    assert "no such file" in warnings_of('user = 0\nexe = ["/no/a", "/no/b"]')[0]
    assert "port 26 is not guarded" in warnings_of("user = 0\nports = [25, 26]")[0]
    assert warnings_of('user = 0\nexe = ["/no/a", "/bin/sh"]') == []
    assert warnings_of('user = 0\nexe = "/no/a"\noptional = true') == []


def test_names_that_are_not_here_match_nobody() -> None:
    """An optional rule for a missing user must not become one for every user."""
    policy = parse(RULE + 'group = "no-such"\noptional = true')
    assert policy.rules[0].gids == ()
    both = parse(RULE + 'group = ["no-such", "root"]\noptional = true')
    assert both.rules[0].gids == (0,)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


def included(name: str, uid: int = 33) -> str:
    return f'[[rule]]\nname = "{name}"\nverdict = "allow"\nuser = {uid}\n'


def test_own_rules_come_before_included_ones(tmp_path: Path) -> None:
    write(tmp_path / "one.toml", 'include = "sub/two.toml"\n' + included("one", 1))
    write(tmp_path / "sub/two.toml", 'include = "../one.toml"\n' + included("two", 2))
    write(tmp_path / "three.toml", included("three", 3) + "[[local.rule]]\n"
          'name = "l"\nverdict = "deny"\nuser = 3\n')  # fmt: skip
    text = RULE.replace(HEAD, HEAD + 'include = ["one", "three", "./one.toml"]\n')
    policy = load(write(tmp_path / "policy.toml", text))
    assert [rule.name for rule in policy.rules] == ["r", "one", "two", "three", "l"]
    assert [rule.number for rule in policy.rules] == list(range(5))
    assert [path.name for path in policy.files] == [
        *("policy.toml", "one.toml", "two.toml", "three.toml")
    ]
    assert policy.watch >= {*policy.exes, Path("/etc/passwd"), Path("/etc/group")}
    before = policy.sha256
    write(tmp_path / "sub/two.toml", 'include = "../one.toml"\n' + included("2", 2))
    assert load(tmp_path / "policy.toml").sha256 != before


def test_an_include_only_adds_rules(tmp_path: Path) -> None:
    write(tmp_path / "one.toml", 'mode = "observe"\n[local]\naudit = false\n')
    main = write(tmp_path / "policy.toml", HEAD + 'include = "one"\n')
    with pytest.raises(PolicyError) as caught:
        load(main)
    report = caught.value.report().replace("\n  ", " ")
    assert f"{tmp_path}/one.toml:1: error: mode: mode in an included file" in report
    assert "audit: unknown key" in report


def test_an_own_rule_may_override_an_included_one(tmp_path: Path) -> None:
    write(tmp_path / "one.toml", included("one", 0))
    text = RULE.replace("allow", "deny").replace(HEAD, HEAD + 'include = "one"\n')
    policy = load(write(tmp_path / "policy.toml", text))
    assert [problem.severity for problem in policy.warnings] == ["warning"]
    assert "never reached" in policy.warnings[0].message


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"mode = '\xff'", "not UTF-8"), (b"#" * 2**21, "longer")],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "policy.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolicyError, match=message):
        load(path)
    with pytest.raises(PolicyError, match="not a regular file|cannot be read"):
        load(tmp_path)


def test_shipped_policies_are_good_and_silent() -> None:
    folder = Path(__file__).resolve().parents[2] / "policies"
    names = sorted(path.stem for path in folder.glob("*.toml"))
    assert {"postfix", "exim", "opensmtpd", "sendmail", "default"} < set(names)
    for name in names:
        policy = shipped(folder, name)
        assert policy.warnings == (), name
        assert policy.rules, name
        for rule in policy.rules:
            assert rule.optional and rule.verdict is Verdict.ALLOW
            assert rule.exes and (rule.units or rule.uids is not None), name
        text = (folder / f"{name}.toml").read_text()
        assert text.split("\n")[1].startswith("# ") and text.isascii()


def shipped(folder: Path, name: str) -> Policy:
    if name == "default":
        return load(folder / "default.toml")
    return parse(f'{HEAD}include = "{name}"', directory=folder)


def test_the_default_policy_observes_this_hosts_postfix() -> None:
    """The Postfix that setup installs is one that the policy lets through."""
    policy = load(Path(__file__).resolve().parents[2] / "policies/default.toml")
    assert policy.mode is Mode.OBSERVE
    postfix = next(rule for rule in policy.rules if rule.name == "postfix")
    smtp = Path("/usr/lib/postfix/sbin/smtp")
    assert smtp.exists(), "Postfix is not installed: make setup"
    assert smtp in (postfix.exes or ())
    assert postfix.uids == (pwd.getpwnam("postfix").pw_uid,)
    assert postfix.units is None and postfix.to is None
    assert ipaddress.ip_network("0.0.0.0/0") not in (postfix.to or ())


def test_refresh_sees_new_files_and_users_but_no_new_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is installed later is let through without a reload."""
    exe = tmp_path / "mta"
    rule = (
        f'[[rule]]\nname = "mta"\nexe = "{exe}"\nuser = "new-mta"\n'
        'verdict = "allow"\noptional = true\n'
    )
    write(tmp_path / "mta.toml", rule)
    main = write(tmp_path / "policy.toml", HEAD + 'include = "mta"\n')
    policy = load(main)
    assert policy.rules[0].uids == ()
    assert refresh(policy) == policy

    main.write_text("half a poli")
    exe.symlink_to("/bin/true")
    real = pwd.getpwnam

    # A made-up entry: the host's own /etc/passwd is not for tests to change.
    def getpwnam(name: str) -> pwd.struct_passwd:
        return real("root" if name == "new-mta" else name)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    renewed = refresh(policy)
    assert renewed.rules[0].uids == (0,)
    assert exe.resolve() in renewed.exes - policy.exes
    assert (renewed.sha256, renewed.files) == (policy.sha256, policy.files)
    with pytest.raises(PolicyError):
        load(main)


def test_what_the_default_policy_comments_out_is_right() -> None:
    """Its examples are the manual: each must work once its # is gone."""
    folder = Path(__file__).resolve().parents[2] / "policies"
    text = (folder / "default.toml").read_text()
    example = re.sub(r"^# (?=\[|[a-z0-9]+ = )", "", text, flags=re.MULTILINE)
    assert "\n[[rule]]" in example and "\n[fold]" in example
    policy = parse(example.replace('"backup-report"', '"b"'), directory=folder)
    names = [rule.name for rule in policy.rules]
    assert policy.mta.socket
    assert names[0] == "b" and names[-1] == "no-mail-from-cgi"
    assert policy.rules[0].to and policy.rules[0].ports == (587,)
