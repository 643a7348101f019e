# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of one scenario in a guest, and how it ended."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.vm import debs
from tests.vm.image import KERNELS, Image

CHECKOUT = Path(__file__).resolve().parents[2]
SCENARIOS = Path(__file__).with_name("scenarios")
MOUNTED = "/opt/smtp-guard"  # there, in a guest: inside/boot
MEMORY = 2 * 2**30  # bytes, of a guest
BEGUN_WITHIN = 240  # seconds; 10 where nothing else runs
# Exit statuses of a scenario. 0 is none of them: any program may end with it.
PASSED, NOT_TRIED, AGAIN = 123, 77, 124  # again: boot what it has made of the disk
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info"
)
_COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off random.trust_cpu=on "
    "no_timer_check"
)
# An old one: what new ones have for speed is slow in an emulator, and guests use it
# where they see it. Without cmpxchg16b, for which it stops all processors.
_PROCESSOR = "Nehalem,cx16=off,rdrand=on"


@dataclass(frozen=True)
class Head:
    """What a scenario says first: `# boot: bare`, `# seconds: 120` for each boot.

    May be left out: `# boots: 2`, at most so many, of one disk; `# append: quiet`,
    the kernel's own options; and `# kernels: 6.1`, where what it is about does not
    change with the kernel.
    """

    boot: str
    seconds: int
    boots: int
    append: str  # more for the kernel's command line
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class End:
    """How a guest ended."""

    status: int | None  # of the scenario; None: it had no end
    report: str  # what the scenario printed
    console: str  # what kernel and systemd printed
    seconds: float
    processor: float = 0.0  # seconds, of the emulator
    vain: int = 0  # boots in vain

    @property
    def cost(self) -> str:
        """What it took."""
        took = f"after {self.seconds:.0f} s, {self.processor:.0f} s of processor"
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
    """One scenario under one kernel, its disks, and the folder for logs."""

    image: Image
    checkout: Path
    scenario: Path
    kernel: str
    folder: Path

    def run(self, stop: threading.Event) -> End:
        """Boot, run the scenario, give how it ended.

        One that is not over within its seconds, or by stop, is ended and has no
        status. One that ends with AGAIN is run by another boot, of the disk as it
        left it. One that was never begun is booted once more, and that is told.
        """
        wants = head(self.scenario)
        ends: list[End] = []
        with self._root(wants.boots > 1) as root:
            begun, vain = 0, 0
            while True:
                ends.append(self._boot(wants, root, stop))
                if not ends[-1].report and not vain and not stop.is_set():
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
            vain,
        )

    @contextlib.contextmanager
    def _root(self, kept: bool) -> Iterator[str]:
        """Give qemu's words for the root disk, writes to which are kept or not."""
        if not kept:
            yield f"file={self.image.root},snapshot=on"
            return
        own = self.folder / "root.ext4"
        subprocess.run(["cp", "--sparse=always", self.image.root, own], check=True)
        yield f"file={own}"
        own.unlink()

    def _boot(self, wants: Head, root: str, stop: threading.Event) -> End:
        ports = [self.folder / name for name in ("console", "report", "status")]
        for port in ports:
            port.write_text("")
        argv = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
            "-display", "none", "-accel", "tcg,thread=multi", "-cpu", _PROCESSOR,
            "-smp", "2", "-m", str(MEMORY // 2**20),
            *(word for port in ports for word in ("-serial", f"file:{port}")),
            "-drive", f"{root},if=virtio,format=raw,cache=unsafe",
            "-drive", f"file={self.checkout},if=virtio,format=raw,readonly=on",
            "-kernel", str(self.image.kernel(self.kernel)),
            "-initrd", str(self.image.initrd(self.kernel)),
            "-append", f"{_COMMAND_LINE} boot={wants.boot} "
            f"scenario={self.scenario.name} {wants.append}",
        ]  # fmt: skip
        began, used = time.monotonic(), 0.0
        qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        meter = psutil.Process(qemu.pid)
        try:
            while not stop.wait(0.2):
                # before it is waited for: later there is nothing to be read
                used = max(used, sum(meter.cpu_times()[:2]))
                lasted = time.monotonic() - began
                begun = ports[1].stat().st_size
                if (
                    qemu.poll() is not None
                    or lasted > wants.seconds
                    or (lasted > BEGUN_WITHIN and not begun)
                ):
                    break
            over = qemu.poll() is not None
        finally:
            qemu.kill()
            qemu.wait()
        console, report, status = (
            port.read_text(errors="replace").replace("\r", "") for port in ports
        )
        ended = int(status) if over and status.strip() else None
        return End(ended, report, console, time.monotonic() - began, used)
