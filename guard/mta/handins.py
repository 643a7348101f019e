# SPDX-License-Identifier: GPL-2.0-or-later
"""The thread that learns who called sendmail(1), where this host has a Postfix.

The kernel programs hang on this process alone: they end with it, and nothing of them
stays in Postfix. Where they cannot be loaded, who-sent has the user ID of the log.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from guard import libbpf, uprobes
from guard.elf import exported
from guard.errors import KernelError, TornEvent
from guard.finding import Kind, Notice
from guard.mta.handin import Joiner, read_sample
from guard.mta.listener import MAIL_OWNER
from guard.origin import Naming
from guard.ringbuf import RingBuffer
from guard.tables import KEY0, MAPS
from guard.worker import Worker

OBJECT = Path(__file__).parents[1] / "handin.bpf.o"
# shlib_directory of postconf(5), as distributions have it; all of Postfix's programs
# that make queue files end them by one of its functions.
LIBRARIES = tuple(
    Path(folder, "libpostfix-global.so")
    for folder in ("/usr/lib/postfix", "/usr/lib64/postfix", "/usr/libexec/postfix")
)
_FUNCTIONS = ("mail_stream_finish", "mail_stream_cleanup")
_GROUP = "postdrop"  # postconf(5), setgid_group
_STATE = struct.Struct("=QIIQ")  # .data.handin: lost, owner, group, asked
_Which = tuple[int, int]  # device and inode
_NO_LINK = -1  # of its own
_AGAIN_SECONDS = 60.0  # after programs that could not be loaded
_NEEDS = "it takes Linux 6.6, or bpf in lsm= (Debian has both or the latter)"
_LOOK_SECONDS = 1.0  # is it the same file, was something lost?
_POLL_MS = 250
_KEPT = 2  # libraries; daemons that are older than an upgrade have the one before


class Handins(Worker):
    """Journals who handed in which message, until told to stop."""

    task = "follows sendmail(1)"

    def __init__(
        self,
        naming: Naming,
        tell: Callable[[Notice], None],
        maps: Path | None = None,
        libraries: tuple[Path, ...] = LIBRARIES,
    ) -> None:
        """Say where Postfix's library may be; nothing is loaded before run().

        maps is the folder of the guard's maps, of which one has the requests of PHP;
        None: no request is known.
        """
        super().__init__("handins")
        self._maps = maps
        self._tell, self._libraries = tell, libraries
        self._joiner = Joiner(naming)
        self._object: libbpf.Object | None = None
        self._ring: RingBuffer | None = None
        self._links: list[tuple[_Which, int]] = []  # to which library, descriptor
        self._always: list[int] = []  # links that no upgrade of Postfix touches
        self._failed: _Which | None = None
        self._again_at = 0.0
        self._stopping = threading.Event()
        self._state: libbpf.Map | None = None  # .data.handin
        self._lost = self._forgotten = 0  # told so far: of this ring, and in all
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """Why it does not; "" when it does, or there is no Postfix."""
        return self._trouble

    @property
    def state(self) -> str:
        """Say in a few words whether sendmail(1) is followed."""
        if self.trouble:
            return f"not followed: {self.trouble}"
        return "followed" if self._links else "no Postfix library is here"

    def stop(self, seconds: float) -> None:
        """End, and take the programs out of the kernel, within so long."""
        self._stopping.set()
        self.join(seconds)

    def work(self) -> None:
        """Thread body."""
        look_at = 0.0
        try:
            while not self._stopping.is_set():
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + _LOOK_SECONDS
                    self._look()
                if self._ring:
                    self._ring.wait(_POLL_MS)
                    self._read()
                else:
                    self._stopping.wait(_POLL_MS / 1000)
            self._read()
        finally:
            self._close()

    # ---- the programs

    def _look(self) -> None:
        """Follow the library that is there, also after an upgrade."""
        self._count_lost()
        path, which = self._library()
        if which is None or any(which == known for known, _ in self._links):
            return
        if (which, True) == (self._failed, time.monotonic() < self._again_at):
            return
        try:
            self._attach(path, which)
        except KernelError as error:
            if str(error) != self._trouble:
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"guardd: sendmail(1): {error.report()}\n")
            self._trouble = str(error)
            self._failed, self._again_at = which, time.monotonic() + _AGAIN_SECONDS
        else:
            self._trouble = ""

    def _library(self) -> tuple[Path, _Which | None]:
        for path in self._libraries:
            with contextlib.suppress(OSError):
                found = path.stat()
                return path, (found.st_dev, found.st_ino)
        return self._libraries[0], None

    def _attach(self, path: Path, which: _Which) -> None:
        """Follow this library, or what it does. Raises KernelError: nothing is."""
        if len(self._always) > 1:  # by rename(), whatever the library
            self._links = [(which, _NO_LINK)]
            return
        try:
            if self._object is None:
                self._load(probe=True)
            assert self._object
            begin = [uprobes.Place(exported(path, name)) for name in _FUNCTIONS]
            program = self._object.program("handin_file")
            link = uprobes.attach_multi(program, path, begin)
        except KernelError as first:
            self._close()
            try:
                self._load(probe=False)
            except KernelError as second:
                text = f"{first.args[0]}; nor by the LSM: {second.args[0]}"
                raise KernelError(text, second.errno, hint=_NEEDS) from None
            link = _NO_LINK
        self._links.append((which, link))
        while len(self._links) > _KEPT:
            _close_link(self._links.pop(0)[1])

    def _load(self, probe: bool) -> None:
        """Load, to be called by functions of the library, or else by rename()."""
        made = libbpf.Object(OBJECT)
        links: list[int] = []
        try:
            for name, pin in MAPS.items():
                place = self._maps and self._maps / pin
                # one that somebody removed is the guard's to make anew
                if place and made.has_map(name) and place.exists():
                    made.set_pin_path(name, place)
            made.leave_out("handin_rename" if probe else "handin_file")
            if probe:
                made.expect("handin_file", uprobes.MULTI)
            made.load()
            state = libbpf.Map(os.dup(made.map_fd(".data.handin")))
            owner = pwd.getpwnam(MAIL_OWNER).pw_uid
            state.put(KEY0, _STATE.pack(0, owner, grp.getgrnam(_GROUP).gr_gid, 0))
            for name in ("handin_exec", *(() if probe else ("handin_rename",))):
                links.append(libbpf.attach_traced(made.program(name)))
            if not probe:
                _see_asked(state)
            self._ring = RingBuffer(made.map_fd("handins"))
        except KeyError as error:  # no such account
            made.close()
            text = f"{error.args[0]}: is Postfix installed?"
            raise KernelError(text, errno.ENOENT) from None
        except KernelError:
            for link in links:
                _close_link(link)
            made.close()
            raise
        self._object, self._always, self._state, self._lost = made, links, state, 0

    def _close(self) -> None:
        with contextlib.suppress(KernelError):
            self._count_lost()  # the next ring begins at none
        for link in (*self._always, *(link for _, link in self._links)):
            _close_link(link)
        self._links, self._always, self._state = [], [], None
        if self._ring:
            self._ring.close()
        if self._object:
            self._object.close()
        self._object = self._ring = None

    # ---- what they tell

    def _read(self) -> None:
        if not self._ring:
            return
        for raw in self._ring.samples():
            try:
                found = self._joiner.take(read_sample(raw))
            except TornEvent as error:
                now_us = time.time_ns() // 1000
                self._tell(Notice(Kind.LOST, now_us, str(error), 3, {"TORN": "1"}))
            else:
                if found:
                    self._tell(found)

    def _count_lost(self) -> None:
        """Tell how many processes behind a message there was no room for."""
        if not self._state:
            return
        lost, *_ = _STATE.unpack(self._state.get(KEY0) or bytes(_STATE.size))
        forgotten = self._joiner.forgotten
        if moved := lost - self._lost + forgotten - self._forgotten:
            text = f"lost: {moved} (who called sendmail(1): too many at once)"
            now_us, fields = time.time_ns() // 1000, {"LOST_HANDED_IN": str(moved)}
            self._tell(Notice(Kind.LOST, now_us, text, 3, fields))
            self._lost, self._forgotten = lost, forgotten


def _close_link(link: int) -> None:
    if link != _NO_LINK:
        os.close(link)


def _see_asked(state: libbpf.Map) -> None:
    """See that a rename() runs our program. Raises KernelError.

    One that is attached is not asked where bpf is not among the security modules.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "a").touch()
            Path(folder, "a").rename(Path(folder, "b"))
    except OSError as error:
        raise KernelError("no folder to try rename() in", error.errno or 0) from None
    if not _STATE.unpack(state.get(KEY0) or bytes(_STATE.size))[3]:
        text = "bpf is not in the kernel's list of security modules"
        raise KernelError(text, errno.EOPNOTSUPP)
