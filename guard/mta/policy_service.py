# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy service: Postfix asks about a message, we note who sent it.

A thread of its own: the main one may work for a second on a new policy, the scribe
waits as long as journald does, and an SMTP client waits for this answer.
"""

from __future__ import annotations

import contextlib
import select
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
# How long a thread that computes may let this one wait; Python's default of 5 ms is
# longer than all else that an smtpd does with a message.
_SWITCH_SECONDS = 0.0005
_ANSWER = answer("DUNNO")


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
        # not selectors: half of the time of an answer would be its
        self._poll = select.epoll()
        self._clients: dict[int, socket.socket] = {}  # by descriptor
        self._words: dict[int, bytes] = {}  # theirs, of a request to be finished
        self._stopping = threading.Event()
        self._trouble = ""
        self.refused = 0  # clients beyond _MOST_CLIENTS at once

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
                for fd, _ in self._poll.poll(_LOOK_SECONDS / 4):
                    if client := self._clients.get(fd):
                        self._on_words(fd, client)
                    else:
                        self._on_client()
        finally:
            self._close()
            self._poll.close()

    # ---- the socket

    def _renew(self) -> None:
        """Have the socket that is wanted, also after somebody removed it."""
        if self._listener and self._listener.path != self._wanted:
            self._close()
        if self._wanted is None:
            self._trouble = ""
            return
        if self._listener is None:
            self._listener = Listener(self._wanted)
            sys.setswitchinterval(_SWITCH_SECONDS)  # not where nobody asks
        try:
            # the kernel takes one that was closed out of the epoll by itself
            if self._listener.renew():
                assert self._listener.socket
                self._poll.register(self._listener.socket, select.EPOLLIN)
        except MtaError as error:
            if str(error) != self._trouble:
                _say(error)
            self._trouble = str(error)
        else:
            self._trouble = ""

    def _close(self) -> None:
        if self._listener:
            self._listener.close()
        self._listener = None
        for fd in list(self._clients):
            self._hang_up(fd)

    # ---- those who ask

    def _on_client(self) -> None:
        client = self._listener and self._listener.accept()
        if not client:
            return
        if len(self._clients) >= _MOST_CLIENTS:
            client.close()  # Postfix does its default_action
            self.refused += 1
            return
        self._clients[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN)

    def _on_words(self, fd: int, client: socket.socket) -> None:
        try:
            words = client.recv(_READ_BYTES)
            if not words:
                self._hang_up(fd)
                return
            requests, rest = take_requests(self._words.pop(fd, b"") + words)
            if rest:
                self._words[fd] = rest
            # first, and whatever is asked: an SMTP client waits for it, and nothing
            # that a message is journalled with goes away meanwhile
            with contextlib.suppress(
                OSError
            ):  # it waits no longer; the next recv() ends
                client.send(_ANSWER * len(requests))
            for raw in requests:
                self._heed(parse_request(raw))
        except BadRequest as error:
            _say(error)
            self._hang_up(fd)
        except OSError:  # it went away
            self._hang_up(fd)

    def _hang_up(self, fd: int) -> None:
        self._words.pop(fd, None)
        self._clients.pop(fd).close()

    # ---- what is asked

    def _heed(self, request: Request) -> None:
        """Journal a message; before the end of its data there is none yet."""
        if request.state == END_OF_MESSAGE:
            self._tell(sent_message(request, self._find, self._naming))


def _say(error: GuardError) -> None:
    with contextlib.suppress(OSError):  # a journald that went away ends no answers
        sys.stderr.write(f"guardd: {error.report()}\n")


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
            _say(error)
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
