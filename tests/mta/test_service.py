# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy service at its socket: who may ask, what is answered, what comes back."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guard.errors import MtaError
from guard.event import Event
from guard.mta.listener import MAIL_OWNER, Listener
from guard.mta.policy_service import PolicyService
from guard.origin import Naming
from guard.policy import Policy, parse
from tests.journald import until
from tests.mta.test_delegation import REAL, changed

POSTFIX = pwd.getpwnam(MAIL_OWNER)
UNITS = Path(__file__).resolve().parents[2] / "units"
DUNNO = b"action=DUNNO\n\n"
ASK = """\
import socket, sys
asking = socket.socket(socket.AF_UNIX)
asking.settimeout(20)
asking.connect(sys.argv[1])
asking.sendall(sys.stdin.buffer.read())
sys.stdout.buffer.write(asking.recv(100))
"""


def policy_of(path: Path, text: str = "", mode: str = "enforce") -> Policy:
    """Make a policy with a socket there and this text after it."""
    return parse(f'mode = "{mode}"\n[mta]\nsocket = "{path}"\n{text}')


class Site:
    """A policy service in a queue directory of its own, and what it told."""

    def __init__(self, queue: Path) -> None:
        self.queue = queue
        self.path = queue / "smtp-guard/policy"
        self.told: list[Any] = []
        self.asked: list[tuple[object, object]] = []
        self.expected = 0
        self.naming = Naming()
        self.found: Event | None = None
        self.service = PolicyService(
            self._find,
            self.naming,
            self,
            lambda address: address.startswith("127."),
            queue / "run/counts",
        )

    def expect(self, messages: int) -> None:
        self.expected += messages

    def tell_expected(self, found: Any) -> None:
        self.told.append(found() if callable(found) else found)

    def _find(
        self, client: tuple[str, int], server: tuple[str, int], at_ns: int
    ) -> Event | None:
        assert at_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.asked.append((client, server))
        return self.found

    def serve(self, text: str = "", path: Path | None = None) -> None:
        """Answer there by a policy with this text after its [mta] socket."""
        self.path = path or self.path
        self.service.serve(policy_of(self.path, text))

    def connect(self) -> socket.socket:
        asking = socket.socket(socket.AF_UNIX)
        asking.settimeout(20)
        asking.connect(str(self.path))
        return asking

    def ask(self, raw: bytes = REAL) -> bytes:
        with self.connect() as asking:
            asking.sendall(raw + b"\n\n")
            return asking.recv(1000)

    def has_told(self, count: int) -> None:
        """Wait for what is told just after the answer; no more may come."""
        until(lambda: len(self.told) >= count, f"{count} messages")
        assert self.ask(changed(b"protocol_state", b"RCPT")) == DUNNO
        assert len(self.told) == count

    def ask_as(self, uid: int, gid: int) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", ASK, str(self.path)],
            input=REAL + b"\n\n",
            capture_output=True,
            user=uid,
            group=gid,
            extra_groups=[],
            timeout=60,
        )

    def serves(self) -> bool:
        with contextlib.suppress(OSError):
            self.connect().close()
            return True
        return False


@pytest.fixture
def queue() -> Iterator[Path]:
    """A short path that user postfix can enter, as sun_path and chroots need."""
    path = Path(f"/tmp/smtp-guard-{os.getpid()}-{time.monotonic_ns() % 10**6}")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def site(queue: Path) -> Iterator[Site]:
    site = Site(queue)
    site.serve()
    site.service.start()
    until(site.serves, "the policy service")
    yield site
    site.service.stop(10)
    assert not site.service.is_alive()


def test_a_message_is_told_and_answered(site: Site) -> None:
    assert site.ask() == DUNNO
    site.has_told(1)
    [told] = site.told
    assert (told.queue_id, told.recipients, told.size) == ("8045F2AB23", 2, 12345)
    assert (told.origin, told.unknown) == (None, "no-connection")
    assert site.asked == [(("127.0.0.1", 37634), ("127.0.0.1", 25))]


def test_other_stages_are_answered_and_not_told(site: Site) -> None:
    assert site.ask(changed(b"protocol_state", b"RCPT")) == DUNNO
    assert not site.told


def test_no_port_is_told_as_such(site: Site) -> None:
    assert site.ask(changed(b"client_port", b"unknown")) == DUNNO
    site.has_told(1)
    assert site.told[0].unknown == "no-port"
    assert not site.asked


def test_postfix_and_root_may_ask_and_nobody_else(site: Site) -> None:
    """Its group is what the folder's mode lets in; its user what we let in."""
    done = site.ask_as(POSTFIX.pw_uid, POSTFIX.pw_gid)
    assert done.stdout == DUNNO, done.stderr
    nobody = pwd.getpwnam("nobody").pw_uid
    done = site.ask_as(nobody, nobody)
    assert b"PermissionError" in done.stderr
    done = site.ask_as(nobody, POSTFIX.pw_gid)
    assert done.stdout != DUNNO
    site.has_told(1)


def test_modes_are_as_narrow_as_can_be(site: Site) -> None:
    folder, made = site.path.parent.stat(), site.path.stat()
    assert stat.S_IMODE(folder.st_mode) == 0o2710
    assert stat.S_IMODE(made.st_mode) == 0o660
    assert folder.st_gid == made.st_gid == POSTFIX.pw_gid
    assert folder.st_uid == made.st_uid == 0


@pytest.mark.parametrize(
    "remove",
    [
        lambda site: site.path.unlink(),
        lambda site: shutil.rmtree(site.path.parent),
        lambda site: site.path.parent.rename(site.queue / "away"),
    ],
    ids=["socket", "folder", "moved"],
)
def test_what_is_removed_is_made_again(
    site: Site, remove: Callable[[Site], object]
) -> None:
    remove(site)
    until(site.serves, "the socket once more")
    assert site.ask() == DUNNO


def test_a_queue_directory_that_comes_later(queue: Path) -> None:
    site = Site(queue / "spool")
    site.serve()
    site.service.start()
    try:
        until(lambda: "no such folder" in site.service.trouble, "its complaint")
        site.queue.mkdir()
        until(site.serves, "the socket")
        until(lambda: not site.service.trouble, "no complaint")
    finally:
        site.service.stop(10)


def test_a_socket_left_behind_is_replaced_and_a_served_one_is_not(queue: Path) -> None:
    site = Site(queue)
    site.path.parent.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(site.path))
    left.listen()
    site.serve()
    site.service.start()
    try:
        until(lambda: "another process listens" in site.service.trouble, "a complaint")
        left.close()
        until(lambda: not site.service.trouble, "its own socket")
        assert site.ask() == DUNNO
    finally:
        site.service.stop(10)
    assert not site.path.exists()


def test_a_folder_of_somebody_else_is_not_used(queue: Path) -> None:
    site = Site(queue)
    elsewhere = queue / "elsewhere"
    elsewhere.mkdir()
    site.path.parent.symlink_to(elsewhere)
    site.serve()
    site.service.start()
    try:
        until(lambda: "is not a folder" in site.service.trouble, "its complaint")
        assert not list(elsewhere.iterdir())
    finally:
        site.service.stop(10)


@pytest.mark.parametrize("folder", ["made by root", "missing", "out of reach"])
def test_guardd_as_a_user_of_its_own(queue: Path, folder: str) -> None:
    """Root makes the folder, by the line of units/; without it the remedy is told."""
    path = queue / "smtp-guard/policy"
    user = pwd.getpwnam("nobody").pw_uid
    if folder == "made by root":
        line = (UNITS / "smtp-guard-postfix.tmpfiles").read_text().splitlines()[-1]
        _, _, mode, _, group, *_ = line.split()
        path.parent.mkdir()
        os.chown(path.parent, user, pwd.getpwnam(group).pw_gid)
        path.parent.chmod(int(mode, 8))
    if folder == "out of reach":
        path = queue / "closed/queue/smtp-guard/policy"
        path.parent.parent.mkdir(parents=True)
        (queue / "closed").chmod(0o700)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.umask(0o077)  # as the unit has it
            try:
                Listener(path).renew()
            except MtaError as error:
                os._exit(2 if "tmpfiles" in error.hint else 3)
            os._exit(0)
        os._exit(4)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if folder != "made by root":
        assert status == (2 if folder == "missing" else 3)
        return
    assert status == 0
    made = path.stat()
    assert (made.st_uid, made.st_gid) == (user, POSTFIX.pw_gid)
    assert stat.S_IMODE(made.st_mode) == 0o660


def test_a_policy_may_move_and_end_it(site: Site) -> None:
    first, site.path = site.path, site.queue / "other/policy"
    site.serve()
    until(site.serves, "the other socket")
    assert not first.exists()
    site.service.serve(parse('mode = "observe"'))
    until(lambda: not site.path.exists(), "no socket")


def test_nobody_reads_its_complaints(queue: Path) -> None:
    """As while journald is away: it goes on, and answers when it can."""
    site = Site(queue)
    site.path = queue / "later/smtp-guard/policy"
    nobody, complaints = os.pipe()
    os.close(nobody)
    with pytest.MonkeyPatch.context() as patch, open(complaints, "w") as broken:
        patch.setattr(sys, "stderr", broken)
        site.serve()
        site.service.start()
        try:
            until(lambda: "no such folder" in site.service.trouble, "its complaint")
            site.path.parent.parent.mkdir()
            until(site.serves, "the policy service")
        finally:
            site.service.stop(10)
            with contextlib.suppress(OSError):
                broken.close()


def test_hundreds_may_hold_a_connection(site: Site) -> None:
    """As smtpds do: each keeps it for the next message, some ask at once."""
    with contextlib.ExitStack() as open_:
        asking = [open_.enter_context(site.connect()) for _ in range(300)]
        for _ in range(2):
            for one in asking:
                one.sendall(REAL + b"\n\n")
            assert {one.recv(100) for one in asking} == {DUNNO}
    site.has_told(600)


def test_a_slow_one_and_a_hostile_one_hold_up_nobody(site: Site) -> None:
    slow, hostile = site.connect(), site.connect()
    slow.sendall(REAL[:100])
    with contextlib.suppress(OSError):  # it is hung up on at once
        hostile.sendall(b"x" * 100_000)
        assert hostile.recv(100) == b""
    assert site.ask() == DUNNO
    slow.sendall(REAL[100:] + b"\n\n")
    assert slow.recv(100) == DUNNO
    assert site.service.is_alive()
    slow.close()
    hostile.close()


def test_who_leaves_without_reading_ends_nothing(site: Site) -> None:
    def rude() -> None:
        for _ in range(50):
            with site.connect() as asking:
                asking.sendall((REAL + b"\n\n") * 3)

    began = len(site.told)
    threads = [threading.Thread(target=rude) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    site.has_told(began + 600)


STRICT = 'relay_mynetworks = false\nmode = "enforce"\nunknown = "reject"\n'


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        *((state, False) for state in ("CONNECT", "EHLO", "HELO", "VRFY", "ETRN")),
        *((state, True) for state in ("MAIL", "RCPT", "DATA", "END-OF-MESSAGE")),
    ],
)
def test_nobody_is_refused_before_he_can_log_in(
    site: Site, state: str, refused: bool
) -> None:
    site.serve(STRICT)
    words = state.encode()
    raw = changed(b"protocol_state", words).replace(
        b"sasl_username=app", b"sasl_username="
    )
    assert site.ask(raw).startswith(b"action=REJECT 5.7.1") is refused
    # who has logged in, and who is none of this host's
    assert site.ask(changed(b"protocol_state", words)) == DUNNO
    assert site.ask(raw.replace(b"=127.0.0.1", b"=203.0.113.7")) == DUNNO
    # no address at all may be anybody's
    nowhere = raw.replace(b"client_address=127.0.0.1", b"client_address=unknown")
    assert (site.ask(nowhere) != DUNNO) is refused


def test_of_a_message_with_many_recipients_one_finding(site: Site) -> None:
    site.serve(STRICT)
    raw = changed(b"protocol_state", b"RCPT").replace(b"sasl_username=app", b"x=")
    with site.connect() as asking:
        for instance in (b"123.456.7", b"123.456.8"):
            for _ in range(5):
                asking.sendall(raw.replace(b"123.456.7", instance) + b"\n\n")
                assert asking.recv(1000).startswith(b"action=REJECT")
    until(lambda: len(site.told) >= 2, "two findings")
    assert site.ask(changed(b"protocol_state", b"RCPT")) == DUNNO
    kinds = [(found.kind.value, found.reason) for found in site.told]
    assert kinds == [("rejected", "unknown-origin")] * 2


def test_the_answer_is_one_line_of_ascii(site: Site) -> None:
    site.serve(STRICT)
    hostile = changed(b"helo_name", b"\xff\r action=OK \x1b[31m")
    told = site.ask(hostile.replace(b"sasl_username=app", b"sasl_username="))
    assert told.endswith(b"\n\n") and told.count(b"\n") == 2
    assert told.isascii() and len(told) < 512 and b"OK" not in told
