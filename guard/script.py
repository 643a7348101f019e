# SPDX-License-Identifier: GPL-2.0-or-later
"""Which script an interpreter runs, from what the kernel saw of its process.

The arguments of a process are its own memory, which it may change: a script from
there is what the process says. Nothing is looked up in the file system, where
another file may have the name by now.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

# Where a script is known from: SMTPGUARD_SCRIPT_FROM, for ever.
FROM_REQUEST = "request"  # PHP's own probe, see bpf/php.bpf.c
FROM_ARGS = "args"  # an interpreter's arguments
FROM_CWD = "cwd"  # only its folder, into which PHP goes for a request


class Script(NamedTuple):
    """What is known of the script of a process."""

    path: str | None = None  # absolute; ends in a slash where only its folder is known
    known_from: str | None = None  # one of FROM_...; None: path is, too
    pool: str | None = None  # of php-fpm


@dataclass(frozen=True, slots=True)
class _Language:
    """How an interpreter reads its arguments: letters, and names after `--`.

    From its manual page; tests/kernel/test_script.py asks the interpreters.
    """

    no_file: str = ""  # the program is the value, or is read from elsewhere
    file: str = ""  # the value is the script
    takes: str = ""  # a value: the rest of the argument, or the next one
    takes_next: str = ""  # a value: always the next one
    glued: str = ""  # a value, if any: the rest of the argument
    search: str = ""  # a script without a slash is one of PATH
    long_no_file: frozenset[str] = field(default=frozenset())
    long_file: frozenset[str] = field(default=frozenset())
    long_takes: frozenset[str] = field(default=frozenset())
    plus: bool = False  # +x takes an option back
    after_dashes: bool = True  # `--` may stand before the script


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SHELL = _Language(
    no_file="cs",
    takes_next="oO",
    long_takes=_names("rcfile init-file emulate"),
    plus=True,
)
_PHP = _Language(
    no_file="rRBEa",
    file="fF",
    takes="cdzStgb",
    long_no_file=_names("run process-code process-begin process-end interactive"),
    long_file=_names("file process-file"),
    long_takes=_names("php-ini define zend-extension server docroot bindpath")
    | _names("rfunction rf rclass rc rextension re rzendextension rz rextinfo ri"),
    after_dashes=False,  # what follows are arguments of a script from standard input
)
_NODE = _Language(
    no_file="ep",
    takes="rC",
    long_no_file=_names("eval print test run"),
    # those that `node --help` of 18 to 22 shows with a value that is not optional
    long_takes=_names("require conditions import loader experimental-loader")
    | _names("allow-fs-read allow-fs-write build-snapshot-config cpu-prof-dir")
    | _names("cpu-prof-interval cpu-prof-name debug-port diagnostic-dir env-file")
    | _names("disable-proto disable-warning dns-result-order env-file-if-exists")
    | _names("experimental-default-type experimental-policy heap-prof-dir")
    | _names("experimental-sea-config heap-prof-interval heap-prof-name")
    | _names("heapsnapshot-near-heap-limit heapsnapshot-signal icu-data-dir")
    | _names("input-type inspect-port inspect-publish-uid max-http-header-size")
    | _names("network-family-autoselection-attempt-timeout openssl-config")
    | _names("policy-integrity redirect-warnings report-dir report-directory")
    | _names("report-filename report-signal secure-heap secure-heap-min")
    | _names("snapshot-blob test-concurrency test-name-pattern")
    | _names("test-reporter test-reporter-destination test-shard test-timeout title")
    | _names("tls-cipher-list tls-keylog trace-event-categories")
    | _names("trace-event-file-pattern trace-require-module unhandled-rejections")
    | _names("use-largepages v8-pool-size watch-path"),
)
_LANGUAGES = {
    "python": _Language(
        no_file="cm", takes="WXQ", long_takes=_names("check-hash-based-pycs")
    ),
    # `:` is what follows -d
    "perl": _Language(no_file="eE", takes="I", glued="iMmFxDCV:", search="S"),
    "ruby": _Language(
        no_file="e",
        takes="CXIrE",
        glued="iKWTFx",
        search="S",
        long_takes=_names("encoding external-encoding internal-encoding")
        | _names("enable disable dump backtrace-limit"),
    ),
    "node": _NODE,
    "php": _PHP,
    "php-cgi": _PHP,
    "sh": _SHELL,
}
_ALIASES = {"pypy": "python", "nodejs": "node"} | dict.fromkeys(
    ("bash", "dash", "ash", "zsh", "ksh", "mksh", "rbash"), "sh"
)
# python3.11, php8.2, php-fpm8.2, perl5.36-x86_64-linux-gnu, ksh93
_PROGRAM = re.compile(r"([a-z]+(?:-[a-z]+)?)(?:-?\d.*)?", re.ASCII | re.DOTALL)
# Go into the folder of the script for the time of a request, as php-fpm(8) does; as
# program_of() has them: apache is apache2.
_PER_REQUEST = frozenset(("php-fpm", "php-cgi", "lsphp", "apache", "httpd"))
_TITLE = "php-fpm: pool "  # fpm_children.c
# php8.2-fpm@shop.service, php-fpm-shop.service: a pool with a unit of its own
_POOL_UNIT = re.compile(r"php[\d.]*-fpm[\d.]*[@-](.+)\.service", re.ASCII | re.DOTALL)
# Names of an open file, not of a script.
_OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/self/fd/")
_NO_CWD = frozenset(("cwd-cut", "cwd-gone"))


def program_of(path: str) -> str:
    """Give the name of a program without its version: python3.11 is python."""
    name = path.rpartition("/")[2]
    found = _PROGRAM.fullmatch(name)
    return found[1] if found else name


@lru_cache(maxsize=4096)
def script_of(
    exe: str | None,
    args: tuple[str, ...],
    cwd: str,
    unit: str | None,
    incomplete: tuple[str, ...] = (),
    request: str = "",
) -> Script:
    """Give what is known of the script that a process runs.

    exe and cwd are paths as the kernel had them, incomplete is Finding's: of a
    folder that is gone or not whole, or an argument that may be cut, nothing is
    made up. request is the script that PHP's probe told of, "": none.
    """
    told = told_script(request)
    if exe is None:
        return Script(told, FROM_REQUEST) if told else Script()
    whole_cwd = None if _NO_CWD.intersection(incomplete) else cwd
    if program_of(exe) == "busybox" and args:
        if program_of(args[0]) == "busybox":
            args = args[1:]
        exe = args[0] if args else exe
    program = program_of(exe)
    pool = _pool(args, unit) if program == "php-fpm" else None
    if told:
        return Script(told, FROM_REQUEST, pool)
    language = _LANGUAGES.get(_ALIASES.get(program, program))
    if language:
        last = len(args) - 1 if "args-cut" in incomplete else len(args)
        path = _resolved(_argument(language, args, last), whole_cwd)
        if path:
            return Script(path, FROM_ARGS)
    if program in _PER_REQUEST and whole_cwd not in (None, "/"):
        return Script(f"{whole_cwd}/", FROM_CWD, pool)
    return Script(pool=pool)


def is_shell(exe: str, args: tuple[str, ...]) -> bool:
    """Tell whether a program is a shell, by its name."""
    program = program_of(exe)
    if program == "busybox" and args:
        program = program_of(args[0])
    return _LANGUAGES.get(_ALIASES.get(program, program)) is _SHELL


def told_script(request: str) -> str | None:
    """Give the script of a request as PHP's probe told of it; None: of no file."""
    return _resolved(request, None)  # not absolute: "Standard input code"


def _pool(args: tuple[str, ...], unit: str | None) -> str | None:
    """Name the pool of php-fpm: by its title, or else by a unit of its own."""
    if args and args[0].startswith(_TITLE):
        return args[0].removeprefix(_TITLE).rstrip() or None
    found = _POOL_UNIT.fullmatch(unit or "")
    return found[1] if found else None


def _argument(language: _Language, args: tuple[str, ...], whole: int) -> str | None:
    """Find the script among the arguments, of which so many are whole."""
    at, search = 1, False
    while at < len(args):
        arg = args[at]
        at += 1
        if arg == "--":
            if not language.after_dashes:
                return None
            return _script(args, at, whole, search)
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            if name in language.long_no_file:
                return None
            if name in language.long_file:
                return value if equals else _script(args, at, whole, False)
            at += name in language.long_takes and not equals
        elif len(arg) > 1 and (arg[0] == "-" or (language.plus and arg[0] == "+")):
            took = _letters(language, arg[1:])
            if took.no_file:
                return None
            if took.file is not None:
                return took.file or _script(args, at, whole, False)
            at += took.more
            search = search or took.search
        elif arg == "-":
            return None  # standard input
        else:
            return _script(args, at - 1, whole, search)
    return None


def _script(args: tuple[str, ...], at: int, whole: int, search: bool) -> str | None:
    if at >= whole or (search and "/" not in args[at]):
        return None
    return args[at]


class _Letters(NamedTuple):
    more: int = 0  # arguments that follow as values
    no_file: bool = False
    file: str | None = None  # "": the next argument
    search: bool = False


def _letters(language: _Language, letters: str) -> _Letters:
    """Read options of one letter that stand together, as in -we."""
    more, search = 0, False
    for at, letter in enumerate(letters):
        rest = letters[at + 1 :]
        if letter in language.no_file:
            return _Letters(no_file=True)
        if letter in language.file:
            return _Letters(file=rest.removeprefix("="))
        if letter in language.takes:
            return _Letters(more + (not rest), search=search)
        if letter in language.glued:
            break
        more += letter in language.takes_next
        search = search or letter in language.search
    return _Letters(more, search=search)


def _resolved(arg: str | None, cwd: str | None) -> str | None:
    """Make a path absolute; None: that cannot be done.

    `..` at its beginning goes up from cwd, which the kernel gives without links.
    One behind a name stays: that name may be a link to elsewhere.
    """
    if not arg or arg.startswith(_OPEN_FILES):
        return None
    if not arg.startswith("/") and cwd is None:
        return None
    parts = [] if arg.startswith("/") else (cwd or "").split("/")
    parts = [part for part in parts if part]
    physical = True
    for part in arg.split("/"):
        if part == ".." and physical:
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
            physical = False
    return "/" + "/".join(parts) if parts else None
