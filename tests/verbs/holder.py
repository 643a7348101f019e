# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that holds an SMTP connection, and tells what became of it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.lab import join_cgroup

NOBODY = 65534

# It prints its source port, then how its connection ended: by itself ("alive"
# until told to close), or by an error's name.
PROGRAM = """
import errno, os, select, socket, sys
address, port, uid, wait, proto, shared = sys.argv[1], *map(int, sys.argv[2:7])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
peer = socket.socket(family, socket.SOCK_STREAM, proto)
peer.setblocking(bool(wait))
peer.connect_ex((address, port))
if uid and not (shared and os.fork()):
    os.setgid(uid)
    os.setuid(uid)
    if shared:
        sys.stdin.read()
        os._exit(0)
print(peer.getsockname()[1], flush=True)
ready, *_ = select.select([peer, sys.stdin], [], [])
if peer not in ready:
    print("alive" if not wait or peer.send(b"QUIT") else "")
else:
    try:
        print("closed" if not peer.recv(1) else "data")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@dataclass
class Holder:
    """One such process; its end is that of the test."""

    process: subprocess.Popen[str]
    port: int  # its connection's own

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    def fate(self) -> str:
        """Tell it to close, and give what had become of the connection."""
        return self.process.communicate("", timeout=20)[0].strip()


@contextlib.contextmanager
def holding(
    cgroup: Path,
    address: str,
    port: int,
    *,
    uid: int = 0,
    wait: bool = True,
    proto: int = 0,
    shared: bool = False,
) -> Iterator[Holder]:
    """Hold a connection as a user, in a cgroup.

    wait=False: only its SYN is out. shared: root holds it as well.
    """
    arguments = [address, *map(str, (port, uid, int(wait), proto, int(shared)))]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: join_cgroup(cgroup),
    )
    try:
        assert process.stdout
        yield Holder(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
