# SPDX-License-Identifier: GPL-2.0-or-later
"""The smart host in Postfix's terms, and a handshake with it that sends no mail."""

from __future__ import annotations

import base64
import contextlib
import hmac
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from guard.checks import Check, State, good
from guard.errors import MailError
from guard.mail.nexthop import Asking, Clock, End, next_hops, resolve
from guard.mail.table import SUBMISSIONS, SmartHost
from guard.text import address

AUTH_TABLE = "smart-host-auth"
# Where distributions keep the authorities that they trust: Debian, Fedora, SUSE.
_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/ca-bundle.pem"),
)
_CHALLENGES = 5  # of one AUTH, as smtplib
SECONDS = 30  # of a test in all; Postfix has that for the connect alone, postconf(5)
_MOST = 1 << 16  # bytes that a relay says in one test; smtplib takes what comes
_STEPS = {"ehlo": "EHLO", "helo": "HELO", "STARTTLS": "STARTTLS", "AUTH": "AUTH"}
# openssl-verify(1) of OpenSSL: self signed, alone or in a chain; a name that differs.
_SELF_SIGNED = (18, 19)
_NO_ISSUER = (20, 21)
_OTHER_NAME = (62, 64)
CHECKED = ("verify", "secure")  # levels at which Postfix looks at the certificate


def bundle() -> Path | None:
    """Give the file of the authorities that this system trusts."""
    return next((path for path in _BUNDLES if path.is_file()), None)


def parameters(smart_host: SmartHost, auth_map: str) -> dict[str, str]:
    """Give the settings of main.cf; auth_map is type:path of the password table."""
    found = {
        "relayhost": smart_host.relay.text,
        "smtp_tls_security_level": smart_host.tls,
    }
    if smart_host.user:
        found |= {
            "smtp_sasl_auth_enable": "yes",
            "smtp_sasl_password_maps": auth_map,
            "smtp_sasl_tls_security_options": "noanonymous",
        }
    if smart_host.relay.port == SUBMISSIONS:
        found["smtp_tls_wrappermode"] = "yes"
    if authorities := ca_file(smart_host):
        found["smtp_tls_CAfile"] = str(authorities)
    if smart_host.authenticated_header:
        found["smtpd_sasl_authenticated_header"] = "yes"
    return found


def ca_file(smart_host: SmartHost) -> Path | None:
    """Give the authorities to ask: the table's, or the system's where checked."""
    if smart_host.ca_file:
        return smart_host.ca_file
    return bundle() if smart_host.tls in CHECKED else None


def reject_unusable(smart_host: SmartHost) -> None:
    """Raise MailError for authorities that smtp(8) could not load.

    It would defer all mail: "our TLS engine is unavailable". `postfix check` is silent.
    """
    authorities = ca_file(smart_host)
    if authorities is None:
        if smart_host.tls in CHECKED:
            raise MailError(
                f"smart_host: tls is {smart_host.tls!r}, and this host has no file of"
                " authorities to check certificates by",
                hint="apt install ca-certificates, or name one: ca_file",
            )
        return
    try:
        _trusting(authorities)
    except ValueError as error:
        raise MailError(
            f"ca_file: {error}", hint="name a file of certificates in PEM"
        ) from None


def _trusting(authorities: Path | None) -> ssl.SSLContext:
    """Raise ValueError where there is no certificate in that file."""
    if authorities and not authorities.is_file():
        raise ValueError(f"{authorities}: no such file")
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"{authorities}: {error.strerror or error}") from None


def auth_text(smart_host: SmartHost, password: str) -> str:
    """Write the table of the password; its key is relayhost as it stands."""
    return f"{smart_host.relay.text}\t{smart_host.user}:{password}\n"


# ---- the handshake


class _Lines:
    """What the relay says, line by line, up to a limit."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._left = _MOST
        self.close = file.close

    def readline(self, most: int) -> bytes:
        line = self._file.readline(most)
        self._left -= len(line)
        if self._left < 0:
            raise OSError(f"it says more than {_MOST >> 10} KiB, and goes on")
        return line


class _Session(smtplib.SMTP):
    """SMTP over a socket that is connected already; passwords are UTF-8."""

    _auth_challenge_count = 0  # smtplib's auth_login() looks at it

    def __init__(
        self, connected: socket.socket, host: str, name: str, clock: Clock
    ) -> None:
        self._connected = connected
        self._clock = clock
        clock.at = "the greeting"
        super().__init__(host, 1, name)  # the port is not used

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._connected

    def getreply(self) -> tuple[int, bytes]:
        """Have no end of lines fill the memory."""
        if self.file is None and self.sock:
            self.file = _Lines(self.sock.makefile("rb"))
        return super().getreply()

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Keep which step it is; what answers a challenge is none."""
        self._clock.at = _STEPS.get(cmd, self._clock.at)
        super().putcmd(cmd, args)

    def auth(
        self, mechanism: str, authobject: Any, *, initial_response_ok: bool = True
    ) -> tuple[int, bytes]:
        """Do as smtplib, which knows ASCII alone: Postfix sends what stands there."""
        first = authobject() if initial_response_ok else None
        self._auth_challenge_count = 0 if first is None else 1
        words = [mechanism.upper(), *([] if first is None else [_base64(first)])]
        code, said = self.docmd("AUTH", " ".join(words))
        while code == 334 and self._auth_challenge_count < _CHALLENGES:
            self._auth_challenge_count += 1
            code, said = self.docmd(_base64(authobject(base64.b64decode(said))))
        if code not in (235, 503):
            raise smtplib.SMTPAuthenticationError(code, said)
        return code, said

    # typeshed has one signature of it for each kind of challenge
    def auth_cram_md5(self, challenge: Any = None) -> Any:
        """Answer with the digest of RFC 2195; None: there is no initial response."""
        if challenge is None:
            return None
        digest = hmac.new(self.password.encode(), challenge, "md5").hexdigest()
        return f"{self.user} {digest}"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test(
    smart_host: SmartHost,
    password: str,
    hostname: str,
    asking: Asking,
    seconds: float = SECONDS,
) -> Iterator[Check]:
    """Resolve, connect, shake hands and log in as Postfix would; QUIT before MAIL.

    hostname is what we greet with (myhostname). Ends with the first step that fails,
    after so many seconds whatever the relay does.
    """
    clock = Clock(seconds)
    hosts = list(next_hops(smart_host.relay, asking, clock))
    found, failures = resolve(hosts, smart_host.relay.port, asking, clock)
    if not found:
        yield Check(
            "name",
            State.BAD,
            f"{smart_host.relay.text}: {'; '.join(failures)}",
            "correct the host in mail.toml, or the resolver in /etc/resolv.conf",
        )
        return
    shown = ", ".join(address(where) for _, where in found[:4])
    yield good("name", f"{smart_host.relay.text} is {shown}")
    try:
        host, connected = _connect(found, clock)
    except OSError as error:
        yield _not_connected(shown, error, clock)
        return
    yield good("connect", f"{host} answers at {address(connected.getpeername()[:2])}")
    with contextlib.ExitStack() as stack:
        _end_in_time(connected, clock, stack)
        talk = _Talk(smart_host, hostname, host, clock)
        yield from _talk(talk, password, connected, stack)


def _connect(found: list[End], clock: Clock) -> tuple[str, socket.socket]:
    """Give the first that answers; raises the OSError of the first that does not.

    Each has an equal part of the time, so that one that says nothing does not use it
    up, and the last one all that is left.
    """
    first: OSError | None = None
    for n, (host, where) in enumerate(found):
        if clock.is_over():
            break
        try:
            return host, _connected(where, clock.left() / (len(found) - n))
        except OSError as error:
            first = first or error
    raise first or TimeoutError


def _connected(where: tuple[str, int], seconds: float) -> socket.socket:
    connected = socket.create_connection(where, timeout=seconds)
    connected.settimeout(None)  # _end_in_time()
    return connected


def _end_in_time(
    connected: socket.socket, clock: Clock, stack: contextlib.ExitStack
) -> None:
    """Have a connection end when time is up, and be closed with the stack.

    A limit for each read would not do: one byte now and then keeps them all.
    """
    stack.callback(connected.close)
    twin = connected.dup()  # TLS takes the socket itself over
    stack.callback(twin.close)
    timer = threading.Timer(clock.left(), _shut, (twin,))
    timer.daemon = True
    timer.start()
    stack.callback(timer.cancel)


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended by itself
        connected.shutdown(socket.SHUT_RDWR)


def _not_connected(shown: str, error: OSError, clock: Clock) -> Check:
    remedy = "see whether a firewall is in the way, and whether the port is right"
    if isinstance(error, PermissionError):
        remedy = (
            "this host's guard lets Postfix connect, not guardctl: allow the unit"
            " mail-test.service in a rule, and systemd-run --unit mail-test --pipe"
            " --wait guardctl mail smart-host test"
        )
    what = error.strerror or f"no answer within {clock.seconds:g} s"
    return Check("connect", State.BAD, f"{shown}: {what}", remedy)


def _context(smart_host: SmartHost, checked: bool) -> ssl.SSLContext:
    context = _trusting(smart_host.ca_file or bundle())
    if not checked:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class _Talk:
    """Who talks with whom, and for how long."""

    smart_host: SmartHost
    hostname: str  # what we greet with
    host: str
    clock: Clock


def _talk(
    talk: _Talk,
    password: str,
    connected: socket.socket,
    stack: contextlib.ExitStack,
) -> Iterator[Check]:
    smart_host, clock = talk.smart_host, talk.clock
    try:
        context = _context(smart_host, checked=True)
        where = connected.getpeername()[:2]
        try:
            session = _greet(talk, connected, context)
        except ssl.SSLCertVerificationError as error:
            yield _certificate(smart_host, error)
            if smart_host.tls in CHECKED:
                return
            connected = _connected(where, clock.left())
            _end_in_time(connected, clock, stack)
            context = _context(smart_host, checked=False)
            session = _greet(talk, connected, context)
        else:
            if isinstance(session.sock, ssl.SSLSocket):
                yield good("certificate", f"is that of {talk.host}, and trusted")
        stack.callback(_quit, session)
        if isinstance(session.sock, ssl.SSLSocket):
            cipher = session.sock.cipher() or ("?",)
            yield good("tls", f"{session.sock.version()} with {cipher[0]}")
    except ValueError as error:
        yield Check(
            "certificate", State.BAD, str(error), "correct ca_file in mail.toml"
        )
    except (OSError, smtplib.SMTPException) as error:
        yield _late("tls", clock) or Check(
            "tls", State.BAD, _words(error), _tls_remedy(smart_host, error)
        )
    else:
        yield _login(session, smart_host, password, clock)


def _greet(talk: _Talk, connected: socket.socket, context: ssl.SSLContext) -> _Session:
    """Give a session that has what TLS the level asks for."""
    smart_host = talk.smart_host
    # secure: the name is the one that the admin wrote, not one that DNS gave
    name = smart_host.relay.host if smart_host.tls == "secure" else talk.host
    if smart_host.relay.port == SUBMISSIONS:
        talk.clock.at = "the TLS handshake"
        connected = context.wrap_socket(connected, server_hostname=name)
    session = _Session(connected, name, talk.hostname, talk.clock)
    session.ehlo_or_helo_if_needed()
    offered = session.has_extn("starttls")
    wants = smart_host.tls != "none" and (smart_host.tls != "may" or offered)
    if wants and not isinstance(session.sock, ssl.SSLSocket):
        session.starttls(context=context)
        session.ehlo()
    return session


def _late(name: str, clock: Clock) -> Check | None:
    """Say what was waited for when time was up; None: it is not."""
    if not clock.is_over():
        return None
    what = f"not done within {clock.seconds:g} s: it waited for {clock.at}"
    remedy = "is it the relay's port? 465 is TLS from the first byte, others STARTTLS;"
    remedy += " a relay that is slow has longer with --timeout SECONDS"
    return Check(name, State.BAD, what, remedy)


def _certificate(smart_host: SmartHost, error: ssl.SSLCertVerificationError) -> Check:
    if error.verify_code in _SELF_SIGNED:
        what = "is self-signed, or its authority is not among those trusted"
        remedy = "name its authority's certificate: ca_file in mail.toml"
    elif error.verify_code in _NO_ISSUER:
        what = "its authority is not among those trusted, or a certificate between is"
        what += " missing"
        remedy = (
            "name its authority's certificate: ca_file in mail.toml; or have the"
            " relay's administrator complete the chain"
        )
    elif error.verify_code in _OTHER_NAME:
        what = error.verify_message
        remedy = "write the host as its certificate names it"
    else:
        what = error.verify_message
        remedy = "have the relay's administrator renew or complete the chain"
    if smart_host.tls in CHECKED:
        return Check("certificate", State.BAD, what, remedy)
    return Check(
        "certificate",
        State.WARN,
        f'{what}; with tls = "{smart_host.tls}" Postfix does not look at it, and'
        " whoever stands in between gets the password",
        f'{remedy}, then tls = "secure"',
    )


def _tls_remedy(smart_host: SmartHost, error: Exception) -> str:
    if isinstance(error, smtplib.SMTPConnectError | smtplib.SMTPHeloError):
        return "the relay refuses this host: ask its administrator"
    if smart_host.relay.port == SUBMISSIONS:
        return "this port is TLS from the first byte: is it the relay's?"
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return (
            "is it the relay's port? At 465 TLS is from the first byte, and STARTTLS at"
            " the others"
        )
    return "the relay must offer STARTTLS at this port; 465 is TLS from the first byte"


def _login(
    session: _Session, smart_host: SmartHost, password: str, clock: Clock
) -> Check:
    if not smart_host.user:
        return Check("login", State.NOTE, "mail.toml has no user: none was tried")
    try:
        session.login(smart_host.user, password)
    except (OSError, ValueError, smtplib.SMTPException) as error:
        return _late("login", clock) or _not_logged_in(smart_host, error)
    return good("login", f"user {smart_host.user} accepted; no mail was sent")


def _not_logged_in(smart_host: SmartHost, error: Exception) -> Check:
    user, said = smart_host.user, _words(error)
    if isinstance(error, smtplib.SMTPAuthenticationError):
        what = f"user {user} refused: {said}"
        remedy = "guardctl mail smart-host set, with the right user and password"
        if 400 <= error.smtp_code < 500:
            what = f"user {user} not accepted now: {said}"
            remedy = "try again, or ask who runs it"
    elif isinstance(error, smtplib.SMTPNotSupportedError):
        what, remedy = said, "is this the port for submission?"
    else:  # a ValueError: its challenge is no base64
        what, remedy = said, "ask the relay's administrator"
    return Check("login", State.BAD, what, remedy)


def _quit(session: _Session) -> None:
    with contextlib.suppress(OSError, smtplib.SMTPException):
        session.quit()


def _words(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{error.smtp_code} {_text(error.smtp_error)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _text(said: bytes | str) -> str:
    return said.decode(errors="backslashreplace") if isinstance(said, bytes) else said
