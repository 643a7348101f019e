# SPDX-License-Identifier: GPL-2.0-or-later
"""A process of its own that runs one of our modules, from where this one came.

The package keeps our modules in a folder that Python does not search by itself, and
as root nothing may come from the folder that this happens to be in.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HOME = Path(__file__).resolve().parents[1]
_RUN = "import runpy, sys; sys.path.insert(0, sys.argv[1]); "
_RUN += "runpy.run_module(sys.argv[2], run_name='__main__')"


def command(module: str) -> list[str]:
    """Give the arguments that start it, isolated from the caller's environment."""
    flags = "-IB" if sys.dont_write_bytecode else "-I"
    return [sys.executable, flags, "-c", _RUN, str(_HOME), module]
