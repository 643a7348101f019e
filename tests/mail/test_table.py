# SPDX-License-Identifier: GPL-2.0-or-later
"""mail.toml as it is read: what is good, what is refused and where, and its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guard.errors import MailError, MailTableError
from guard.mail.password import Password, usable
from guard.mail.table import parse, pattern, relay_of, transport_value
from guard.policy import Problem
from guard.policy import parse as parse_policy
from tests.docs.mdoc import CHECKOUT, literals, read

PAGE = "smtp-guard-mail.toml.5"
DOCS = (CHECKOUT / "docs/mail.md").read_text()


def problems(text: str) -> list[Problem]:
    try:
        parse(text)
    except MailTableError as error:
        assert "table refused" in error.report()
        return [p for p in error.problems if isinstance(p, Problem)]
    return []


def known(table: str) -> set[str]:
    """Ask the reader which keys a table has."""
    (problem,) = (p for p in problems(f"{table}\nxyzzy = 1\n") if "xyzzy" in p.message)
    return set(problem.remedy.rpartition("known here: ")[2].split(", "))


def test_nothing_asks_for_nothing() -> None:
    table = parse("")
    assert (table.smart_host, table.transports, table.relay_mynetworks) == (
        None,
        {},
        None,
    )
    assert parse("smart_host = false\n").smart_host is None


@pytest.mark.parametrize(
    ("text", "host", "port", "by_mx"),
    [
        ("relay.example", "relay.example", 25, True),
        ("relay.example:587", "relay.example", 587, True),
        ("[relay.example]", "relay.example", 25, False),
        ("[relay.example]:465", "relay.example", 465, False),
        ("[192.0.2.1]:2525", "192.0.2.1", 2525, False),
        ("[2001:db8::1]:587", "2001:db8::1", 587, False),
        ("[ipv6:2001:db8::1]:587", "2001:db8::1", 587, False),
        ("[IPv6:2001:DB8::1]", "2001:DB8::1", 25, False),
    ],
)
def test_a_host(text: str, host: str, port: int, by_mx: bool) -> None:
    relay = relay_of(text)
    assert (relay.text, relay.host, relay.port, relay.by_mx) == (
        text,
        host,
        port,
        by_mx,
    )


@pytest.mark.parametrize(
    "text",
    ["", "a b", "[a", "a]", "a:0", "a:65536", "a:x", "[a]x", "2001:db8::1", "192.0.2.1"]
    + ["[fe80::1%eth0]", "[ipv6:fe80::1%eth0]:25", "[ipv6:192.0.2.1]", "[ipv6:a]"]
    + ["a\n", "-a.example", "a..b", "a, b", "[a]:587 b", "$myhostname", "a:\u0665"],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError):
        relay_of(text)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("relay_mynetworks = 1\n", 1, "true or false"),
        ("\n[smart_host]\nhsot = 'a'\nhost = 'a'\n", 3, 'did you mean "host"'),
        ("[smart_host]\nhost = 'a b'\n", 2, "is not host"),
        ("[smart_host]\nhost = 'a'\nuser = 'u'\n", 3, "has no password"),
        ("[smart_host]\nhost = 'a'\npassword_file = '/a'\n", 1, "no user"),
        ("[smart_host]\nhost = 'a'\ntls = 'maybe'\n", 3, '"maybe" is not'),
        ("[smart_host]\nhost = '[a]:465'\ntls = 'may'\n", 3, "is TLS alone"),
        ("[smart_host]\nhost = 'a'\nca_file = 'b'\n", 3, "whole path"),
        ("[smart_host]\nhost = 'a'\nca_file = '/$b'\n", 3, "whole path"),
        ("[smart_host]\nhost='a'\nuser='a:b'\npassword_file='/a'\n", 3, "colon"),
        ("[smart_host]\n", 1, "host is missing"),
        ("[smart_host]\nhost = 5\n", 2, "is not a line of text"),
        ("[smart_host]\nhost = ''\n", 2, "is not a line of text"),
        ("smart_host = true\n", 1, "is not a section"),
        ("smart_host = 'a'\n", 1, "or false"),
        ("[smart_host]\nhost='a'\nuser=5\npassword_file='/a'\n", 3, "in quotes"),
        ("[smart_host]\nhost='a'\nuser='u'\npassword_file=5\n", 4, "in quotes"),
        ("[smart_host]\nhost='a'\npreset='mailchannels'\n", 2, "keep one of the"),
        ("[smart_host]\npreset = 'other'\n", 2, '"other" is not "mailchannels"'),
        ("[transports]\na = 'error'\n", 2, "no text"),
        ("[transports]\n'a b' = 'oneshot'\n", 2, "is not a domain"),
        ("[transports]\n'#x@a.example' = 'oneshot'\n", 2, "is not a domain"),
        ("[transports]\n'\"x\"@a.example' = 'oneshot'\n", 2, "is not a domain"),
        ("[transports]\n'B.c' = 'oneshot'\n'b.C' = 'relaylim'\n", 3, "twice"),
        ("[transports]\n'b.c' = 'relaylim:[a.example'\n", 2, "is no host"),
        ("[transports]\n'b.c' = 'smtp:[fe80::1%eth0]'\n", 2, "has a zone"),
        ("[smart_host]\nhost = '[fe80::1%eth0]'\n", 2, "an address that needs none"),
        ("[transports]\n'b.c' = 'smtp:[a.example]:99999'\n", 2, "no port 99999"),
        ("[transports]\n'b.c' = 'smtp:a.example, [b]c'\n", 2, "is no host"),
        ("[transports]\n'b.c' = 'smtp:$relayhost'\n", 2, "not the name of a host"),
        ("[transports]\n'b.c' = 'relay:a..b'\n", 2, "not the name of a host"),
        ("[transports]\n'b.c' = 'oneshot:-x:25'\n", 2, "not the name of a host"),
        ("[transports]\n'b.c' = 'smtp:ipv6:::1'\n", 2, "not the name of a host"),
        ("[transports]\n'b.c' = 'smtp:[1.2.3]'\n", 2, "name or address"),
        ("[transports]\n'b.c' = 'smtp:[a.example]:nosuch'\n", 2, "no port nosuch"),
        ("[smart_host]\nhost = '[1.2.3]'\n", 2, "name or address"),
        ("[smart_host]\nhost = '1.2.3:25'\n", 2, "not the name of a host"),
        ("[smart_host]\nhost = 'a'\npin = 'yes'\n", 3, "true or false"),
        ("authorized_submit_users = ['a b']\n", 1, "no blank"),
        ("authorized_submit_users = []\n", 1, "empty list"),
        ("relay_mynetworks = \n", 1, "not TOML"),
    ],
)
def test_what_is_refused_has_a_line_and_a_remedy(
    text: str, line: int, said: str
) -> None:
    (problem,) = problems(text)
    assert problem.line == line
    assert said in f"{problem.message} {problem.remedy}"
    assert problem.remedy


def test_a_password_in_the_clear_is_refused() -> None:
    head = "[smart_host]\nhost = 'a'\nuser = 'u'\npassword_file = '/a'\n"
    assert not problems(f"{head}tls = 'encrypt'\n")
    for level in ("may", "none"):
        assert problems(f"{head}tls = '{level}'\n")
        assert not problems(f"[smart_host]\nhost = 'a'\ntls = '{level}'\n")


def test_all_problems_come_in_one_run() -> None:
    assert len(problems("relay_mynetworks = 1\nclient_port_logging = 2\nx = 3\n")) == 3


@pytest.mark.parametrize(
    ("domain", "value"),
    [("yahoo.com", "relaylim:"), (".ru", "oneshot:"), ("*", "smtp:[b.example]")]
    + [("a@b.example", "error:Bad domain!"), ("a#b+c@.d.example", "oneshot:")],
)
def test_a_transport(domain: str, value: str) -> None:
    assert pattern(domain.upper() if "@" not in domain else domain) == domain
    assert transport_value(value) == value
    assert transport_value(value.removesuffix(":")) == value


@pytest.mark.parametrize("raw", [b"", b"\n", b"a\nb", b" a", b"a ", b"\xff", b"a\0"])
def test_a_password_that_no_table_can_hold(raw: bytes) -> None:
    with pytest.raises(MailError):
        usable(raw, "here")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660])
def test_a_password_that_others_can_read(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("a b:c\n")
    path.chmod(mode)
    with pytest.raises(MailError, match="others than root"):
        Password(path).read()
    path.chmod(0o600)
    assert Password(path).read() == "a b:c"


def test_a_password_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MailError, match="not a regular file"):
        Password(Path("/dev/null")).read()


# ---- the page and the documentation


def explained(title: str) -> set[str]:
    items = read(PAGE)[title].items()
    return {key for item in items for key in item.named("Ic")}


def test_every_key_is_explained_and_no_other() -> None:
    assert explained("KEYS OF THE FILE") == known("")
    assert explained("[smart_host]") == known("[smart_host]")


def test_every_word_is_explained() -> None:
    items = {i.tag: i for i in read(PAGE)["[smart_host]"].items()}
    for key, text in (("tls", "host = 'a'\ntls = 'x'\n"), ("preset", "preset = 'x'\n")):
        (problem,) = problems(f"[smart_host]\n{text}")
        words = set(re.findall(r'"(\w+)"', problem.remedy))
        assert words == set(items[f"Ic {key}"].words("Cm"))


def test_the_examples_are_accepted() -> None:
    (text,) = literals(CHECKOUT / "docs/man" / PAGE)
    (shown,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    for example in (text, shown):
        table = parse(example)
        assert (
            table.smart_host and table.transports["example.com"] == "error:Bad domain!"
        )
    (policy,) = re.findall(r"```policy\n(.*?)```", DOCS, re.DOTALL)
    assert not parse_policy(f'mode = "observe"\nports = [587]\n{policy}').warnings


def test_a_line_is_that_of_a_key_in_quotes() -> None:
    text = '[transports]\n"a.example" = "oneshot"\n"b.example" = "error:"\n'
    (found,) = problems(text)
    assert (found.line, "b.example" in found.message) == (3, True)


def test_a_domain_ends_in_no_dot() -> None:
    with pytest.raises(ValueError, match="ends in a dot"):
        pattern("yahoo.com.")
