# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of the house that no linter knows: layers, lengths, licence, words."""

from __future__ import annotations

import ast
import graphlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
# Made by `make`, never in the repository.
GENERATED = re.compile(
    r"\.(git|venv(-fuzz)?|\w+_cache|hypothesis|benchmarks)|build|dist|.*-info"
)

# The reading order of guard/: a stage imports only what stands before it, a
# package's modules also each other. Those of cli/ stand side by side, see below.
STAGES = [
    "errors",
    "privileges",
    "text",
    "worker",
    "child",
    "abi",
    "event",
    "policy",
    "bpfstructs",
    "libbpf",
    "elf",
    "uprobes",
    "usdt",
    "pins",
    "ringbuf",
    "tables",
    "checks",
    "needs",
    "neighbours",
    "kernel",
    "serving",
    "trial",
    "lsm",
    "ring",
    "makers",
    "finding",
    "script",
    "origin",
    "sockholders",
    "requests",
    "procfs",
    "message",
    "touched",
    "lists",
    "values",
    "mailfields",
    "journal",
    "receipts",
    "delivery",
    "query",
    "mta",
    "incident",
    "held",
    "hosts",
    "backstop",
    "filewatch",
    "names",
    "sockdiag",
    "preexisting",
    "lastpolicy",
    "force",
    "ownerrules",
    "told",
    "verify",
    "watch",
    "scribe",
    "smarthost",
    "service",
    "waiting",
    "unaided",
    "daemon",
    "firewalls",
    "doctor",
    "mail",
    "cli",
]

# Bytes that once broke something: no text of ours.
CORPUS = CHECKOUT / "tests/fuzz/corpus"

PYTHON_LINES, C_LINES = 450, 300
# Longer, and why: one thing with no seam to cut it at.
LONGER = {
    "bpf/guard.h": 420,  # the contract, which both sides read as one
    "guard/abi.py": 490,  # and its mirror
}

# Formats that have no comments, or a licence for a content.
NO_SPDX = {".md", ".gitignore", "LICENSE", ".json", "changelog", "format"}


def files() -> Iterator[Path]:
    """Give every text file of the project."""
    for top, directories, names in os.walk(CHECKOUT):
        if CORPUS in Path(top, "x").parents:
            continue
        directories[:] = [
            name
            for name in directories
            if not GENERATED.fullmatch(name) and name != "__pycache__"
        ]
        for name in names:
            if not name.endswith((".o", ".pyc", ".png")):
                yield Path(top, name)


def short(path: Path) -> str:
    """Name a file as the repository does."""
    return str(path.relative_to(CHECKOUT))


def modules() -> dict[str, Path]:
    """Give guard's modules by their dotted names."""
    found = {}
    for path in CHECKOUT.glob("guard/**/*.py"):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Give the modules of guard that a file imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else str(node.module))
    return names & known.keys()


def stage(module: str) -> int:
    """Give the place of a module of guard in the reading order."""
    name = module.split(".")[1]
    assert name in STAGES, f"guard/{name} has no place in STAGES of {__file__} yet"
    return STAGES.index(name)


def test_a_stage_imports_only_what_lies_before_it() -> None:
    known = modules()
    for module, path in known.items():
        if module == "guard":
            continue
        for imported in imports(path, known) - {"guard"}:
            same_package = imported.split(".")[:2] == module.split(".")[:2]
            assert same_package or stage(imported) < stage(module), (
                f"{short(path)} imports {imported}, which lies after it"
            )


def test_no_module_imports_itself_in_a_circle() -> None:
    known = modules()
    graph = {module: imports(path, known) for module, path in known.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_verb_does_not_import_another() -> None:
    """What two verbs share is no verb: only main imports them all.

    A verb with verbs of its own (policy: policy_apply) imports those.
    """
    known = modules()
    verbs = {name for name in known if name.startswith("guard.cli.")}
    for verb in verbs - {"guard.cli.main"}:
        for imported in imports(known[verb], known) & verbs:
            is_verb = "@click.command" in known[imported].read_text()
            own = imported.startswith(f"{verb}_")
            assert own or not is_verb, f"{verb} imports {imported}"
            assert imported != "guard.cli.main", f"{verb} imports main"


def test_every_file_names_its_licence() -> None:
    bare = [
        short(path)
        for path in files()
        if path.suffix not in NO_SPDX
        and path.name not in NO_SPDX
        and "SPDX-License-Identifier: GPL-2.0-or-later"
        not in "".join(path.read_text().splitlines(keepends=True)[:3])
    ]
    assert not bare, "no SPDX line at the head"


def test_no_file_is_too_long() -> None:
    long = []
    for path in files():
        limit = {".py": PYTHON_LINES, ".c": C_LINES, ".h": C_LINES}.get(path.suffix)
        lines = len(path.read_text().splitlines())
        if limit and lines > LONGER.get(short(path), limit):
            long.append((short(path), lines))
    assert not long, "cut it where its sentence says `and`"


def test_no_file_names_a_registry_or_a_machine() -> None:
    forbidden = re.compile(
        r"\b(deb|security|pypi|registry|proxy|files|static)\.[a-z]+\.(org|io|com|dev)\b"
        r"|\bpypi\.[a-z]{2,}\b"
        r"|(?<![\w.])/(wor[k]|roo[t]|home)/\w"
    )
    found = [
        f"{short(path)}:{number}: {line.strip()}"
        for path in files()
        if path.name != "LICENSE"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if forbidden.search(line)
    ]
    assert not found, "\n".join(found)
