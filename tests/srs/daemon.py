# SPDX-License-Identifier: GPL-2.0-or-later
"""A real postsrsd, and its two lookup tables (tcp_table(5) of Postfix)."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from tests.lab.lab import wait_until


def free_ports(number: int) -> list[int]:
    """Give ports that nobody listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Postsrsd:
    """One postsrsd on loopback."""

    def __init__(self, secrets: Path, *options: str, domain: str = "f.example") -> None:
        """Start it with this file of secrets."""
        self.forward_port, self.reverse_port = free_ports(2)
        argv = ["postsrsd", f"-s{secrets}", f"-d{domain}", "-l127.0.0.1", *options]
        argv += [f"-f{self.forward_port}", f"-r{self.reverse_port}"]
        self._process = subprocess.Popen(argv, stderr=subprocess.PIPE)
        wait_until(self._answers, "postsrsd")

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            assert self._process.stderr
            raise RuntimeError(f"postsrsd: {self._process.stderr.read().decode()}")
        with contextlib.suppress(OSError):
            return self.forward("a@b.example").startswith("SRS0")
        return False

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def forward(self, address: str) -> str:
        """Give what a sender becomes; "" where it stays as it is."""
        return _get(self.forward_port, address)

    def reverse(self, address: str) -> str:
        """Give where a bounce to this address goes; "" where it is refused."""
        return _get(self.reverse_port, address)


def _get(port: int, key: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 10) as table:
        table.sendall(f"get {quote(key, safe='@=+/.-_')}\n".encode())
        answer = table.makefile().readline()
    code, _, text = answer.rstrip("\n").partition(" ")
    return unquote(text) if code == "200" else ""


@contextlib.contextmanager
def postsrsd(
    folder: Path, secrets: Sequence[str], *options: str
) -> Iterator[tuple[Postsrsd, Path]]:
    """Run one with these secrets; gives it and their file."""
    file = folder / "postsrsd.secret"
    file.write_text("\n".join(secrets) + "\n")
    file.chmod(0o600)
    daemon = Postsrsd(file, *options)
    try:
        yield daemon, file
    finally:
        daemon.close()
