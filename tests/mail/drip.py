# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay that answers as one does up to a step, and then a byte now and then.

Arguments: its address, its port, that step (greeting, EHLO, STARTTLS, AUTH), the file
of its key and certificate. Step flood: lines without end, as fast as they are read.
Prints "ready" when it listens.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import sys
import time

GO_ON = b"220 go on\r\n"
PAUSE = 0.2  # seconds between two bytes
RECORD = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"  # of a long handshake, RFC 8446


def drip(connected: socket.socket, first: bytes) -> None:
    """Send it, and then more of the same line or record, until nobody reads it."""
    with contextlib.suppress(OSError):
        for byte in itertools.chain(first, itertools.repeat(ord("x"))):
            connected.sendall(bytes([byte]))
            time.sleep(PAUSE)


def flood(connected: socket.socket) -> None:
    """Answer without end."""
    with contextlib.suppress(OSError):
        while True:
            connected.sendall(b"250-and more\r\n" * 1000)


def serve(connected: socket.socket, step: str, context: ssl.SSLContext) -> None:
    """Talk with one client."""
    if step == "greeting":
        return drip(connected, b"220-")
    connected.sendall(b"220 relay\r\n")
    lines = connected.makefile("rb")
    for line in lines:
        verb = line.split()[0].upper().decode()
        if step == "flood":
            return flood(connected)
        if verb == step:
            return drip(connected, b"250-" if verb == "EHLO" else GO_ON + RECORD)
        if verb == "STARTTLS":
            connected.sendall(GO_ON)
            connected = context.wrap_socket(connected, server_side=True)
            return serve_inside(connected, step)
        connected.sendall(b"250-relay\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
    return None


def serve_inside(connected: ssl.SSLSocket, step: str) -> None:
    """Talk on, with TLS."""
    for line in connected.makefile("rb"):
        if line.split()[0].upper().decode() == step:
            return drip(connected, b"235-")
        connected.sendall(b"250-relay\r\n250 AUTH PLAIN\r\n")
    return None


def main(address: str, port: str, step: str, pem: str) -> None:
    """Serve one after the other until killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server((address, int(port))) as listening:
        print("ready", flush=True)
        while True:
            connected = listening.accept()[0]
            with connected, contextlib.suppress(OSError):
                serve(connected, step, context)


if __name__ == "__main__":
    main(*sys.argv[1:])
