# SPDX-License-Identifier: GPL-2.0-or-later
"""The worst that a policy of 1 MiB can be made of: read or refused, within bounds."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.errors import PolicyError
from guard.policy import load
from guard.policy.check import CAPACITY
from guard.policy.source import MAX_BYTES, MAX_FILES

CHECKOUT = Path(__file__).resolve().parents[2]
HEAD = 'mode = "enforce"\n'
RULE = '[[rule]]\nname = "r{0}"\nverdict = "allow"\n'
# Measured: at most 4 s and 70 MiB; a busy machine takes longer.
SECONDS, MEGABYTES = 60, 400


def _many(line: Callable[[int], str]) -> str:
    """Repeat a line that has a number in it until the file is full."""
    made, size = [HEAD], len(HEAD)
    for number in range(MAX_BYTES):
        text = line(number)
        size += len(text)
        if size > MAX_BYTES:
            break
        made.append(text)
    return "".join(made)


def _list(key: str, value: Callable[[int], str]) -> str:
    """Fill the file with the list of one rule."""
    start = f"{HEAD}{RULE.format(0)}optional = true\n{key} = ["
    return start + _many(lambda number: f"{value(number)},")[len(HEAD) :][:-999] + "]"


def _eight_prefixes(number: int) -> str:
    to = ", ".join(f'"10.{other}.{number % 256}.0/24"' for other in range(8))
    return RULE.format(number) + f"to = [{to}]\n"


WORST: dict[str, Callable[[], str]] = {
    "a key of parts": lambda: "a." * (MAX_BYTES // 2 - 9) + "a = 1",
    "a header of parts": lambda: f"[{'a.' * (MAX_BYTES // 2 - 9)}a]",
    "keys of parts": lambda: _many(lambda n: "a." * 15 + f"b{n} = 1\n"),
    "parts behind a string": lambda: "a = {b = '''\n''', " + "c." * 9999 + "d = ''}",
    "quotes that do not end": lambda: _many(lambda _: '"\\"'),
    "100,000 rules without a name": lambda: _many(lambda _: "[[rule]]\n"),
    "as many as fit with one": lambda: _many(RULE.format),
    "rules that differ": lambda: _many(lambda n: f"[[rule]]\nuser={n}\n"),
    "keys that nobody knows": lambda: _many(lambda n: f"k{n}=1\n"),
    "texts and numbers": lambda: _list("unit", lambda n: f'"{n}.service",1'),
    "users": lambda: _list("user", lambda n: f'"u{n}"'),
    "uids": lambda: _list("user", str),
    "executables": lambda: _list("exe", lambda n: f'"/bin/{n}"'),
    "prefixes": lambda: _list("to", lambda n: f'"2001:db8::{n:x}"'),
    "prefixes in 500 rules": lambda: HEAD + "".join(map(_eight_prefixes, range(500))),
    "brackets": lambda: "a = " + "[" * (MAX_BYTES - 9),
    "braces": lambda: "{a=".join([""] * 300_000),
    "escapes": lambda: 'a = "' + "\\u0041" * (MAX_BYTES // 6 - 9) + '"',
    "one integer": lambda: f"{HEAD}ports = [0x{'f' * (MAX_BYTES - 99)}]",
    "one name": lambda: f'{HEAD}[[rule]]\nname = "{"x" * (MAX_BYTES - 99)}"',
    "one comment": lambda: f"{HEAD}#{'.' * (MAX_BYTES - 99)}",
}
CHECK = """
import sys
from guard.errors import PolicyError
from guard.policy import compile_rows, load
from guard.policy.files import stat_identify
try:
    compile_rows(load(sys.argv[1]), 0, stat_identify)
except PolicyError as error:
    error.report()
"""


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


@pytest.mark.parametrize("what", WORST)
def test_a_full_file(tmp_path: Path, what: str) -> None:
    text = WORST[what]()
    assert len(text) <= MAX_BYTES
    path = tmp_path / "policy.toml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, path],
        cwd=CHECKOUT,
        preexec_fn=_limits,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(PolicyError, match="longer than"):
        load(path)


def test_includes_in_a_circle_are_read_once(tmp_path: Path) -> None:
    names = [f"p{number}.toml" for number in range(MAX_FILES)]
    for name in names:
        mode = HEAD if name == names[0] else ""
        (tmp_path / name).write_text(f"{mode}include = {names}\n")
    assert len(load(tmp_path / names[0]).files) == MAX_FILES
    (tmp_path / "more.toml").write_text("")
    (tmp_path / names[-1]).write_text('include = "more.toml"\n')
    with pytest.raises(PolicyError, match="more than 64 files"):
        load(tmp_path / names[0])


def test_included_files_are_bounded_together(tmp_path: Path) -> None:
    names = [f"p{number}.toml" for number in range(9)]
    for name in names:
        (tmp_path / name).write_text("#" * (MAX_BYTES // 8))
    main = tmp_path / "policy.toml"
    main.write_text(f"{HEAD}include = {names}\n")
    with pytest.raises(PolicyError, match="bytes in all files"):
        load(main)


def test_links_in_a_circle_and_a_file_that_waits(tmp_path: Path) -> None:
    (tmp_path / "a.toml").symlink_to("b.toml")
    (tmp_path / "b.toml").symlink_to("a.toml")
    os.mkfifo(tmp_path / "c.toml")
    main = tmp_path / "policy.toml"
    for name in ("a", "c"):
        main.write_text(f'{HEAD}include = "{name}"\n')
        with pytest.raises(PolicyError, match="cannot be read"):
            load(main)


def test_room_is_counted_as_the_kernel_has_it() -> None:
    """Two policies are in the maps while one takes over from the other."""
    maps = (CHECKOUT / "bpf/maps.bpf.h").read_text()
    for name, rows in CAPACITY.items():
        (block,) = re.findall(r"struct \{([^}]*)\} " + name + r" SEC", maps)
        assert int(re.findall(r"max_entries, (\d+)", block)[0]) == 2 * rows, name
