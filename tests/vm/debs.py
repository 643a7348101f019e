# SPDX-License-Identifier: GPL-2.0-or-later
"""The .deb that a guest installs, and one of a later version to upgrade to."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from guard import __version__

LATER = f"{__version__}+later"


def build(source: Path, into: Path) -> None:
    """Build both from a copy of source. Raises RuntimeError with what make said."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "source")
        shutil.copytree(source, tree)
        for version in (__version__, LATER):
            _name(tree, version)
            argv = ["make", "--directory", str(tree), "deb"]
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"make deb:\n{done.stdout}{done.stderr}")
            for deb in tree.glob("dist/*.deb"):
                shutil.copy(deb, into)


def _name(tree: Path, version: str) -> None:
    """Call what is built by another version; nothing else of it is another."""
    for name, old, new in (
        ("guard/__init__.py", r'__version__ = ".*"', f'__version__ = "{version}"'),
        ("debian/changelog", r"^smtp-guard \(.*?\)", f"smtp-guard ({version})"),
    ):
        path = tree / name
        path.write_text(re.sub(old, new, path.read_text(), count=1))
