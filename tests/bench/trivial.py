# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy servers that only say DUNNO: what guardd's answers are measured against.

One as Python's own library makes it: a thread a client, which reads the attributes
line by line, and does nothing with them. The other is no server that one could use: a
loop of recv() and send() for one client at a time, which reads nothing of what it gets.
"""

from __future__ import annotations

import socket
import socketserver
import sys

DUNNO = b"action=DUNNO\n\n"


class Asked(socketserver.StreamRequestHandler):
    """One connection of a client."""

    def handle(self) -> None:
        """Answer each request."""
        while attributes := self._request():
            if attributes.get("request") != "smtpd_access_policy":
                break
            self.wfile.write(DUNNO)

    def _request(self) -> dict[str, str]:
        found: dict[str, str] = {}
        while line := self.rfile.readline().rstrip(b"\n"):
            name, _, value = line.decode("utf-8", "surrogateescape").partition("=")
            found[name] = value
        return found


class Threads(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A thread a client."""

    daemon_threads = True


def real(path: str) -> None:
    """Serve until killed."""
    with Threads(path, Asked) as server:
        print("listens", flush=True)
        server.serve_forever()


def bare(path: str) -> None:
    """Serve one client at a time until killed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("listens", flush=True)
        while True:
            client, _ = listener.accept()
            while words := client.recv(65536):
                if words.endswith(b"\n\n"):
                    client.send(DUNNO)
            client.close()


if __name__ == "__main__":
    {"real": real, "bare": bare}[sys.argv[1]](sys.argv[2])
