# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy service: Postfix asks about a message, we note who sent it.

A thread of its own: the main one may work for a second on a new policy, the scribe
waits as long as journald does, and an SMTP client waits for this answer.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from guard.errors import BadRequest, GuardError, MtaError
from guard.event import Event
from guard.finding import Message
from guard.mta.delegation import (
    END_OF_MESSAGE,
    Request,
    answer,
    parse_request,
    take_requests,
)
from guard.mta.listener import Listener
from guard.origin import Naming

End = tuple[str, int]
_LOOK_SECONDS = 1.0  # is the socket still there?
_MOST_CLIENTS = 700  # of the 1024 descriptors of a process; smtpds are 100
_READ_BYTES = 64 * 1024


class PolicyService(threading.Thread):
    """Answers at a socket until told to stop."""

    def __init__(
        self,
        find: Callable[[End, End], Event | None],
        naming: Naming,
        tell: Callable[[Message], None],
    ) -> None:
        """find tells who made a connection (client, server); tell journals."""
        super().__init__(name="policy-service", daemon=True)
        self._find, self._naming, self._tell = find, naming, tell
        self._wanted: Path | None = None
        self._listener: Listener | None = None
        self._selector = selectors.DefaultSelector()
        self._clients: dict[socket.socket, bytes] = {}  # what is left of their words
        self._stopping = threading.Event()
        self._trouble = ""

    def serve(self, path: Path | None) -> None:
        """Answer at this socket from now on, or from a second; None: at none."""
        self._wanted = path

    @property
    def trouble(self) -> str:
        """Why Postfix gets no answer; "" when it does, or is not to."""
        if self.ident is not None and not self.is_alive():
            return "the thread that answers has ended by itself"
        return self._trouble

    def stop(self, seconds: float) -> None:
        """Take the socket away, for at most so long."""
        self._stopping.set()
        self.join(seconds)

    def run(self) -> None:
        """Thread body."""
        look_at = 0.0
        try:
            while not self._stopping.is_set():
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + _LOOK_SECONDS
                    self._renew()
                for key, _ in self._selector.select(_LOOK_SECONDS / 4):
                    key.data(key.fileobj)
        finally:
            self._close()

    # ---- the socket

    def _renew(self) -> None:
        """Have the socket that is wanted, also after somebody removed it."""
        if self._listener and self._listener.path != self._wanted:
            self._close()
        if self._wanted is None:
            self._trouble = ""
            return
        listener = self._listener or Listener(self._wanted)
        before = listener.socket
        try:
            if listener.renew():
                self._forget(before)
                assert listener.socket
                self._selector.register(
                    listener.socket, selectors.EVENT_READ, self._on_client
                )
        except MtaError as error:
            self._forget(before)
            if str(error) != self._trouble:
                sys.stderr.write(f"guardd: {error.report()}\n")
            self._trouble = str(error)
        else:
            self._trouble = ""
        self._listener = listener

    def _forget(self, closed: socket.socket | None) -> None:
        if closed is not None:
            self._selector.unregister(closed)

    def _close(self) -> None:
        if self._listener and (before := self._listener.socket):
            self._selector.unregister(before)
            self._listener.close()
        self._listener = None
        for client in list(self._clients):
            self._hang_up(client)

    # ---- those who ask

    def _on_client(self, _: object) -> None:
        assert self._listener
        client = self._listener.accept()
        if client is None:
            return
        if len(self._clients) >= _MOST_CLIENTS:
            client.close()  # Postfix does its default_action
            return
        self._clients[client] = b""
        self._selector.register(client, selectors.EVENT_READ, self._on_words)

    def _on_words(self, client: socket.socket) -> None:
        try:
            words = client.recv(_READ_BYTES)
            if not words:
                self._hang_up(client)
                return
            requests, rest = take_requests(self._clients[client] + words)
            for raw in requests:
                request = parse_request(raw)
                # first: an SMTP client waits for it, and nothing of what it is
                # journalled with goes away meanwhile
                client.send(answer("DUNNO"))
                self._heed(request)
            self._clients[client] = rest
        except BadRequest as error:
            sys.stderr.write(f"guardd: {error.report()}\n")
            self._hang_up(client)
        except OSError:  # it went away, or does not read what it asked for
            self._hang_up(client)

    def _hang_up(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        self._clients.pop(client)
        client.close()

    # ---- what is asked

    def _heed(self, request: Request) -> None:
        """Journal a message; before the end of its data there is none yet."""
        if request.state == END_OF_MESSAGE:
            self._tell(sent_message(request, self._find, self._naming))


def sent_message(
    request: Request, find: Callable[[End, End], Event | None], naming: Naming
) -> Message:
    """Make a Message of a request, with whoever find() says made the connection."""
    event, unknown = None, ""
    if request.client is None or request.server is None:
        unknown = "no-port"
    else:
        try:
            event = find(request.client, request.server)
        except GuardError as error:  # the guard is being unloaded under us
            sys.stderr.write(f"guardd: {error.report()}\n")
        if event is None:
            unknown = "no-connection"
    return Message(
        time_us=time.time_ns() // 1000,
        queue_id=request.queue_id,
        sender=request.sender,
        recipients=request.recipients,
        size=request.size,
        sasl_user=request.sasl_user,
        sasl_method=request.sasl_method,
        protocol=request.protocol,
        state=request.state,
        helo=request.helo,
        client=request.client,
        server=request.server,
        origin=naming.finding(event) if event else None,
        unknown=unknown,
    )
