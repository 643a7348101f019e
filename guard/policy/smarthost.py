# SPDX-License-Identifier: GPL-2.0-or-later
"""The smart host: its name, as Postfix writes one, and the addresses it is known by.

A rule with to = "smart-host" means these addresses and this port. The name stands in
the policy or is Postfix's own relayhost; nothing is looked up here: guard/names.py
does that, in a process of its own, and leaves in a file what it found.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

from guard.errors import MtaError
from guard.policy.fields import Table
from guard.policy.model import Address, Known, Network, SmartHost, excerpt
from guard.text import printable

WORD = "smart-host"
KEY = "smart_host"
MAIN_CF = Path("/etc/postfix/main.cf")
# The name that guardd wants looked up, and what came of it: smtp-guard-names.service.
ASKED = Path("/run/smtp-guard/smart-host")
ANSWERS = Path("/run/smtp-guard-names/smart-host.json")
LOOKED = ANSWERS.with_name("looked")  # when that was last tried
_KEPT = "smart-host.json"  # in guardd's own folder, for a boot before there is DNS
_STATE = "/var/lib/smtp-guard"

MAX_ADDRESSES = 64  # of one answer
MAX_TTL = 86_400.0  # seconds; an answer that says more is not believed for longer
MAX_HELD = 2 * MAX_ADDRESSES  # with those of answers before it
_MAX_BYTES = 1 << 16
_OTHERS_WRITE = 0o022
_SECONDS = 10.0  # that postconf may take

_NEXTHOP = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::([A-Za-z0-9-]{1,32}))?")
# Letters, digits, dashes (RFC 1123); underscores, because there are such hosts.
_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
    r"(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_NOWHERE: tuple[Network, ...] = (
    ipaddress.IPv4Network("0.0.0.0/8"),  # this host, RFC 1122
    ipaddress.IPv4Network("240.0.0.0/4"),  # reserved, and broadcast
    ipaddress.IPv6Network("::/96"),  # unspecified, loopback, IPv4-compatible
    ipaddress.IPv6Network("::ffff:0:0/96"),  # IPv4-mapped: no answer holds one
)


def smart_host_of(text: str, source: str = "policy") -> SmartHost:
    """Read a next hop as Postfix's relayhost has it, postconf(5).

    `[host]:port` is that host, `host:port` its mail exchangers; port 25 where none is
    given, a number or a name of services(5). Raises ValueError, which says what is
    wrong.
    """
    match = _NEXTHOP.fullmatch(text)
    if not match:
        if "," in text or any(map(str.isspace, text)):
            raise ValueError("is several next hops, or has spaces in it")
        raise ValueError("is no next hop")
    literal, name, service = match.groups()
    port = _port(service or "25")
    host = (literal or name).lower().removesuffix(".")
    if address := address_of(host):
        if not literal:
            raise ValueError("an address must stand in brackets")
        if address.is_unspecified or address.is_multicast:
            raise ValueError("is no address of a host")
        return SmartHost(str(address), port, False, source)
    if not _HOST.fullmatch(host):
        raise ValueError("is no name of a host")
    return SmartHost(host, port, literal is None, source)


def _port(service: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", service):
        port = int(service)
    else:
        try:
            port = socket.getservbyname(service, "tcp")
        except OSError:
            raise ValueError(f"there is no service {service}") from None
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is no TCP port")
    return port


def address_of(text: str) -> Address | None:
    """Read an address, without a zone; None: it is none."""
    text = text[5:] if text[:5].lower() == "ipv6:" else text  # as smtp(8), in any case
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if getattr(address, "scope_id", None) else address


def means_smart_host(table: Table) -> bool:
    """Tell whether a rule's to has the word in it."""
    value = table.data.get("to")
    return value == WORD or (isinstance(value, list) and WORD in value)


def is_usable(address: Address) -> bool:
    """Tell whether an answer of DNS may name this address as another host's."""
    if address.is_loopback or address.is_multicast or address.is_link_local:
        return False
    return not any(
        address.version == network.version and address in network
        for network in _NOWHERE
    )


class Smart:
    """The smart host of one policy, found out when a rule first asks for it."""

    def __init__(self, top: Table, before: SmartHost | None = None) -> None:
        """Read the key of the policy file's own table, top; Postfix is not asked.

        before: what Postfix said the last time, which holds while it cannot be asked.
        """
        self._before = before
        self.host: SmartHost | None = None
        self.known: Known | None = None  # None: no rule asked
        self.why = ""  # there is none
        if KEY not in top.data:
            return
        value = top.data[KEY]
        try:
            if not isinstance(value, str):
                raise ValueError("is not a text")
            self.host = smart_host_of(value)
        except ValueError as error:
            top.error(
                KEY,
                f"{excerpt(repr(value))} {error}",
                'write it as in "[relay.example.com]:587"; without the key it is'
                " Postfix's relayhost",
            )
            self.known = Known()

    def ask(self) -> Known:
        """Give what is known of its addresses; `host` and `why` are set then."""
        if self.known is None:
            if self.host is None:
                self._ask_postfix()
            self.known = read_known(self.host) if self.host else Known()
            if self.host and self.why:
                self.known = Known(self.known.addresses, self.why)
        return self.known

    def _ask_postfix(self) -> None:
        try:
            self.host, self.why = _asked()
        except MtaError as error:
            self.host, self.why = self._before, str(error)

    def destination(
        self, table: Table, optional: bool, local: bool
    ) -> tuple[tuple[Network, ...], tuple[int, ...] | None]:
        """Give addresses and port for a rule; where none are known, nobody's."""
        if local:
            table.error("to", f"{WORD} is another host", "write a [[rule]]")
        if table.data["to"] not in (WORD, [WORD]):
            table.error(
                "to",
                f"{WORD} beside other addresses",
                "write two rules: this one means the smart host's port as well",
            )
        if "ports" in table.data:
            table.error("ports", f"{WORD} means its own port", "remove ports")
        known = self.ask()
        if self.host is None:
            if self.why and not optional:
                table.warn(
                    "to",
                    f"there is no smart host: {self.why}",
                    "the rule matches nobody until there is one; or name it in the"
                    f' policy file, as in {KEY} = "[relay.example.com]:587"',
                )
            return (), None
        if any(address.is_loopback for address in known.addresses):
            table.warn(
                "to",
                f"the smart host {self.host} is this host itself",
                "connections to it are judged by [[local.rule]], never by this one",
            )
        return tuple(map(ipaddress.ip_network, known.addresses)), (self.host.port,)

    @property
    def watch(self) -> set[Path]:
        """Files whose change may make it another one."""
        if self.known is None:
            return set()
        own = self.host is not None and self.host.source == "policy"
        return {ANSWERS} if own else {ANSWERS, MAIN_CF}


def relayhost() -> tuple[SmartHost | None, str]:
    """Ask Postfix for its smart host; None, and why there is none."""
    try:
        return _asked()
    except MtaError as error:
        return None, str(error)


def _asked() -> tuple[SmartHost | None, str]:
    """Likewise; raises MtaError where it cannot be asked: there may be one."""
    try:
        done = subprocess.run(
            ["postconf", "-hx", "relayhost"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MtaError(f"postconf cannot be asked for relayhost: {error}") from None
    text = done.stdout.strip()
    if done.returncode:
        said = printable(done.stderr.strip())[-200:]
        raise MtaError(f"postconf relayhost: {said or 'failed'}")
    if not text:
        return None, "Postfix has no relayhost"
    try:
        return smart_host_of(text, "postfix"), ""
    except ValueError as error:
        return None, f"Postfix's relayhost {excerpt(repr(text))} {error}"


# ---- what is known of its addresses


def kept_file() -> Path:
    """Give where guardd keeps the answers for a boot."""
    folder = os.environ.get("STATE_DIRECTORY") or _STATE  # set and empty: by no unit
    return Path(folder.partition(":")[0], _KEPT)


def read_known(host: SmartHost) -> Known:
    """Give the addresses of a smart host, by the last answer there is.

    Where nobody has looked it up since the host was booted, those that guardd kept.
    """
    if literal := address_of(host.host):
        return Known((literal,))
    now = _read(ANSWERS, host)
    if now is not None and now.addresses:
        return now
    error = now.error if now else "it was not looked up yet"
    kept = held_before(host) or _read(kept_file(), host) or Known()
    return Known(kept.addresses, error, kept.ttls)


def held_before(host: SmartHost) -> Known | None:
    """Give what guardd knew when it last asked for this host; None: nothing.

    It outlives the process that looks up, whose own files go with it.
    """
    return _read(ASKED, host)


def question(host: SmartHost, known: Known | None) -> str:
    """Write what guardd leaves in ASKED: a name, and an answer that it had."""
    if not known or not known.addresses:
        return str(host)
    return f"{host}\n{answer_of(host, known)}"


def answer_of(host: SmartHost, known: Known) -> str:
    """Write a file of answers, as known_of() reads it."""
    addresses = list(map(str, known.addresses))
    return json.dumps(
        {
            "name": str(host),
            "addresses": addresses,
            "error": known.error,
            "ttls": dict(zip(addresses, known.ttls, strict=False)),
        }
    )


def _read(path: Path, host: SmartHost) -> Known | None:
    """Read a file of answers, which may hold anything; None: none about this host.

    What stands before its last line is not looked at.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as stream:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_mode & _OTHERS_WRITE:
                return None
            last = stream.read(_MAX_BYTES).rpartition(b"\n")[2]
            return known_of(json.loads(last), host)
    except (OSError, ValueError, RecursionError):
        return None


def known_of(answer: Any, host: SmartHost) -> Known | None:
    """Give what a file of answers says of a host; None: nothing that makes sense."""
    if not isinstance(answer, dict) or answer.get("name") != str(host):
        return None
    listed, error = answer.get("addresses"), answer.get("error", "")
    if not isinstance(listed, list) or not isinstance(error, str):
        return None
    found = [address_of(text) for text in listed[:MAX_HELD] if isinstance(text, str)]
    good = sorted({a for a in found if a and is_usable(a)}, key=by_family)
    given = answer.get("ttls")
    ttls = given if isinstance(given, dict) else {}
    return Known(
        tuple(good),
        printable(error)[:300],
        tuple(_ttl(ttls.get(str(address))) for address in good),
    )


def _ttl(value: Any) -> float:
    """Read a TTL in seconds; 0 for what is none, or not known."""
    is_number = type(value) in (int, float) and math.isfinite(value)
    return min(max(float(value), 0.0), MAX_TTL) if is_number else 0.0


def by_family(address: Address) -> tuple[int, int]:
    """Sort key: IPv4 first, then by number."""
    return address.version, int(address)
