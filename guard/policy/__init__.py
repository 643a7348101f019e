# SPDX-License-Identifier: GPL-2.0-or-later
"""What is allowed: from TOML to the rows that the kernel compares.

Reading order: model, units, files, source, fields, smarthost, settings, parse,
check; then evaluate (the verdict in words) and rows (the same for the kernel).
"""

from guard.policy.evaluate import (
    Caller,
    Decision,
    Destination,
    Executable,
    Trial,
    evaluate,
    exe_id,
)
from guard.policy.model import (
    DEFAULT_FILE,
    DEFAULT_PORTS,
    Backstop,
    Fold,
    Known,
    Network,
    Policy,
    Problem,
    Rule,
    SmartHost,
)
from guard.policy.parse import load, parse, rebuild, refresh
from guard.policy.rows import Rows, compile_rows

__all__ = [
    "DEFAULT_FILE",
    "DEFAULT_PORTS",
    "Backstop",
    "Caller",
    "Decision",
    "Destination",
    "Executable",
    "Fold",
    "Known",
    "Network",
    "Policy",
    "Problem",
    "Rows",
    "Rule",
    "SmartHost",
    "Trial",
    "compile_rows",
    "evaluate",
    "exe_id",
    "load",
    "parse",
    "rebuild",
    "refresh",
]
