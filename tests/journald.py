# SPDX-License-Identifier: GPL-2.0-or-later
"""A real journald for tests: the host's where one runs, else one started by hand.

`shared()` serves the fixed path that libsystemd writes to and may be used by
several test processes at once; the last one stops what the first one started.
`Journald(directory)` is private: its socket and its files lie in a directory of
the test's, so it may be stopped, killed and restarted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from systemd import journal

PROGRAM = "/lib/systemd/systemd-journald"
RUNTIME = Path("/run/systemd/journal")  # systemd-journald.service(8)
VOLATILE = Path("/run/log/journal")
LOCKS = Path("/run/lock")
SYNC = signal.SIGRTMIN + 1  # systemd-journald.service(8)
LIMIT = 30.0  # seconds to wait for anything journald is asked to do

# Audit= empty: started by hand with the default it would switch the kernel's
# audit on. ReadKMsg: what the kernel says is no business of a test.
CONFIG = """[Journal]
Storage=volatile
Audit=
ReadKMsg=no
RateLimitIntervalSec=0
RuntimeMaxUse=16G
"""


def until(done: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    """Wait for a condition; AssertionError names it when it does not come."""
    end = time.monotonic() + limit
    while not done():
        assert time.monotonic() < end, f"{what}: not within {limit:g} s"
        time.sleep(0.005)


def served(path: Path, kind: str = "datagram") -> bool:
    """Tell whether somebody reads the socket at path: datagram or stream."""
    type_ = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_UNIX, type_) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


class Journald:
    """One systemd-journald, started by hand in a mount namespace of its own."""

    def __init__(self, directory: Path | None = None) -> None:
        """Keep everything below directory; None: at journald's own places."""
        self._base = directory
        self.config = CONFIG  # read at each start
        self.runtime = directory / "run" if directory else RUNTIME
        self.socket = self.runtime / "socket"
        self.directory = directory / "log" if directory else VOLATILE
        self._mounts: list[tuple[Path, Path]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: socket.socket | None = None
        if directory:
            self.runtime.mkdir(parents=True)
            self.directory.mkdir()
            for place in (RUNTIME, VOLATILE):
                place.mkdir(parents=True, exist_ok=True)
            self._mounts = [(self.runtime, RUNTIME), (self.directory, VOLATILE)]

    @property
    def pid(self) -> int:
        """The running journald's."""
        assert self._process, "journald is not running"
        return self._process.pid

    def keep_socket(self) -> None:
        """Hold its socket from now on, as systemd does: what it has not read when it
        is stopped waits there for the next one.

        Bound inside of the namespace, because journald asks for the name.
        """
        self._kept = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.unlink(missing_ok=True)
        bind = f"import socket as s; s.socket(fileno=%d).bind('{RUNTIME}/socket')"
        subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]
            + [f"mount --bind '{self.runtime}' '{RUNTIME}' && exec \"$@\"", "sh"]
            + [sys.executable, "-c", bind % self._kept.fileno()],
            pass_fds=[self._kept.fileno()],
            check=True,
        )

    def start(self) -> None:
        """Start it and wait until it serves its socket."""
        place = self._base or LOCKS
        config = place / "smtp-guard-test-journald.conf"
        config.write_text(self.config)
        # Left by one that was killed, these would look like answers of this one.
        names = ["dev-log", "stdout", "io.systemd.journal"]
        for name in names + ["socket"] * (not self._kept):
            (self.runtime / name).unlink(missing_ok=True)
        self.runtime.mkdir(parents=True, exist_ok=True)
        binds = [*self._mounts, (config, Path("/etc/systemd/journald.conf"))]
        script = " && ".join(
            f"mount --bind '{here}' '{there}'" for here, there in binds
        )
        fds = [self._kept.fileno()] if self._kept else []
        run = f"exec {PROGRAM}"
        if fds:  # sd_listen_fds(3)
            run = f"export LISTEN_FDS=1 LISTEN_PID=$$; {run} 3<&{fds[0]}"
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private"]
            + ["bash", "-ec", f"{script} && {run}"],  # sh has only 10 descriptors
            start_new_session=True,
            pass_fds=fds,
        )
        until(self._ready, "journald's start")

    def _ready(self) -> bool:
        """Tell whether it serves its socket and waits for our signals."""
        assert self._process and self._process.poll() is None, "journald has ended"
        # It blocks what it reads by signalfd(2), last of all; before that a
        # signal would be its end.
        status = Path(f"/proc/{self.pid}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        return bool(blocked >> (SYNC - 1) & 1) and served(self.socket)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, by SIGTERM after it wrote what it had, and wait for that."""
        if self._process:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(LIMIT)
            self._process = None

    def pause(self) -> None:
        """Make it read nothing until resume()."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after pause()."""
        os.kill(self.pid, signal.SIGCONT)

    def sync(self) -> None:
        """Wait until all that was sent before is in the files."""
        self._ask(SYNC, "synced")

    def rotate(self) -> None:
        """Make it archive its files and begin new ones."""
        self._ask(signal.SIGUSR2, "rotated")

    def _ask(self, number: int, answer: str) -> None:
        """Signal it and wait for the stamp it then writes."""
        stamp = self.runtime / answer
        before = stamp.read_bytes() if stamp.exists() else b""
        os.kill(self.pid, number)
        until(
            lambda: stamp.exists() and stamp.read_bytes() not in (b"", before), answer
        )

    def __enter__(self) -> Journald:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def _locked(name: str, how: int) -> Iterator[int]:
    LOCKS.mkdir(parents=True, exist_ok=True)
    handle = os.open(LOCKS / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, how)
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Have the fixed path served: systemd.journal.send() and Reader() work.

    Where no journald runs one is started, with volatile storage. It is stopped,
    and its files removed, when the last test process that uses it is done.
    """
    with _locked("smtp-guard-test-journald.users", fcntl.LOCK_SH) as users:
        stamp = LOCKS / "smtp-guard-test-journald.pid"
        with _locked("smtp-guard-test-journald.lock", fcntl.LOCK_EX):
            if not served(RUNTIME / "socket"):
                fresh = not VOLATILE.exists()
                ours = Journald()
                ours.start()
                stamp.write_text(f"{ours.pid} {int(fresh)}")
        try:
            yield
        finally:
            with _locked("smtp-guard-test-journald.lock", fcntl.LOCK_EX):
                _stop_if_last(users, stamp)


def _stop_if_last(users: int, stamp: Path) -> None:
    """Stop the journald that a test started, unless another still uses it."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not stamp.exists():
            return  # it was the host's own
        pid, fresh = map(int, stamp.read_text().split())
        stamp.unlink()
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            until(lambda: not served(RUNTIME / "socket"), "journald's end")
            os.close(handle)
        if fresh:
            shutil.rmtree(VOLATILE, ignore_errors=True)


def entries(directory: Path, *matches: str) -> list[dict[str, object]]:
    """Read the entries below directory that match, oldest first."""
    reader = journal.Reader(path=str(directory))
    for match in matches:
        reader.add_match(match)
    with contextlib.closing(reader):
        return list(reader)
