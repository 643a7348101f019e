# SPDX-License-Identifier: GPL-2.0-or-later
"""The .deb that a guest installs, and those of later versions to upgrade to."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from guard import __version__, abi

LATER = f"{__version__}+later"
# The kernel programs of this one and Python agree on a contract (bpf/guard.h) that no
# other version knows: another number, and a policy with a field more.
OTHER_ABI = f"{__version__}+later.abi"


def build(source: Path, into: Path) -> None:
    """Build all from a copy of source.

    Raises RuntimeError with what make said, or with what there is no more to change.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "source")
        shutil.copytree(source, tree)
        for version in (__version__, LATER, OTHER_ABI):
            _name(tree, version)
            if version == OTHER_ABI:
                change_contract(tree)
            argv = ["make", "--directory", str(tree), "deb"]
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"make deb:\n{done.stdout}{done.stderr}")
            for deb in tree.glob("dist/*.deb"):
                shutil.copy(deb, into)


def _name(tree: Path, version: str) -> None:
    """Call what is built by another version; nothing else of it is another."""
    for name, old, new in (
        ("guard/__init__.py", r'__version__ = ".*?"', f'__version__ = "{version}"'),
        ("debian/changelog", r"^smtp-guard \(.*?\)", f"smtp-guard ({version})"),
    ):
        _change(tree / name, old, new)


def change_contract(tree: Path) -> None:
    """Have both sides of the contract say something else, in a checkout."""
    number = abi.ABI + 1
    header, mirror = tree / "bpf/guard.h", tree / "guard/abi.py"
    _change(header, r"(?m)^#define GUARD_ABI \d+$", f"#define GUARD_ABI {number}")
    _change(mirror, r"(?m)^ABI = \d+$", f"ABI = {number}")
    _change(
        header, r"struct policy \{", "struct policy {\n\tunsigned long long newcomer;"
    )
    _change(
        mirror,
        r"class Policy\(c\.Structure\):(\n.*?)_fields_ = \[",
        r'class Policy(c.Structure):\1_fields_ = [("newcomer", c.c_uint64),',
    )


def _change(path: Path, old: str, new: str) -> None:
    text, count = re.subn(old, new, path.read_text(), count=1, flags=re.DOTALL)
    if not count:
        raise RuntimeError(f"{path}: nothing matches {old}")
    path.write_text(text)
