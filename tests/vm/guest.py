# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of one scenario in a guest, and how it ended."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm import debs
from tests.vm.image import KERNELS, Image

CHECKOUT = Path(__file__).resolve().parents[2]
SCENARIOS = Path(__file__).with_name("scenarios")
# Exit statuses of a scenario. 0 is none of them: any program may end with it.
PASSED, NOT_TRIED, AGAIN = 123, 77, 124  # again: boot what it has made of the disk
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info"
)
_COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off random.trust_cpu=on "
    "no_timer_check"
)


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

    def __str__(self) -> str:
        console = "\n".join(self.console.splitlines()[-40:])
        return (
            f"the scenario ended with {self.status} after {self.seconds:.0f} s\n"
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
    subprocess.run(
        ["mke2fs", "-qF", "-t", "ext4", "-O", "^has_journal"]
        + ["-d", tree, disk, "64M"],
        check=True,
    )
    shutil.rmtree(tree)
    return disk


def run(image: Image, kernel: str, scenario: Path, checkout: Path, folder: Path) -> End:
    """Boot a guest, run the scenario, give how it ended; logs go into folder.

    One that is not over within its seconds is ended, and has no status. One that ends
    with AGAIN is run by another boot, of the disk as it left it.
    """
    wants = head(scenario)
    root = f"file={image.root},if=virtio,format=raw,snapshot=on,cache=unsafe"
    if wants.boots > 1:
        own = folder / "root.ext4"
        subprocess.run(["cp", "--sparse=always", image.root, own], check=True)
        root = f"file={own},if=virtio,format=raw,cache=unsafe"
    ends: list[End] = []
    while not ends or (ends[-1].status == AGAIN and len(ends) < wants.boots):
        ends.append(_boot(image, kernel, scenario.name, wants, checkout, root, folder))
    if wants.boots > 1:
        own.unlink()
    return End(
        ends[-1].status,
        "\n--- another boot\n".join(end.report for end in ends),
        ends[-1].console,
        sum(end.seconds for end in ends),
    )


def _boot(
    image: Image,
    kernel: str,
    scenario: str,
    wants: Head,
    checkout: Path,
    root: str,
    folder: Path,
) -> End:
    ports = [folder / name for name in ("console", "report", "status")]
    argv = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none", "-accel", "tcg,thread=multi", "-cpu", "max,cx16=off",
        "-smp", "2", "-m", "2048",
        *(word for port in ports for word in ("-serial", f"file:{port}")),
        "-drive", root,
        "-drive", f"file={checkout},if=virtio,format=raw,readonly=on",
        "-kernel", str(image.kernel(kernel)), "-initrd", str(image.initrd(kernel)),
        "-append", f"{_COMMAND_LINE} boot={wants.boot} scenario={scenario} "
        f"{wants.append}",
    ]  # fmt: skip
    began = time.monotonic()
    qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        qemu.wait(wants.seconds)
        too_long = False
    except subprocess.TimeoutExpired:
        too_long = True
    finally:
        qemu.kill()
        qemu.wait()
    console, report, status = (
        port.read_text(errors="replace").replace("\r", "") if port.exists() else ""
        for port in ports
    )
    ended = None if too_long or not status.strip() else int(status)
    return End(ended, report, console, time.monotonic() - began)
