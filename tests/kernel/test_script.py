# SPDX-License-Identifier: GPL-2.0-or-later
"""Which script an interpreter runs: the interpreters themselves are asked.

A script prints its name once it runs, so a row's answer is what was run, not what
its author thinks of the options.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guard.event import Event
from guard.finding import Finding
from guard.origin import Naming
from guard.script import Script, program_of, script_of
from tests.kernel.proc import join_cgroup
from tests.kernel.world import Watch, World

# What says "ran", and waits for its standard input to end.
_PROGRAMS = {
    "python": "import sys; print('ran', flush=True); sys.stdin.read()",
    "perl": "$| = 1; print qq(ran\\n); () = <STDIN>;",
    "ruby": "$stdout.sync = true; puts 'ran'; STDIN.read",
    "node": "console.log('ran'); require('fs').readFileSync(0)",
    "php": 'echo "ran\\n"; stream_get_contents(STDIN);',
    "sh": "echo ran; while read -r line; do :; done",
}
_SHELLS = ("sh", "dash", "bash", "zsh")

# Interpreter and arguments. {s}: the script, {c}: its text, {o}: an empty file that
# is a library or a setting, {d}: their folder. The script is found where {s} is the
# one that runs, and nothing is where the answer is None.
_ROWS: list[tuple[str, str, bool]] = [
    ("python3", "{s}", True),
    ("python3", "{s} -c x", True),
    ("python3", "-u -B {s} --to x", True),
    ("python3", "-W ignore -X utf8 {s}", True),
    ("python3", "-Wignore -Xutf8 -bb {s}", True),
    ("python3", "-OW ignore {s}", True),
    ("python3", "--check-hash-based-pycs default {s}", True),
    ("python3", "-- {s}", True),
    ("python3", "-c {c} {s}", False),
    ("python3", "-uc {c} {s}", False),
    ("python3", "-m lib {s}", False),
    ("python3", "-um lib {s}", False),
    ("perl", "{s} -e x", True),
    ("perl", "-w {s}", True),
    ("perl", "-Mstrict -I {d} -w {s}", True),
    ("perl", "-I{d} -mstrict {s}", True),
    ("perl", "-CS {s}", True),
    ("perl", "-0777 -l012 {s}", True),
    ("perl", "-T -- {s}", True),
    ("perl", "-S {s}", True),
    ("perl", "-e {c} {s}", False),
    ("perl", "-we {c} {s}", False),
    ("perl", "-Mstrict -E {c} {s}", False),
    ("ruby", "{s}", True),
    ("ruby", "-w -W0 {s} -e x", True),
    ("ruby", "-I {d} -r set {s}", True),
    ("ruby", "-I{d} -rset -Ku {s}", True),
    ("ruby", "-E UTF-8 {s}", True),
    ("ruby", "--encoding UTF-8 --disable gems {s}", True),
    ("ruby", "--encoding=UTF-8 --disable=gems {s}", True),
    ("ruby", "-C {d} -- {s}", True),
    ("ruby", "-e {c} {s}", False),
    ("ruby", "-we {c} {s}", False),
    ("node", "{s}", True),
    ("node", "-r {o} {s} -e x", True),
    ("node", "--require {o} --stack-trace-limit=9 {s}", True),
    ("node", "--title mailer {s}", False),  # it writes over its arguments
    ("node", "--require={o} --no-warnings {s}", True),
    ("node", "--max-old-space-size=64 {s}", True),
    ("node", "-C production --trace-uncaught {s}", True),
    ("node", "--unhandled-rejections strict -- {s}", True),
    ("node", "-e {c} {s}", False),
    ("node", "--eval {c} {s}", False),
    ("node", "-pe {c}", False),
    ("php", "{s}", True),
    ("php", "-f {s} -- -r x", True),
    ("php", "-f{s}", True),
    ("php", "--file {s}", True),
    ("php", "--file={s}", True),
    ("php", "-d display_errors=1 -c {d} {s} -r x", True),
    ("php", "-ddisplay_errors=1 -q {s}", True),
    ("php", "--define display_errors=1 -n {s}", True),
    ("php", "-nd display_errors=1 {s}", True),
    ("php", "-r {c} {s}", False),
    ("php", "-d display_errors=1 -r {c} -- {s}", False),
    ("php", "--run {c}", False),
    *[(shell, "{s} -c x", True) for shell in _SHELLS],
    *[(shell, "-e -u {s}", True) for shell in _SHELLS],
    *[(shell, "-o noglob -eu {s}", True) for shell in _SHELLS],
    *[(shell, "-eo noglob {s}", True) for shell in _SHELLS],
    *[(shell, "+e {s}", True) for shell in _SHELLS],
    *[(shell, "+o noglob {s}", True) for shell in _SHELLS],
    *[(shell, "-- {s}", True) for shell in _SHELLS],
    *[(shell, "-c {c} {s}", False) for shell in _SHELLS],
    *[(shell, "-ec {c} {s}", False) for shell in _SHELLS],
    ("bash", "--norc -O extglob +O nullglob {s}", True),
    ("bash", "--rcfile {o} --init-file {o} {s}", True),
    ("bash", "-euo pipefail {s}", True),
    ("zsh", "--emulate sh {s}", True),
    ("zsh", "-f -o shwordsplit {s}", True),
]


@pytest.fixture(scope="module")
def folder(programs: Path) -> Path:
    """A folder with a script of each language, a library and a setting."""
    made = programs / "with a space \x1b[31m"
    made.mkdir()
    for name, text in _PROGRAMS.items():
        begin = "<?php " if name == "php" else ""
        (made / name).write_text(f"{begin}{text}\n")
    (made / "lib.py").write_text(_PROGRAMS["python"])
    (made / "setting").write_text("")
    return made


def _language(interpreter: str) -> str:
    name = program_of(interpreter)
    return "sh" if name in _SHELLS else name


def _run(argv: list[str], cwd: Path) -> tuple[Script, str]:
    """Run until it says so; give what we say of it, and what it said."""
    if not shutil.which(argv[0]):
        pytest.skip(f"{argv[0]} is not installed")
    process = subprocess.Popen(
        argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    try:
        said = process.stdout.readline()
        raw = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        args = tuple(map(os.fsdecode, raw.removesuffix(b"\0").split(b"\0")))
        exe = os.readlink(f"/proc/{process.pid}/exe")
        return script_of(exe, args, os.readlink(f"/proc/{process.pid}/cwd"), None), said
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize(("interpreter", "arguments", "is_file"), _ROWS)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_the_script_is_the_one_that_runs(
    folder: Path, interpreter: str, arguments: str, is_file: bool, relative: bool
) -> None:
    language = _language(interpreter)
    script = folder / language
    place = f"./{language}" if relative else str(script)
    texts = {"s": place, "c": _PROGRAMS[language], "d": "." if relative else folder}
    texts["o"] = "./setting" if relative else folder / "setting"
    argv = [interpreter, *(word.format(**texts) for word in arguments.split(" "))]
    found, said = _run(argv, folder)
    assert said == "ran\n"
    assert found == (Script(str(script), "args") if is_file else Script())


@pytest.mark.parametrize(
    "first",
    [
        f"#!{sys.base_prefix}/bin/python3 -u",
        "#!/usr/bin/env python3",
        "#!/usr/bin/env -S python3 -u -W ignore",
    ],
)
def test_a_script_that_is_executed(folder: Path, first: str) -> None:
    script = folder / "executed"
    script.write_text(f"{first}\n{_PROGRAMS['python']}\n")
    script.chmod(0o755)
    assert _run([str(script)], Path("/")) == (Script(str(script), "args"), "ran\n")


def test_standard_input_is_no_script() -> None:
    for argv in (["sh", "-s", "x"], ["sh", "-"], ["python3", "-", "x"], ["php", "--"]):
        exe = shutil.which(argv[0])
        assert script_of(exe, (*argv, "/srv/x"), "/srv", None) == Script()


@pytest.mark.parametrize(
    ("exe", "args", "cwd", "path"),
    [
        ("/usr/bin/python3.11", ("python3", "../x.py"), "/srv/a", "/srv/x.py"),
        ("/usr/bin/python3.11", ("python3", "./..//.././x.py"), "/a/b", "/x.py"),
        # a link may lead anywhere
        ("/usr/bin/python3.11", ("python3", "link/../x"), "/a", "/a/link/../x"),
        ("/usr/bin/python3.11", ("python3", "/../x"), "/a", "/x"),
        ("/usr/bin/python3.11", ("python3", "."), "/srv/app", "/srv/app"),
        ("/usr/bin/python3.11-dbg", ("python3", "x"), "/", "/x"),
        ("/usr/bin/python3.11", ("a title",), "/srv", None),
        ("/usr/bin/python3.11", ("a title", "", ""), "/srv", None),
        ("/usr/bin/python3.11", (), "/srv", None),
        ("/usr/bin/python3.11", ("python3", "/dev/fd/63"), "/srv", None),
        ("/usr/bin/perl5.36-x86_64-linux-gnu", ("perl", "x"), "/srv", "/srv/x"),
        ("/usr/bin/perl", ("perl", "-S", "x"), "/srv", None),  # one of PATH
        ("/usr/bin/perl", ("perl", "-de", "0", "x"), "/srv", None),
        ("/usr/bin/perl", ("perl", "-d:Trace", "x"), "/srv", "/srv/x"),
        ("/usr/bin/php8.2", ("php", "-S", "[::1]:80", "r.php"), "/srv", "/srv/r.php"),
        ("/usr/bin/php8.2", ("php", "-S", "[::1]:80", "-t", "d"), "/srv", None),
        ("/usr/bin/php8.2", ("php", "--", "x"), "/srv", None),
        ("/bin/busybox", ("sh", "-e", "x"), "/srv", "/srv/x"),
        ("/bin/busybox", ("busybox", "ash", "x"), "/srv", "/srv/x"),
        ("/bin/busybox", ("busybox",), "/srv", None),
        ("/usr/bin/swaks-not-perl", ("perl", "x"), "/srv", None),
        ("/usr/bin/msmtp", ("msmtp", "x"), "/srv", None),
        ("/usr/bin/pythonesque", ("python3", "x"), "/srv", None),
        (None, ("python3", "x"), "/srv", None),
    ],
)
def test_paths_and_names(
    exe: str | None, args: tuple[str, ...], cwd: str, path: str | None
) -> None:
    assert script_of(exe, args, cwd, None) == Script(path, "args" if path else None)


@pytest.mark.parametrize("name", ["apache2", "httpd", "php-cgi8.2", "lsphp"])
def test_the_folder_that_php_goes_into(name: str) -> None:
    found = script_of(f"/usr/sbin/{name}", (name,), "/srv/shop", None)
    assert found == Script("/srv/shop/", "cwd")


def test_nothing_is_made_up() -> None:
    python = "/usr/bin/python3.11"
    plain = ("python3", "x.py")
    for lacking in ("cwd-gone", "cwd-cut"):
        assert script_of(python, plain, "/srv", None, (lacking,)) == Script()
        whole = script_of(python, ("python3", "/x.py"), "/srv", None, (lacking,))
        assert whole == Script("/x.py", "args")
        assert (
            script_of("/usr/sbin/php-fpm8.2", (), "/srv", None, (lacking,)).path is None
        )
    assert script_of(python, plain, "/srv", None, ("args-cut",)) == Script()
    more = ("python3", "x.py", "--to")
    assert script_of(python, more, "/", None, ("args-cut",)).path == "/x.py"


@pytest.mark.parametrize(
    ("title", "unit", "pool"),
    [
        ("php-fpm: pool www", "php8.2-fpm.service", "www"),
        ("php-fpm: pool www  ", None, "www"),
        ("php-fpm: master process (/etc/php/fpm.conf)", "php8.2-fpm.service", None),
        ("php-fpm", "php8.2-fpm@shop.service", "shop"),
        ("php-fpm", "php-fpm-shop.example.service", "shop.example"),
        ("php-fpm", "php82-fpm@shop.service", "shop"),
        ("php-fpm", "nginx.service", None),
        ("php-fpm: pool \x1b[2J\udcff", None, "\x1b[2J\udcff"),
    ],
)
def test_the_pool_and_the_folder_of_php_fpm(
    title: str, unit: str | None, pool: str | None
) -> None:
    exe = "/usr/sbin/php-fpm8.2"
    found = script_of(exe, (title, "", ""), "/srv/www/shop", unit)
    assert found == Script("/srv/www/shop/", "cwd", pool)
    assert script_of(exe, (title,), "/", unit) == Script(pool=pool)
    other = script_of("/usr/bin/vim", (title,), "/srv/www/shop", unit)
    assert other == Script()


# ---- from the kernel on

_CONNECTS = (
    "import os, socket, sys\n"
    "if sys.argv[1:]: os.rmdir(os.getcwd())\n"
    "socket.create_connection(('127.0.0.1', 25))\n"
)


def _found(world: World, watch: Watch, cwd: Path, *argv: str) -> Finding:
    def enter() -> None:
        join_cgroup(world.guarded)

    subprocess.run(argv, cwd=cwd, preexec_fn=enter, check=True)
    event: Event = watch.one()
    return Naming().finding(event)


@pytest.mark.usefixtures("local_server")
def test_a_connection_says_its_script(world: World, watch: Watch, folder: Path) -> None:
    (folder / "mail.py").write_text(_CONNECTS)
    found = _found(world, watch, folder, "python3", "-u", "./mail.py")
    assert (found.script, found.script_from) == (str(folder / "mail.py"), "args")
    assert "cwd-gone" not in found.incomplete


@pytest.mark.usefixtures("local_server")
def test_a_folder_that_is_gone_is_not_guessed(
    world: World, watch: Watch, folder: Path
) -> None:
    (folder / "mail.py").write_text(_CONNECTS)
    gone = folder / "gone"
    gone.mkdir()
    found = _found(world, watch, gone, "python3", "../mail.py", "x")
    assert not gone.exists()
    assert (found.script, found.script_from) == (None, None)
    assert found.cwd == str(gone) and "cwd-gone" in found.incomplete
