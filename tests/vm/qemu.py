# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of qemu: what it emulates, what its serial ports say, what it costs.

Ports of a guest: console, report, and talk, by which it is told the scenario and
answers with its exit status.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from tests.vm.image import Image

MEMORY = 2 * 2**30  # bytes, of a guest
_COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off random.trust_cpu=on "
    "no_timer_check"
)
# An old one: what new ones have for speed is slow in an emulator, and guests use it
# where they see it. Without cmpxchg16b, for which it stops all processors.
_PROCESSOR = "Nehalem,cx16=off,rdrand=on"
_LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Machine:
    """What is emulated: a kernel, how it boots, and the disk of the checkout."""

    image: Image
    checkout: Path
    kernel: str
    boot: str
    append: str = ""  # more for the kernel's command line

    def argv(self, root: str) -> list[str]:
        """Give qemu's words; root are those for the root disk."""
        return [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
            "-display", "none", "-accel", "tcg,thread=multi", "-cpu", _PROCESSOR,
            "-smp", "2", "-m", str(MEMORY // 2**20),
            "-serial", "file:console", "-serial", "file:report",
            "-drive", f"{root},if=virtio,format=raw,cache=unsafe",
            "-drive", f"file={self.checkout},if=virtio,format=raw,readonly=on",
            "-kernel", str(self.image.kernel(self.kernel)),
            "-initrd", str(self.image.initrd(self.kernel)),
            "-append", f"{_COMMAND_LINE} boot={self.boot} {self.append}",
        ]  # fmt: skip


class Emulator:
    """A running qemu, in a folder with the files of its ports; killed at the end."""

    PORTS = ("console", "report", "talk", "qemu")  # the last is its stderr

    def __init__(
        self, folder: Path, argv: list[str], state: Path | None = None
    ) -> None:
        """Start it; state is the file of a saved guest, which it goes on from."""
        self._folder = folder
        for port in self.PORTS:
            (folder / port).write_text("")
        with contextlib.ExitStack() as files:
            talk, said = (
                files.enter_context((folder / port).open("wb"))
                for port in self.PORTS[2:]
            )
            fds = []
            if state:
                fds = [files.enter_context(state.open("rb")).fileno()]
                argv = [*argv, "-incoming", f"fd:{fds[0]}"]
            self._process = subprocess.Popen(
                argv,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=talk,
                stderr=said,
                pass_fds=fds,
                text=True,
            )
        self._meter = psutil.Process(self._process.pid)
        self._began = time.monotonic()
        self.processor = 0.0  # seconds

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def seconds(self) -> float:
        """How long it runs."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def said(self, port: str) -> str:
        """Give what came by a port so far, or on qemu's own stderr."""
        return (self._folder / port).read_text(errors="replace").replace("\r", "")

    def tell(self, text: str) -> None:
        """Write to its stdin: to the guest, or to qemu's monitor."""
        assert self._process.stdin
        try:
            self._process.stdin.write(text)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which is seen

    def wait_for(
        self, port: str, text: str, seconds: float, stop: threading.Event
    ) -> bool:
        """Wait until a port has said this; give whether it has, in time."""
        self._wait(lambda: text in self.said(port), seconds, stop)
        return text in self.said(port)

    def wait_for_end(self, seconds: float, stop: threading.Event) -> None:
        """Wait until it has ended, at most so long."""
        self._wait(lambda: self.over, seconds, stop)

    def _wait(
        self, until: Callable[[], bool], seconds: float, stop: threading.Event
    ) -> None:
        limit = time.monotonic() + seconds
        while not until() and not self.over and time.monotonic() < limit:
            # while it runs: later there is nothing to be read
            with contextlib.suppress(psutil.NoSuchProcess):
                self.processor = sum(self._meter.cpu_times()[:2])
            if stop.wait(_LOOK_EVERY):
                break
