# SPDX-License-Identifier: GPL-2.0-or-later
"""One target under atheris: guided.py TARGET CORPUS... -libfuzzer_option=..."""

from __future__ import annotations

import importlib
import sys

# Not in Debian: `make fuzz` has it in an environment of its own.
atheris = importlib.import_module("atheris")

with atheris.instrument_imports(include=["guard", "tomllib", "ipaddress", "json"]):
    from tests.fuzz.targets import TARGETS, survives


def main() -> None:
    """Run until a limit or the first bug; libFuzzer's options are passed on."""
    program, name, *rest = sys.argv
    target = TARGETS[name]

    def one(data: bytes) -> None:
        survives(target, data)

    atheris.Setup([program, *rest], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
