# SPDX-License-Identifier: GPL-2.0-or-later
"""What pyproject.toml cannot say: a wheel carries the compiled BPF object.

The Makefile knows how the object is compiled; a mail host has no compiler.
"""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithObject(build_py):
    """Compile guard/guard.bpf.o and lay it and the policies into the package."""

    def run(self) -> None:
        """Add both to what setuptools copies.

        An editable install uses the checkout's own, which `make object` keeps
        up to date.
        """
        super().run()
        if self.editable_mode:
            return
        subprocess.run(["make", "--silent", "object"], check=True)
        package = Path(self.build_lib, "guard")
        objects = ("guard", "lsm", "holders", "handin", "php")
        for name in (f"{stem}.bpf.o" for stem in objects):
            shutil.copy2(Path("guard", name), package)
        shutil.copytree("policies", package / "policies", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithObject})
