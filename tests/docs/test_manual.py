# SPDX-License-Identifier: GPL-2.0-or-later
"""The man pages say what the programs do: all of it, and nothing else."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from guard import abi, errors
from guard.cli import srs
from guard.cli.output import row
from guard.finding import Kind
from guard.journal import MESSAGE_IDS, lines
from guard.ring import LOSSES
from tests.docs.mdoc import CHECKOUT, PAGES, Section, read
from tests.docs.options import guardctl_options, guardd_options, verbs
from tests.journal.findings import mail, refused, whole

HELP = {"-h", "--help"}
# Errors that a program does not end with.
NEVER: dict[str, set[type[errors.GuardError]]] = {
    "guardctl.1": {errors.TornEvent, errors.BadRequest, errors.ThreadDied},
    "guardd.8": {
        errors.TornEvent,
        errors.BadRequest,
        errors.BadQuery,
        errors.BadToken,
        errors.NotWritten,
    },
    "smtp-guard.7": {errors.TornEvent, errors.BadRequest},
}
OTHERS = {
    "guardctl.1": {0, 1, 2, srs.BAD, srs.EXPIRED, errors.EX_IOERR, 130, 141},
    "guardd.8": {0, 2},
    "smtp-guard.7": {1, errors.EX_IOERR},
}


def options_of(section: Section) -> dict[str, set[str]]:
    """Give the options that a section explains, and the words each takes."""
    return {
        f"-{name}": set(item.words("Cm"))
        for item in section.items()
        for name in item.named("Fl")
    }


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
@pytest.mark.parametrize(
    "reader", ["mandoc -Tlint -W warning", "man --warnings -l"], ids=["mandoc", "man"]
)
def test_readers_have_no_complaint(page: Path, reader: str) -> None:
    program, *arguments = reader.split()
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed: make setup")
    done = subprocess.run(
        [program, *arguments, page],
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "MANWIDTH": "80"},
        capture_output=True,
        text=True,
    )
    said = done.stderr + (done.stdout if program == "mandoc" else "")
    assert (done.returncode, said) == (0, "")


def test_every_verb_has_its_section_and_its_line() -> None:
    page = read("guardctl.1")
    leaves = [v for v, command in verbs() if not isinstance(command, click.Group)]
    assert sorted(leaves) == sorted(title for title in page if title.islower())
    listed = [item.tag for item in page["DESCRIPTION"].items()]
    assert sorted(listed) == sorted(f"Cm {verb}" for verb in leaves)


def test_every_option_of_a_verb_is_explained_and_no_other() -> None:
    page = read("guardctl.1")
    for verb, options in guardctl_options().items():
        if verb not in page and verb:
            assert set(options) == HELP, f"{verb} has options, and no section"
            continue
        section = page[verb or "OPTIONS"]
        explained = options_of(section)
        for line in section.lines:
            if line.startswith(".Sx CHOOSING"):
                shared = options_of(page[line[4:].rstrip(" ;.")])
                explained = shared | explained
        if verb:
            explained |= dict.fromkeys(HELP, set())
        assert explained.keys() == options.keys(), verb
        for option, words in options.items():
            assert set(words) <= explained[option], f"{verb} {option}"


def test_every_option_of_guardd_is_explained_and_no_other() -> None:
    page = read("guardd.8")
    explained = options_of(page["OPTIONS"])
    options = guardd_options()
    assert explained.keys() == options.keys()
    for option, words in options.items():
        assert set(words) <= explained[option], option
    synopsis = " ".join(page["SYNOPSIS"].lines)
    for option in options:
        assert f" {option.removeprefix('-')} " in f"{synopsis} ", option


@pytest.mark.parametrize("name", NEVER)
def test_every_exit_status_is_explained_and_no_other(name: str) -> None:
    classes = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.GuardError)
    ]
    used = {c.exit_status for c in classes if c not in NEVER[name]}
    used.discard(errors.GuardError.exit_status)  # of none but its subclasses
    explained = [int(item.tag) for item in read(name)["EXIT STATUS"].items()]
    assert explained == sorted(used | OTHERS[name])


def test_every_exit_status_that_help_names_is_explained() -> None:
    """And each verb whose status 1 is no error stands there by its name."""
    items = {int(i.tag): i for i in read("guardctl.1")["EXIT STATUS"].items()}
    told = " ".join(items[1].lines)
    by_words = {"mail spf": "SPF record", "srs decode": "no SRS", "srs check": "no SRS"}
    for verb, command in verbs():
        text = f"{command.help or ''}\n{command.epilog or ''}"
        for said in re.findall(r"[Ee]xit status.*?(?:\.\n|\.$|\n\n)", text, re.DOTALL):
            numbers = set(map(int, re.findall(r"(?<![-\w])\d+(?![-\w])", said)))
            assert numbers <= items.keys(), verb
            assert 1 not in numbers or by_words.get(verb, verb) in told, verb


def test_every_kind_of_finding_is_explained_and_no_other() -> None:
    tags = [item.named("Cm") for item in read("smtp-guard.7")["Kinds"].items()]
    assert sorted(sum(tags, [])) == sorted(kind.value for kind in Kind)
    assert set(MESSAGE_IDS) == set(Kind)


def test_every_field_of_a_finding_is_explained_and_no_other() -> None:
    section = read("smtp-guard.7")["Fields of connections"]
    explained = [name for item in section.items() for name in item.named("Dv")]
    written = {line.partition("=")[0] for line in lines(whole())}
    ours = {name for name in written if name.startswith("SMTPGUARD_")}
    assert sorted(explained) == sorted(ours)


def test_every_field_of_a_message_is_explained_and_no_other() -> None:
    page = read("smtp-guard.7")
    messages, connections = (
        {name for item in page[title].items() for name in item.named("Dv")}
        for title in ("Fields of messages", "Fields of connections")
    )
    entries = [*lines(mail(whole())), *lines(mail(None)), *lines(refused())]
    written = {line.partition("=")[0] for line in entries}
    ours = {name for name in written if name.startswith("SMTPGUARD_")}
    assert ours - connections == messages


def test_keys_of_json_are_those_of_the_fields() -> None:
    """Except for what the page of guardctl says of times and addresses."""
    section = read("smtp-guard.7")["Fields of connections"]
    fields = {
        name.removeprefix("SMTPGUARD_").lower()
        for item in section.items()
        for name in item.named("Dv")
    }
    changed = {"time", "start", "last", "duration_ms", "src", "dst", "via"}
    assert set(row(whole())) - fields == changed
    text = (CHECKOUT / "docs/man/guardctl.1").read_text()
    for key in changed:
        assert re.search(rf"^\.Li .*\b{key}\b", text, re.MULTILINE), key


def test_every_field_of_a_notice_is_explained_and_no_other() -> None:
    page = read("smtp-guard.7")
    notices, connections = (
        {name for item in page[title].items() for name in item.named("Dv")}
        for title in ("Fields of notices", "Fields of connections")
    )
    written = {f"SMTPGUARD_{name}" for name in notice_fields()}
    assert written - connections == notices


def notice_fields() -> set[str]:
    """Find the names that guard/ gives to fields of notices: keys of dicts."""
    found = {name for loss in LOSSES for name in (loss.name, f"{loss.name}_TOTAL")}
    for path in CHECKOUT.glob("guard/**/*.py"):
        text = path.read_text()
        if re.search(r"^from guard\.finding import .*\bNotice\b", text, re.MULTILINE):
            found |= {
                key.value
                for node in ast.walk(ast.parse(text))
                for key in _keys(node)
                if isinstance(key, ast.Constant)
                and re.fullmatch("[A-Z][A-Z0-9_]+", str(key.value))
            }
    return found


def _keys(node: ast.AST) -> list[ast.expr | None]:
    if isinstance(node, ast.Dict):
        return node.keys
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        return [node.slice]
    return []


def test_every_mark_of_a_finding_is_explained() -> None:
    """And each that is explained stands in the code."""
    section = read("smtp-guard.7")["Fields of connections"]
    marks = {word for item in section.items() for word in item.named("Cm")}
    flags = {
        str(flag.name).lower().replace("_", "-")
        for flag in abi.Flag
        if flag not in (abi.Flag.LSM, abi.Flag.MANY)
    }
    assert flags <= marks
    code = "".join(path.read_text() for path in CHECKOUT.glob("guard/**/*.py"))
    for mark in marks - flags:
        assert f'"{mark}"' in code


def test_every_outcome_is_named() -> None:
    (item,) = (
        item
        for item in read("smtp-guard.7")["Fields of connections"].items()
        if item.tag == "Dv SMTPGUARD_OUTCOME"
    )
    text = " ".join(item.lines)
    for outcome in abi.Outcome:
        assert outcome.name.lower().replace("_", "-") in text


def test_pages_that_are_referred_to_exist() -> None:
    ours = {page.name for page in PAGES}
    referred = set()
    for path in [*CHECKOUT.glob("units/*"), *CHECKOUT.glob("debian/**/*")]:
        if path.is_file():
            found = re.findall(r"man:([\w.-]+)\((\d)\)", path.read_text())
            referred |= {f"{name}.{number}" for name, number in found}
    for page in PAGES:
        found = re.findall(r"^\.Xr (\S+) (\d)", page.read_text(), re.MULTILINE)
        referred |= {f"{name}.{number}" for name, number in found}
    assert "guardctl.1" in referred
    assert {name for name in referred if re.match("guard|smtp-guard", name)} <= ours
