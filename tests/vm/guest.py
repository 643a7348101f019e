# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of one scenario in a guest, and how it ended."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.vm import debs
from tests.vm.image import KERNELS, Image
from tests.vm.qemu import Emulator, Machine
from tests.vm.saved import BEGUN, BOOTED_WITHIN, READY, Saved, copy_disk

CHECKOUT = Path(__file__).resolve().parents[2]
SCENARIOS = Path(__file__).with_name("scenarios")
MOUNTED = "/opt/smtp-guard"  # there, in a guest: inside/boot
BEGUN_WITHIN = 120  # seconds, of a saved guest that goes on; 2 where nothing else runs
LOADED = 2  # times its seconds a scenario may take, on a machine that has more to do
# Exit statuses of a scenario. 0 is none of them: any program may end with it.
PASSED, NOT_TRIED, AGAIN = 123, 77, 124  # again: boot what it has made of the disk
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info"
)


@dataclass(frozen=True)
class Head:
    """What a scenario says first: `# boot: bare`, `# seconds: 120` from its begin on.

    May be left out: `# boots: 2`, at most so many, of one disk; `# append: quiet`,
    the kernel's own options; and `# kernels: 6.1`, where what it is about does not
    change with the kernel.
    """

    boot: str
    seconds: int
    boots: int
    append: str  # more for the kernel's command line
    kernels: tuple[str, ...]

    @property
    def saved(self) -> bool:
        """Whether it is about no boot, and may go on from a guest that was saved."""
        return self.boots == 1 and not self.append


@dataclass(frozen=True)
class End:
    """How a guest ended."""

    status: int | None  # of the scenario; None: it had no end
    report: str  # what the scenario printed
    console: str  # what kernel and systemd printed
    seconds: float
    processor: float  # seconds, of the emulator
    before: float  # of these, until the scenario began
    begun: bool
    vain: int = 0  # boots in vain

    @property
    def cost(self) -> str:
        """What it took."""
        took = (
            f"after {self.seconds:.0f} s, {self.processor:.0f} s of processor "
            f"({self.before:.0f} s until it began)"
        )
        return f"{took}, {self.vain} boot in vain" if self.vain else took

    def __str__(self) -> str:
        console = "\n".join(self.console.splitlines()[-40:])
        return (
            f"the scenario ended with {self.status} {self.cost}\n"
            f"--- console\n{console}\n--- report\n{self.report}"
        )


def head(scenario: Path) -> Head:
    """Read what a scenario wants of its guest."""
    fields = {}
    for line in scenario.read_text().splitlines():
        name, colon, value = line.removeprefix("# ").partition(": ")
        if line.startswith("# ") and colon:
            fields[name] = value
        elif fields:
            break
    kernels = fields["kernels"].split() if "kernels" in fields else KERNELS
    return Head(
        fields["boot"],
        int(fields["seconds"]),
        int(fields.get("boots", 1)),
        fields.get("append", ""),
        tuple(kernels),
    )


def checkout_disk(folder: Path) -> Path:
    """Make a disk of the checkout as it stands, with compiled objects and packages."""
    tree, disk = folder / "checkout", folder / "checkout.ext4"
    shutil.copytree(CHECKOUT, tree, ignore=_LEFT_OUT, symlinks=True)
    (tree / "dist").mkdir()
    debs.build(tree, tree / "dist")
    # The guest's Python is the suite's, as is this; there each start would compile
    # all of it, on a disk that keeps nothing.
    subprocess.run(
        ["/usr/bin/python3", "-m", "compileall", "-q", "-s", ".", "-p", MOUNTED]
        + ["--invalidation-mode", "unchecked-hash", "guard", "tests"],
        cwd=tree,
        check=True,
    )
    subprocess.run(
        ["mke2fs", "-qF", "-t", "ext4", "-O", "^has_journal"]
        + ["-d", tree, disk, "64M"],
        check=True,
    )
    shutil.rmtree(tree)
    return disk


@dataclass(frozen=True)
class Guest:
    """One scenario on one machine, and the folder for its logs."""

    machine: Machine
    scenario: Path
    folder: Path

    @classmethod
    def of(
        cls, image: Image, checkout: Path, scenario: Path, kernel: str, folder: Path
    ) -> Guest:
        """Give the guest that a scenario wants."""
        wants = head(scenario)
        machine = Machine(image, checkout, kernel, wants.boot, wants.append)
        return cls(machine, scenario, folder)

    def run(self, saved: Saved | None, stop: threading.Event) -> End:
        """Have a booted guest, run the scenario, give how it ended.

        One that is not over within its seconds, or by stop, is ended and has no
        status. One that ends with AGAIN is run by another boot, of the disk as it
        left it. One that was never begun is begun once more, and that is told.
        """
        wants = head(self.scenario)
        ends: list[End] = []
        with self._root(saved, wants.boots > 1) as root:
            begun, vain = 0, 0
            while True:
                ends.append(self._boot(saved, wants, root, stop))
                if not ends[-1].begun and not vain and not stop.is_set():
                    vain = 1
                    continue
                begun += 1
                if ends[-1].status != AGAIN or begun == wants.boots:
                    break
        return End(
            ends[-1].status,
            "\n--- another boot\n".join(end.report for end in ends),
            "\n--- another boot\n".join(end.console for end in ends),
            sum(end.seconds for end in ends),
            sum(end.processor for end in ends),
            sum(end.before for end in ends),
            ends[-1].begun,
            vain,
        )

    @contextlib.contextmanager
    def _root(self, saved: Saved | None, kept: bool) -> Iterator[str]:
        """Give qemu's words for the root disk, writes to which are kept or not."""
        if not kept:
            of = saved.root if saved else self.machine.image.root
            yield f"file={of},snapshot=on"
            return
        own = self.folder / "root.ext4"
        copy_disk(self.machine.image.root, own)
        yield f"file={own}"
        own.unlink()

    def _boot(
        self, saved: Saved | None, wants: Head, root: str, stop: threading.Event
    ) -> End:
        argv = [*self.machine.argv(root), "-serial", "stdio"]
        with Emulator(self.folder, argv, saved.state if saved else None) as qemu:
            begun = False
            if saved or qemu.wait_for("report", READY, BOOTED_WITHIN, stop):
                # a port holds 16 bytes, and loses them when it is put as it was saved
                qemu.tell(16 * "\n" + f"{self.scenario.name}\n")
                begun = qemu.wait_for("report", BEGUN, BEGUN_WITHIN, stop)
            used = qemu.processor
            if begun:
                qemu.wait_for_end(LOADED * wants.seconds, stop)
            status = qemu.said("talk").strip() if qemu.over else ""
            return End(
                int(status) if status else None,
                qemu.said("report"),
                qemu.said("console") + qemu.said("qemu"),
                qemu.seconds,
                qemu.processor,
                used,
                begun,
            )
