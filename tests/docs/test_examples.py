# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reader would copy works: commands parse, policies are accepted."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator

import click
import pytest

from guard.cli.main import guardctl
from guard.daemon import command_line
from tests.docs.mdoc import CHECKOUT, PAGES, literals
from tests.docs.options import verbs
from tests.docs.shells import PROGRAMS

_ENDS = {"|", "||", "&", "&&", ";", "(", ")"}
_REDIRECTS = {">", ">>", "<"}
POLICIES = [
    block
    for block in literals(CHECKOUT / "docs/man/smtp-guard.toml.5")
    if block.startswith("mode =")
]


def commands(text: str) -> Iterator[list[str]]:
    """Give the calls of guardctl and guardd in lines as a shell reads them."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # prose: an apostrophe
            continue
        call: list[str] = []
        for word in (*words, ";"):
            if word not in _ENDS:
                call.append(word)
                continue
            if call and call[0] in ("guardctl", "guardd"):
                yield _without_redirects(call)
            call = []


def _without_redirects(call: list[str]) -> list[str]:
    for at, word in enumerate(call):
        if word in _REDIRECTS:
            return call[:at]
    return call


def texts() -> Iterator[tuple[str, str]]:
    """Give all that holds commands to copy, by name."""
    for page in PAGES:
        yield page.name, "\n".join(literals(page))
    for verb, command in verbs():
        yield f"--help of {verb or 'guardctl'}", command.epilog or ""
    for name in ("README.md", "units/smtp-guard.catalog"):
        text = (CHECKOUT / name).read_text()
        indented = re.findall(r"^    (.*)", text, re.MULTILINE)
        yield name, re.sub("@[A-Z_]+@", "1", "\n".join(indented))


CALLS = [(name, call) for name, text in texts() for call in commands(text)]


@pytest.mark.parametrize(
    "call", [call for _, call in CALLS], ids=[f"{n}: {' '.join(c)}" for n, c in CALLS]
)
def test_commands_are_taken_by_the_parser(call: list[str]) -> None:
    if call[0] == "guardd":
        command_line().parse_args(call[1:])
        return
    command: click.Command = guardctl
    context = guardctl.make_context("guardctl", call[1:])
    while isinstance(command, click.Group):
        rest = [*context.protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found
        command, context = found, found.make_context(name, rest, parent=context)


def test_the_parser_would_tell() -> None:
    """Control: what is in no page is refused."""
    (call,) = commands("sudo true && guardctl who-connected --sinse today | head")
    with pytest.raises(click.NoSuchOption):
        test_commands_are_taken_by_the_parser(call)


def test_commands_were_found() -> None:
    names = {name for name, _ in CALLS}
    assert {"guardctl.1", "guardd.8", "README.md", "units/smtp-guard.catalog"} <= names
    found = {" ".join(call[1:3]).split(" --")[0] for _, call in CALLS}
    assert {"who-connected", "plan", "status", "policy check", "unload"} <= found


@pytest.mark.parametrize("number", range(len(POLICIES)))
def test_policies_are_accepted_without_a_warning(number: int, tmp_path: object) -> None:
    path = f"{tmp_path}/policy.toml"
    with open(path, "w") as file:
        file.write(POLICIES[number])
    done = subprocess.run(
        [PROGRAMS / "guardctl", "policy", "check", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert " 0 warnings" in done.stdout, done.stdout
