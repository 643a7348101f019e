# SPDX-License-Identifier: GPL-2.0-or-later
"""Does the kernel take our programs by now? Loaded, and let go of, by another process.

Whether they could be attached as well is asked, not tried: without rows they deny.

libbpf asks the kernel what it can once in a process, and takes a want that passes
(no memory, no descriptor) for an answer: a process that failed has to begin anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from guard import child, libbpf
from guard.errors import KernelError
from guard.kernel import OBJECT, find_cgroup2, has_room, usual_ring_bytes
from guard.needs import explained, passes


class Trial:
    """One trial, which runs beside what this process does."""

    def __init__(self, cgroup: Path | None) -> None:
        """Begin it, for a cgroup2 folder; None: the root.

        Raises OSError when no process can be started.
        """
        self._process = subprocess.Popen(
            [*child.command("guard.trial"), *([str(cgroup)] if cgroup else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def over(self) -> bool:
        """Tell whether result() can be asked."""
        return self._process.poll() is not None

    def result(self) -> tuple[str, bool]:
        """Give why it failed, "": it did not; and whether that may pass."""
        out, _ = self._process.communicate()
        try:
            why, passing = json.loads(out)
            return str(why), bool(passing)
        except (ValueError, TypeError):
            return f"the trial ended with {self._process.returncode}", True


def _try(cgroup: Path | None) -> tuple[str, bool]:
    try:
        with libbpf.Object(OBJECT) as trial:
            trial.set_max_entries("ring", usual_ring_bytes())
            trial.load()
        has_room(cgroup or find_cgroup2())
    except KernelError as error:
        return str(explained(error)), passes(error)
    return "", False


if __name__ == "__main__":
    json.dump(_try(Path(sys.argv[1]) if sys.argv[1:] else None), sys.stdout)
