# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that has booted, saved as it stands there: what scenarios go on from.

To boot costs an emulator more than most scenarios do, and all of one kernel boot alike.
So that is done once; then qemu writes memory and devices to a file, as for a migration
to another host, and every scenario has an emulator of its own that reads it. The disk
is a copy that no one writes to any more. A guest's clocks do not notice: they stand
still while it is a file, so CLOCK_REALTIME is behind by the age of that file.

Nothing of it outlives the run of the tests: the checkout is in the guest's memory.
"""

from __future__ import annotations

import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.vm.qemu import Emulator, Machine

READY, BEGUN = "--- ready", "--- begun"  # inside/run says so
BOOTED_WITHIN = 400  # seconds; 20 where nothing else runs
_SAVED_WITHIN = 200  # seconds; 3 where nothing else runs
_TRIES = 2  # of a boot: the emulator may hang
# A path as qemu's shell has it, in the folder of the guest.
_SAVE = """\
migrate_set_parameter max-bandwidth 16G
migrate "exec:cat >state"
info migrate
quit
"""


class NotSaved(Exception):
    """No scenario can go on from a booted guest; says why."""


@dataclass(frozen=True)
class Saved:
    """Where the parts of a saved guest are, and what it cost."""

    folder: Path
    seconds: float
    processor: float  # seconds, of the emulator

    @property
    def root(self) -> Path:
        """Its root file system, only to be read."""
        return self.folder / "root.ext4"

    @property
    def state(self) -> Path:
        """Its memory and devices."""
        return self.folder / "state"


def copy_disk(disk: Path, to: Path) -> None:
    """Copy a disk, holes as holes."""
    subprocess.run(["cp", "--sparse=always", disk, to], check=True)


def save(machine: Machine, folder: Path, stop: threading.Event) -> Saved:
    """Boot a machine, and save it where it waits for a scenario's name.

    Raises NotSaved, with what was on its console.
    """
    for _ in range(_TRIES):
        copy_disk(machine.image.root, folder / "root.ext4")
        argv = [
            *machine.argv(f"file={folder / 'root.ext4'}"),
            *("-serial", "null", "-monitor", "stdio"),
        ]
        with Emulator(folder, argv) as qemu:
            if qemu.wait_for("report", READY, BOOTED_WITHIN, stop):
                qemu.tell(_SAVE)
                qemu.wait_for_end(_SAVED_WITHIN, stop)
                if "status: completed" in qemu.said("talk"):
                    return Saved(folder, qemu.seconds, qemu.processor)
    raise NotSaved(
        f"{machine.kernel} {machine.boot}, within {qemu.seconds:.0f} s\n"
        + "\n".join(f"--- {port}\n{qemu.said(port)}" for port in qemu.PORTS)
    )
