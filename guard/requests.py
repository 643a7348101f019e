# SPDX-License-Identifier: GPL-2.0-or-later
"""Every PHP of this host tells which request it is at, where it has the probes for it.

Attached are PHP's files that only root can write, where distributions and panels
install them, and those that processes run: found by looking again and again. Links
are pinned beside the guard's maps, so what is known of a request does not end with
guardd, and what `guardctl load` attached at boot stays where guardd itself may not.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guard import libbpf, uprobes, usdt
from guard.errors import KernelError
from guard.kernel import Guard
from guard.pins import pin_anew
from guard.policy.files import is_trusted
from guard.script import program_of
from guard.tables import MAPS
from guard.worker import Worker

OBJECT = Path(__file__).with_name("php.bpf.o")
PIN = "php-"  # and name of _File, place in the file, program
_NAME_PARTS = 3
_ELF = b"\x7fELF"
# In the order in which they are attached: no request may begin whose end is not seen.
_PROGRAMS = {"request__shutdown": "php_shutdown", "request__startup": "php_startup"}
_LOOK_SECONDS = 10.0
_PATHS = (
    *("/usr/bin/php*", "/usr/sbin/php*", "/usr/lib/cgi-bin/php*", "/usr/libexec/php*"),
    *("/usr/lib/apache2/modules/libphp*.so", "/usr/lib64/httpd/modules/libphp*.so"),
    *("/usr/local/bin/php*", "/usr/local/sbin/php*"),
    # CloudLinux, cPanel, Remi
    *("/opt/alt/php*/usr/bin/*php*", "/opt/alt/php*/usr/sbin/php*"),
    *("/opt/*/*php*/*/usr/bin/*php*", "/opt/*/*php*/*/usr/sbin/php*"),
    *("/opt/plesk/php/*/bin/php*", "/opt/plesk/php/*/sbin/php*"),
    *("/usr/local/lsws/lsphp*/bin/*php*", "/usr/local/php*/bin/php*"),
)
_RUN = frozenset(("php", "php-fpm", "php-cgi", "lsphp"))
_HOLD = frozenset(("apache", "httpd"))  # run it as a library; apache2 less its number
_MOST_MAPS = 4 << 20  # bytes that are read of one; a program's own come first, or soon
_LIBRARY = re.compile(rb"^\S+ r-xp (?:\S+ ){3} *(/\S*/libphp[\d.]*\.so)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _File:
    """A file that may be PHP, by its inode: what it was found as."""

    name: str  # device, inode and time of its last change
    path: Path


class Requests(Worker):
    """Keeps our programs attached to every PHP, in a thread of its own."""

    task = "follows PHP"

    def __init__(self, guard: Guard, seconds: float = _LOOK_SECONDS) -> None:
        """Look every so many seconds, for as long as this process lives."""
        super().__init__("requests")
        self._guard = guard
        self._seconds = seconds
        self._object: libbpf.Object | None = None
        self._multi = True  # until this kernel says that it does not know it
        self._attached: set[str] = set()  # names of _File
        self._without: set[str] = set()  # have no probe
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """Why requests are not told; "" when they are."""
        return self._trouble

    def work(self) -> None:
        """Thread body."""
        end = threading.Event()
        while True:
            self.look()
            end.wait(self._seconds)

    def look(self) -> None:
        """Attach to what is new, let go of what is gone. Never raises for a host's
        sake: trouble says what failed.
        """
        trouble = ""
        seen = set()
        # of those whose pins somebody removed nothing is left
        pinned = Counter(map(_of_pin, self._guard.home.glob(f"{PIN}*")))
        whole = {name for name, pins in pinned.items() if pins >= len(_PROGRAMS)}
        self._attached &= whole
        try:
            for file in _files():
                seen.add(file.name)
                try:
                    self._attach(file)
                except (KernelError, OSError) as error:
                    if file.name in whole:  # attached by who may: as good
                        self._attached.add(file.name)
                    else:
                        trouble = trouble or _reason(error)
            self._let_go(seen)
            self._forget_dead()
        except (KernelError, OSError) as error:  # the guard is being taken out
            trouble = trouble or str(error)
        self._trouble = trouble

    def _attach(self, file: _File) -> None:
        if file.name in self._attached or file.name in self._without:
            return
        with _opened(file.path) as opened:
            if opened is None or file.name != _name(os.fstat(opened.fileno())):
                return
            found = usdt.probes(opened, "php")
            wanted = [
                probe for name in _PROGRAMS for probe in found if probe.name == name
            ]
            # by its descriptor: not another file that has got the name since
            path = Path(f"/proc/self/fd/{opened.fileno()}")
            try:
                for probe in wanted:
                    self._attach_one(file, path, probe)
            except ValueError:  # arguments where we cannot read them
                wanted = []
        if {probe.name for probe in wanted} == _PROGRAMS.keys():
            self._attached.add(file.name)
        else:
            self._without.add(file.name)

    def _attach_one(self, file: _File, path: Path, probe: usdt.Probe) -> None:
        name = _PROGRAMS[probe.name]
        link = self._link(name, path, probe.place())
        try:
            pin = f"{PIN}{file.name}-{probe.offset:x}-{name}"
            pin_anew(link, self._guard.home / pin)
        finally:
            os.close(link)

    def _link(self, name: str, path: Path, place: uprobes.Place) -> int:
        """By the way that needs no more than guardd has; else by the older one."""
        if self._multi:
            try:
                program = self._programs().program(name)
                return uprobes.attach_multi(program, path, [place])
            except KernelError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._multi = False
                self._programs().close()
                self._object = None
        return uprobes.attach_perf(self._programs().program(name), path, place)

    def _programs(self) -> libbpf.Object:
        """Load them, once, with the guard's own maps."""
        if self._object is None:
            made = libbpf.Object(OBJECT)
            try:
                for name, pin in MAPS.items():
                    if made.has_map(name):
                        made.set_pin_path(name, self._guard.home / pin)
                if self._multi:
                    for name in _PROGRAMS.values():
                        made.expect(name, uprobes.MULTI)
                made.load()
            except KernelError:
                made.close()
                raise
            self._object = made
        return self._object

    def _let_go(self, seen: set[str]) -> None:
        """Detach from files that are neither installed nor run any more."""
        for pin in self._guard.home.glob(f"{PIN}*"):
            name = _of_pin(pin)
            if name not in seen:
                pin.unlink(missing_ok=True)
                self._attached.discard(name)

    def _forget_dead(self) -> None:
        """Make room of processes that were killed in the middle of a request.

        What the kernel reads names the start of its process, so that no other is
        ever taken for it.
        """
        table = self._guard.map("requests")
        for key in list(table.keys()):
            thread = int.from_bytes(key, "little")
            if not os.path.exists(f"/proc/{thread >> 32}/task/{thread & 0xFFFFFFFF}"):
                table.delete(key)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | None]:
    """Open a file that root alone can write; None: another. Raises OSError.

    A process may have put anything at that path in its own root: it is looked at before
    it is opened. To open a FIFO would last for ever, and a device may do something.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode) or not is_trusted(status):
            yield None
            return
        with open(f"/proc/self/fd/{found}", "rb") as opened:
            yield opened
    finally:
        os.close(found)


def _reason(error: KernelError | OSError) -> str:
    hint = error.hint if isinstance(error, KernelError) else ""
    return f"{error} ({hint})" if hint else str(error)


def attached(home: Path) -> set[str]:
    """Name the files of PHP that tell their requests, of a guard pinned in home."""
    return {_of_pin(pin) for pin in home.glob(f"{PIN}*")}


def survey(home: Path) -> tuple[int, list[Path]]:
    """Give how many files of PHP tell their requests, and which of those that are
    installed do not.
    """
    known = attached(home)
    without = []
    for path in _installed():
        with contextlib.suppress(OSError), path.open("rb") as file:
            told = _name(os.fstat(file.fileno())) in known
            if not told and file.read(len(_ELF)) == _ELF and not path.is_symlink():
                without.append(path)
    return len(known), without


def _of_pin(pin: Path) -> str:
    return "-".join(pin.name.removeprefix(PIN).split("-")[:_NAME_PARTS])


def _name(status: os.stat_result) -> str:
    return f"{status.st_dev:x}-{status.st_ino:x}-{status.st_mtime_ns:x}"


def _files() -> Iterator[_File]:
    """Find what may be PHP, each file once."""
    known = set()
    for path in _places():
        with contextlib.suppress(OSError):  # it ended, or is not for this user
            file = _File(_name(os.stat(path)), path)
            if file.name not in known:
                known.add(file.name)
                yield file


def _installed() -> Iterator[Path]:
    for pattern in _PATHS:
        yield from map(Path, glob.glob(pattern))


def _places() -> Iterator[Path]:
    yield from _installed()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended, or has no executable
            exe = f"{entry.path}/exe"
            program = program_of(os.readlink(exe).removesuffix(" (deleted)"))
            if program in _RUN:
                yield Path(exe)
            elif program in _HOLD:
                with open(f"{entry.path}/maps", "rb") as file:
                    maps = file.read(_MOST_MAPS)
                for found in set(_LIBRARY.findall(maps)):
                    yield Path(f"{entry.path}/root{os.fsdecode(found)}")
