# SPDX-License-Identifier: GPL-2.0-or-later
"""The internet's mail server: takes every message, prints what it saw as JSON.

One line a record: {"kind": "ready"}, {"kind": "connect", "peer", "port"} at
once when a connection is accepted, {"kind": "message", "peer", "port",
"sender", "recipients", "content"} when a message is in.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from typing import Any

from aiosmtpd.smtp import SMTP

PLAIN_PORTS = (25, 587)
TLS_PORT = 465  # TLS from the first byte, RFC 8314


def record(kind: str, **fields: object) -> None:
    """Print one line."""
    print(json.dumps({"kind": kind, **fields}), flush=True)


class Server(SMTP):
    """An SMTP session that remembers the port it came in by."""

    port = 0

    def connection_made(self, transport: Any) -> None:
        """Record the peer before it has said a word."""
        self.port = transport.get_extra_info("sockname")[1]
        peer = transport.get_extra_info("peername")
        record("connect", peer=list(peer[:2]), port=self.port)
        super().connection_made(transport)


class Handler:
    """What aiosmtpd asks for each message."""

    async def handle_DATA(self, server: Server, session: Any, envelope: Any) -> str:
        """Record a message (RFC 5321, 4.1.1.4)."""
        record(
            "message",
            peer=list(session.peer[:2]),
            port=server.port,
            sender=envelope.mail_from,
            recipients=envelope.rcpt_tos,
            content=envelope.content.decode("utf-8", "replace"),
        )
        return "250 taken"


async def serve(certificate: str, addresses: list[str]) -> None:
    """Listen until killed; certificate is a PEM file with its key."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()

    def session() -> Server:
        return Server(Handler(), hostname="mx.example.org", loop=loop)

    for port in PLAIN_PORTS:
        await loop.create_server(session, addresses, port, backlog=1024)
    await loop.create_server(session, addresses, TLS_PORT, ssl=context)
    record("ready")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2:]))
