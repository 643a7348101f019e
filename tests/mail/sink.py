# SPDX-License-Identifier: GPL-2.0-or-later
"""A mail server that counts its open connections, and refuses some for now.

One line of JSON a record: {"kind": "ready"}, {"kind": "open" or "close", "open": N},
{"kind": "message", "sender", "recipients", "content"}. A recipient that begins with
"later" is answered 451, RFC 5321; each message takes a moment.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from aiosmtpd.smtp import SMTP

HOLD = 0.2  # seconds a message takes: connections side by side meet here


def record(kind: str, **fields: object) -> None:
    """Print one line."""
    print(json.dumps({"kind": kind, **fields}), flush=True)


class Server(SMTP):
    """A session that is counted from accept() to its end."""

    now_open = 0

    def connection_made(self, transport: Any) -> None:
        """Count it before it has said a word."""
        Server.now_open += 1
        record("open", open=Server.now_open)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        Server.now_open -= 1
        record("close", open=Server.now_open)
        super().connection_lost(error)


class Handler:
    """What aiosmtpd asks for each recipient and each message."""

    async def handle_RCPT(
        self, server: Server, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        """Take it, or ask to come again."""
        record("recipient", address=address)
        if address.startswith("later"):
            return "451 4.7.1 come again later"
        envelope.rcpt_tos.append(address)
        return "250 taken"

    async def handle_DATA(self, server: Server, session: Any, envelope: Any) -> str:
        """Take a moment over it."""
        await asyncio.sleep(HOLD)
        record(
            "message",
            sender=envelope.mail_from,
            recipients=envelope.rcpt_tos,
            content=envelope.content.decode("utf-8", "replace"),
        )
        return "250 taken"


async def serve(addresses: list[str]) -> None:
    """Listen at port 25 until killed."""
    loop = asyncio.get_running_loop()

    def session() -> Server:
        return Server(Handler(), hostname="sink.example.org", loop=loop)

    await loop.create_server(session, addresses, 25, backlog=1024)
    record("ready")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
