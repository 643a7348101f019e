# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail spf against BIND; what we call void, Debian's python3-spf does too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from guard.mta.spf import MAX_STRING, Term, strings, terms, wanted
from tests.docs.mdoc import CHECKOUT
from tests.lab import Lab
from tests.lab.dns import NameServer
from tests.lab.lab import Done

RELAY = "relay.mailchannels.net"
SEED = f"v=spf1 a mx include:{RELAY} ?all"
ADDRESSES = ("192.0.2.10", "2001:db8:1::10")
CHECK = """\
import json, spf, sys
print(json.dumps([spf.check2(i=i, s="a@" + d, h=d)[0] for d, i in
      (word.split(",") for word in sys.argv[1:])]))
"""
# One record a name of probe.example: what is said about it, what a checker answers
# for an address that none names.
LONG = " ".join(f"ip4:198.51.100.{n}" for n in range(1, 40))
RECORDS = {
    "plain": ("v=spf1 a mx -all", "", "fail"),
    "twice": ("v=spf1 -all|v=spf1 a -all", "2 SPF records", "permerror"),
    "many": (
        "v=spf1 " + " ".join(f"a:h{n}.probe.example" for n in range(11)) + " -all",
        "11 lookups",
        "permerror",
    ),
    "ten": (
        "v=spf1 " + " ".join(f"a:h{n}.probe.example" for n in range(10)) + " -all",
        "",
        "fail",
    ),
    "nested": (
        "v=spf1 include:ten.probe.example -all",
        "11 lookups",
        "permerror",
    ),
    "circle": ("v=spf1 include:circle.probe.example -all", "leads back", "permerror"),
    "nothing": ("v=spf1 include:h1.probe.example -all", "no SPF record", "permerror"),
    "wrong": ("v=spf1 ip4:192.0.2.300 -all", "is no term of SPF", "permerror"),
    "unknown": ("v=spf1 foo -all", "is no term of SPF", "permerror"),
    "behind": ("v=spf1 -all mx", "behind all: mx", "fail"),
    "open": ("v=spf1 +all", "lets anybody send", "pass"),
    "void": (
        "v=spf1 a:n1.probe.example a:n2.probe.example a:n3.probe.example -all",
        "3 lookups have no answer",
        "permerror",
    ),
    "long": (f"v=spf1 {LONG} -all", "", "fail"),
    "redirected": ("v=spf1 redirect=plain.probe.example", "", "fail"),
    "macro": ("v=spf1 exists:%{i}.probe.example -all", "", "fail"),
}


def zone_of_records() -> str:
    lines = [f"h{n} IN A 198.51.100.{200 + n}" for n in range(12)]
    for name, (text, _, _) in RECORDS.items():
        lines += [f"{name} IN A 198.51.100.1", f"{name} IN MX 10 {name}"]
        for record in text.split("|"):
            quoted = " ".join(f'"{part}"' for part in strings(record))
            lines.append(f"{name} IN TXT {quoted}")
        lines.append(f'{name} IN TXT "another=1"')
    return "\n".join(lines)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def dns(lab: Lab) -> NameServer:
    server = NameServer(lab)
    server.set("mailchannels.net", 'relay IN TXT "v=spf1 ip4:203.0.113.0/24 -all"')
    server.set("probe.example", zone_of_records())
    return server


def ask(lab: Lab, *argv: str) -> Done:
    return lab.run(["guardctl", "mail", "spf", *argv], timeout=60)


def answer(lab: Lab, *argv: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(lab, *argv, "--json").stdout)
    return found


def checked(lab: Lab, *pairs: tuple[str, str]) -> list[str]:
    """Ask python3-spf: domain and client's address in, result out."""
    words = [",".join(pair) for pair in pairs]
    argv = ["/usr/bin/python3", "-c", CHECK, *words]
    found: list[str] = json.loads(lab.check(argv, timeout=120))
    return found


def test_the_zone_of_the_seed(lab: Lab, dns: NameServer) -> None:
    """From nothing to the whole zone; served, all is as it should be."""
    dns.set("shop.example", "")
    options = ["--include", RELAY, "--ttl", "300"]
    for address in ADDRESSES:
        options += ["--address", address]
    before = answer(lab, "shop.example", *options)
    assert before["records"] == [] and before["wanted"] == SEED
    text = ask(lab, "shop.example", *options, "--zone-file")
    assert text.returncode == 1, "it is not there yet"
    lines = text.stdout.splitlines()
    assert lines[:3] == [
        "shop.example. 300 IN MX 10 mail.shop.example.",
        "shop.example. 300 IN MX 20 mail.shop.example.",
        f'shop.example. 300 IN TXT "{SEED}"',
    ]
    hosts = ("mail", "horde", "roundcube")
    assert lines[3:] == [
        f"{host}.shop.example. 300 IN {kind} {address}"
        for kind, address in zip(("A", "AAAA"), ADDRESSES, strict=True)
        for host in hosts
    ]
    assert [" ".join(map(str, row.values())) for row in before["zone"]] == [
        line.replace(" IN ", " ") for line in lines
    ]

    dns.set("shop.example", f"{text.stdout}\n@ IN A 192.0.2.10\n")  # named-checkzone
    after = ask(lab, "shop.example", *options)
    assert after.returncode == 0, after
    assert "should    be so" in after.stdout and "3 of 10 lookups" in after.stdout
    clients = ("203.0.113.7", "192.0.2.10", "198.51.100.9")
    results = checked(lab, *(("shop.example", client) for client in clients))
    assert results == ["pass", "pass", "neutral"]


def test_the_zone_of_the_documentation(lab: Lab, dns: NameServer) -> None:
    """What it prints is what docs/spf.md shows, and a zone that BIND serves."""
    dns.set("example.com", "")
    page = (CHECKOUT / "docs/spf.md").read_text()
    [(command, shown)] = re.findall(
        r"^    guardctl mail spf ((?:.*\\\n)?.*--zone-file)$[^`]*```zone\n([^`]*)```",
        page,
        re.MULTILINE,
    )
    argv = command.replace("\\\n", " ").split()
    assert ask(lab, *argv).stdout == shown
    dns.set("example.com", f"{shown}\n@ IN A 192.0.2.1\n")
    argv.remove("--zone-file")
    assert ask(lab, *argv).returncode == 0, "published, all is as it should be"


def test_below_a_zone(lab: Lab, dns: NameServer) -> None:
    zone = ask(lab, "sub.plain.probe.example", "--zone", "probe.example", "--zone-file")
    first = zone.stdout.splitlines()[0]
    assert first == "sub.plain.probe.example. 1800 IN MX 10 mail.probe.example."


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_wrong_with_a_record(lab: Lab, dns: NameServer, name: str) -> None:
    _, problem, result = RECORDS[name]
    found = answer(lab, f"{name}.probe.example")
    said = " ".join(found["problems"])
    assert (problem in said) if problem else not found["problems"], found
    domain = f"{name}.probe.example"
    assert checked(lab, (domain, "203.0.113.99")) == [result]
    assert (result == "permerror") is any(
        word in said for word in ("void", "lookups", "have no answer")
    ), said


def test_a_long_record_is_split_and_whole_again(lab: Lab, dns: NameServer) -> None:
    found = answer(lab, "long.probe.example", "--include", RELAY)
    want = found["wanted"]
    assert len(want) > 2 * MAX_STRING and f"include:{RELAY} -all" in want
    assert "may not fit" in str(found["notes"])
    [txt] = [row["value"] for row in found["zone"] if row["type"] == "TXT"]
    parts = txt.removeprefix('"').removesuffix('"').split('" "')
    assert max(map(len, parts)) <= MAX_STRING and "".join(parts) == want
    dns.set("long.example", f"@ IN TXT {txt}\n")
    again = answer(lab, "long.example", "--include", RELAY)
    assert again["records"] == [want] and again["good"]
    assert checked(lab, ("long.example", "203.0.113.7")) == ["pass"]


def test_nobody_answers(lab: Lab, dns: NameServer) -> None:
    done = ask(lab, "plain.probe.example", "--server", "127.0.0.1")
    assert done.returncode == 75 and "--server" in done.stderr
    assert ask(lab, "plain.probe.example", "--server", "192.0.2.1").stdout


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (None, SEED),
        ("v=spf1 -all", f"v=spf1 include:{RELAY} -all"),
        ("v=spf1 ip4:192.0.2.1 ~all", f"v=spf1 ip4:192.0.2.1 include:{RELAY} ~all"),
        (
            f"v=spf1 include:{RELAY.upper()}. -all",
            f"v=spf1 include:{RELAY.upper()}. -all",
        ),
        (f"v=spf1 -all include:{RELAY}", f"v=spf1 include:{RELAY} -all"),
        (
            "v=spf1 mx redirect=b.example",
            f"v=spf1 mx include:{RELAY} redirect=b.example",
        ),
        ("v=spf1", f"v=spf1 include:{RELAY}"),
        (
            f"v=spf1 a -include:{RELAY} x=y -all",
            f"v=spf1 a -include:{RELAY} x=y include:{RELAY} -all",
        ),
    ],
)
def test_what_there_is_is_kept(text: str | None, want: str) -> None:
    assert wanted(text, [RELAY]) == want
    assert wanted(want, [RELAY]) == want, "once is enough"


def test_terms_are_read() -> None:
    assert terms("v=spf1  ~ip4:192.0.2.0/24 A/24 exp=x.y ?") == [
        Term("~ip4:192.0.2.0/24", "ip4", "~", "192.0.2.0/24"),
        Term("A/24", "a", "", "/24"),
        Term("exp=x.y", "exp", "", "x.y"),
        Term("?", ""),
    ]


@pytest.mark.parametrize("text", ["x" * 255, "x" * 256, "a b " * 200, "", "x" * 1000])
def test_strings_join_to_the_record(text: str) -> None:
    assert "".join(strings(text)) == text
    assert max(map(len, strings(text))) <= MAX_STRING


@pytest.mark.parametrize(
    "argv",
    [
        ("no dots",),
        ("-x.example",),
        ("a.example", "--address", "300.1.1.1"),
        ("a.example", "--zone", "b.example"),
        ("a.example", "--server", "ns.example"),
        ("a.example", "--ttl", "-1"),
        ("a.example", "--json", "--zone-file"),
        ("ä.example",),
        ("a" * 300 + ".example",),
    ],
)
def test_bad_arguments_are_told(lab: Lab, argv: tuple[str, ...]) -> None:
    done = ask(lab, *(["--", *argv] if argv[0].startswith("-") else argv))
    assert done.returncode in (2, 64) and done.stderr and not done.stdout
