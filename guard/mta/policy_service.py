# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy service: Postfix asks about a message, we note who sent it.

A thread of its own: the main one may work for a second on a new policy, the scribe
waits as long as journald does, and an SMTP client waits for this answer.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from guard.errors import BadRequest, GuardError, MtaError
from guard.event import Event
from guard.finding import Kind
from guard.journal import Told
from guard.mta.admission import DUNNO, Admission, Answer, say
from guard.mta.delegation import (
    DATA,
    END_OF_MESSAGE,
    Request,
    answer,
    is_end,
    parse_request,
    take_requests,
)
from guard.mta.limits import Counts
from guard.mta.listener import Listener
from guard.mta.origintoken import HEADER, Keys
from guard.mta.refusals import Refusals
from guard.mta.telling import limit_notice, message_kind, sent_message
from guard.origin import Naming
from guard.policy.model import Fold, Policy
from guard.worker import Worker

End = tuple[str, int]
_LOOK_SECONDS = 1.0  # is the socket still there?
_MOST_CLIENTS = 700  # of the 1024 descriptors of a process; smtpds are 100
_READ_BYTES = 64 * 1024
# Where nothing is decided, messages are answered at once and read together: to come
# back to each alone is most of what it costs.
_GATHER_SECONDS = 0.01
_MOST_GATHERED = 64
# How long a thread that computes may let this one wait; Python's default of 5 ms is
# longer than all else that an smtpd does with a message.
_SWITCH_SECONDS = 0.0005
_DUNNO = answer("DUNNO")
# Messages between their DATA and their end: smtpds are 100.
_MOST_TOKENS = 2048


class _Asked(NamedTuple):
    """A request as it came."""

    fd: int
    client: socket.socket
    raw: bytes
    boot_ns: int  # when; CLOCK_BOOTTIME
    real_us: int  # the same, CLOCK_REALTIME


def _asked(fd: int, client: socket.socket, requests: list[bytes]) -> list[_Asked]:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now_us = time.time_ns() // 1000
    return [_Asked(fd, client, raw, now_ns, now_us) for raw in requests]


class Book(Protocol):
    """Who writes the journal: see scribe.py."""

    def expect(self, messages: int) -> None:
        """So many messages will be told: they are lost if this process is killed."""

    def tell_expected(self, found: Told) -> None:
        """Have this written, which was announced if it is a message."""


class PolicyService(Worker):
    """Answers at a socket until told to stop."""

    task = "answers Postfix"

    def __init__(
        self,
        find: Callable[[End, End, int], Event | None],
        naming: Naming,
        clerk: Book,
        is_own: Callable[[str], bool],
        counts: Path,
    ) -> None:
        """find tells who made a connection (client, server) that was there at a time
        (CLOCK_BOOTTIME, ns); clerk journals.

        is_own tells whether an address is this host's; counts is the file of Counts.
        """
        super().__init__("policy-service")
        self._find, self._naming, self._clerk = find, naming, clerk
        self._tell = clerk.tell_expected
        self._refusals = Refusals(self._tell)
        self._fold = Fold()
        self._answered: list[_Asked] = []  # messages, and what else was asked since
        self._read_at = 0.0  # when those are read at the latest
        self._counts = Counts(counts)
        self._admission = Admission(naming, is_own, self._counts)
        self._keys = Keys()
        self._tokens: OrderedDict[str, str] = OrderedDict()  # by instance
        self._refused: dict[int, str] = {}  # by descriptor: the instance told last
        self._policy: Policy | None = None  # to be followed from the next request on
        self._wanted: Path | None = None
        self._listener: Listener | None = None
        # not selectors: half of the time of an answer would be its
        self._poll = select.epoll()
        self._clients: dict[int, socket.socket] = {}  # by descriptor
        self._words: dict[int, bytes] = {}  # theirs, of a request to be finished
        self._stopping = threading.Event()
        self._trouble = ""
        self.refused = 0  # clients beyond _MOST_CLIENTS at once

    def serve(self, policy: Policy) -> None:
        """Answer by this policy, and at its socket from a second on; None: at none."""
        self._policy = policy
        self._wanted = policy.mta.socket

    @property
    def trouble(self) -> str:
        """Why Postfix gets no answer; "" when it does, or is not to."""
        return self._trouble

    @property
    def doubts(self) -> list[str]:
        """What of an answer is not as the policy says, in words; [] for nothing."""
        found = (
            ("messages are not counted", self._admission.trouble),
            ("messages have no header", self._keys.trouble),
        )
        return [f"{what}: {why}" for what, why in found if why]

    def stop(self, seconds: float) -> None:
        """Take the socket away, for at most so long."""
        self._stopping.set()
        self.join(seconds)

    def work(self) -> None:
        """Thread body."""
        look_at = 0.0
        try:
            while not self._stopping.is_set():
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + _LOOK_SECONDS
                    self._follow()
                    self._keys.renew()
                    self._renew()
                    self._refusals.finish(time.monotonic())
                self._turn()
            self._read_answered()
            self._refusals.finish(math.inf)
        finally:
            self._close()
            self._poll.close()
            self._counts.close()

    def _turn(self) -> None:
        """Answer those who have asked."""
        wait = _GATHER_SECONDS if self._answered else _LOOK_SECONDS / 4
        ready = self._poll.poll(wait)
        for fd, _ in ready:
            if client := self._clients.get(fd):
                self._on_words(fd, client)
            else:
                self._on_client()
        if self._answered and (not ready or time.monotonic() >= self._read_at):
            self._read_answered()

    def _follow(self) -> None:
        """Take up a policy that the main thread has put in force."""
        if (policy := self._policy) is not None:
            self._policy = None
            self._fold = policy.fold
            self._admission.follow(policy)
            self._keys.use(policy.mta.token_keys)
            self._keys.renew()

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
                say(error.report())
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
            self._follow()
            if self._admission.decides or self._keys.ready:
                for asked in _asked(fd, client, requests):
                    self._decide(asked, parse_request(asked.raw))
            else:
                # first, and whatever is asked: an SMTP client waits for it
                self._expect(sum(map(is_end, requests)))
                self._send(client, _DUNNO * len(requests))
                self._read_later(_asked(fd, client, requests))
        except BadRequest as error:
            say(error.report())
            self._hang_up(fd)
        except OSError:  # it went away
            self._hang_up(fd)

    def _read_later(self, asked: list[_Asked]) -> None:
        if not self._answered:
            self._read_at = time.monotonic() + _GATHER_SECONDS
        self._answered += asked
        if len(self._answered) >= _MOST_GATHERED:
            self._read_answered()

    def _read_answered(self) -> None:
        """Journal the messages among what was answered."""
        answered, self._answered = self._answered, []
        for asked in answered:
            try:
                self._heed(asked, parse_request(asked.raw))
            except BadRequest as error:
                self._expect(-is_end(asked.raw))
                say(error.report())
                if self._clients.get(asked.fd) is asked.client:
                    self._hang_up(asked.fd)

    def _hang_up(self, fd: int) -> None:
        self._words.pop(fd, None)
        self._refused.pop(fd, None)
        self._clients.pop(fd).close()

    # ---- what is asked

    def _expect(self, messages: int) -> None:
        """So many more are answered before they are told."""
        if messages:
            self._clerk.expect(messages)

    def _heed(self, asked: _Asked, request: Request) -> None:
        """Journal a message; before the end of its data there is none yet."""
        if request.state == END_OF_MESSAGE:
            self._journal(asked, request, self._sender(asked, request), DUNNO)

    def _decide(self, asked: _Asked, request: Request) -> None:
        """Answer by the policy, then journal."""
        fd, client = asked.fd, asked.client
        ends = request.state == END_OF_MESSAGE
        signs = request.state == DATA and self._keys.ready
        if not (signs or self._admission.asks_at(request.state)):
            self._expect(int(ends))
            self._send(client, _DUNNO)
            self._heed(asked, request)
            return
        event = self._sender(asked, request)
        told = self._admission.decide(request, event)
        # of many recipients each is refused, and the message told once
        again = self._refused.get(fd) == request.instance
        tells = ends or (told.refuses and not again)
        self._expect(int(tells))
        if signs and event and not told.refuses:
            token = self._sign(request, event)
            self._send(client, answer(f"PREPEND {HEADER}: {token}"))
        else:
            self._send(client, answer(told.action))
        if tells:
            if not ends:
                self._refused[fd] = request.instance
            self._journal(asked, request, event, told)

    def _send(self, client: socket.socket, words: bytes) -> None:
        with contextlib.suppress(OSError):  # it waits no longer; the next recv() ends
            client.send(words)

    def _sender(self, asked: _Asked, request: Request) -> Event | None:
        if request.client is None or request.server is None:
            return None
        try:
            return self._find(request.client, request.server, asked.boot_ns)
        except GuardError as error:  # the guard is being unloaded under us
            say(error.report())
            return None

    def _sign(self, request: Request, event: Event) -> str:
        """Make a message's token, and keep it: the key may change before its end."""
        made = self._keys.token(self._naming.connection(event), request.instance)
        self._tokens[request.instance] = made
        if len(self._tokens) > _MOST_TOKENS:
            self._tokens.popitem(last=False)
        return made

    def _journal(
        self, asked: _Asked, request: Request, event: Event | None, told: Answer
    ) -> None:
        token = ""
        if request.state == END_OF_MESSAGE and event:
            token = self._tokens.pop(request.instance, "") or self._keys.token(
                self._naming.connection(event), request.instance
            )
        at_us = asked.real_us
        make = partial(sent_message, request, event, self._naming, told, token, at_us)
        if told.refuses:
            key = _origin(request, event), told.answer, told.reason, told.limit
            self._refusals.take(key, self._fold, time.monotonic(), at_us, make)
        elif message_kind(told) is Kind.MESSAGE:
            # the scribe makes many at once, for half of what each alone takes
            self._tell(make)
        else:
            self._tell(make())
        for met in told.met:
            self._tell(limit_notice(met, told.in_force))


def _origin(request: Request, event: Event | None) -> Hashable:
    """Give what refused messages have in common that are folded into one entry."""
    if event is None:
        return request.address
    return event.uid, event.exe_device, event.exe_inode, event.cgroup, event.cwd
