# SPDX-License-Identifier: GPL-2.0-or-later
"""TAB in bash, zsh and fish: the real shells offer what the programs take."""

from __future__ import annotations

import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.cli.main import VERBS
from guard.query.groups import FIELDS
from tests.docs.options import guardctl_options, guardd_options
from tests.docs.shells import COMPLETION, PROGRAMS, candidates, environment

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[str]:
    if not shutil.which(request.param, path="/usr/bin:/bin"):
        pytest.skip(f"{request.param} is not installed: make setup")
    yield request.param


def test_the_verbs_in_their_order(shell: str, tmp_path: Path) -> None:
    offered = candidates(shell, "guardctl ", tmp_path)
    if shell == "fish":  # it sorts by itself
        assert sorted(offered) == sorted(VERBS)
    else:
        assert offered == list(VERBS)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("guardctl wat", {"watch"}),
        ("guardctl policy s", {"show"}),
        ("guardctl who-connected --verdict ", {"deny", "allow", "redirect"}),
        ("guardctl who-connected --verdict deny --dir", {"--direction", "--directory"}),
        ("guardctl who-connected --group-by ", set(FIELDS)),
        ("guardctl who-connected --since yest", {"yesterday"}),
        ("guardctl --pin-dir /x watch --verdict r", {"redirect"}),
        ("guardctl plan --verdict=d", {"--verdict=deny"}),
        ("guardctl explain --loc", {"--local"}),
        ("guardd --design o", {"owner"}),
    ],
)
def test_words_that_a_place_takes(
    shell: str, line: str, offered: set[str], tmp_path: Path
) -> None:
    # zsh ends an option with the sign that its value comes after
    found = candidates(shell, line, tmp_path)
    assert {word.removesuffix("=") for word in found} == offered


def test_users_of_this_host(shell: str, tmp_path: Path) -> None:
    names = {e.pw_name for e in pwd.getpwall() if e.pw_name.startswith("r")}
    assert "root" in names
    assert set(candidates(shell, "guardctl watch --user r", tmp_path)) == names


@pytest.mark.parametrize("verb", ["guardctl policy check", "guardd --policy"])
def test_files_are_the_shells_to_find(shell: str, verb: str, tmp_path: Path) -> None:
    (tmp_path / "draft.toml").write_text("")
    (tmp_path / "drawer").mkdir()
    found = candidates(shell, f"{verb} {tmp_path}/dra", tmp_path)
    assert {word.rstrip("/") for word in found} == {
        f"{tmp_path}/draft.toml",
        f"{tmp_path}/drawer",
    }


@pytest.mark.parametrize(
    "option", ["guardctl --pin-dir", "guardctl load --cgroup", "guardd --cgroup"]
)
def test_folders_alone_where_it_is_a_folder(
    shell: str, option: str, tmp_path: Path
) -> None:
    (tmp_path / "draft.toml").write_text("")
    (tmp_path / "drawer").mkdir()
    found = candidates(shell, f"{option} {tmp_path}/dra", tmp_path)
    assert [word.rstrip("/") for word in found] == [f"{tmp_path}/drawer"]


@pytest.mark.parametrize("verb", ["", "who-connected", "policy check", "explain"])
def test_all_options_of_a_verb(shell: str, verb: str, tmp_path: Path) -> None:
    found = set(candidates(shell, f"guardctl {verb} --".replace("  ", " "), tmp_path))
    assert found == {o for o in guardctl_options()[verb] if o.startswith("--")}


def test_all_options_of_guardd(shell: str, tmp_path: Path) -> None:
    found = {o.removesuffix("=") for o in candidates(shell, "guardd --", tmp_path)}
    assert found == {o for o in guardd_options() if o.startswith("--")}


def test_zsh_and_fish_know_what_guardd_takes_for_a_word() -> None:
    """The files of guardd are written by hand: no design may be missing."""
    for path in COMPLETION.glob("*guardd*"):
        for word in guardd_options()["--design"]:
            assert word in path.read_text(), path.name


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        ("", []),
        ("who-connected --unit ", ["who-connected"]),
        ("explain --user r", ["explain"]),
        ("policy check --", ["policy", "check"]),
    ],
)
def test_completing_imports_no_more_than_help_does(
    words: str, verb: list[str], tmp_path: Path
) -> None:
    """What it imports is what its time goes to; times themselves vary with the load."""

    def imported(*argv: str, **asked: str) -> set[str]:
        done = subprocess.run(
            [PROGRAMS / "guardctl", *argv],
            env=environment(tmp_path) | {"PYTHONPROFILEIMPORTTIME": "1"} | asked,
            capture_output=True,
            text=True,
            check=True,
        )
        names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        return {name for name in names if name.partition(".")[0] == "guard"}

    helping = imported(*verb, "--help")
    completing = imported(
        _GUARDCTL_COMPLETE="bash_complete",
        COMP_WORDS=f"guardctl {words}",
        COMP_CWORD=str(len(words.split(" "))),
    )
    assert "guard.cli.main" in completing
    assert completing <= helping
