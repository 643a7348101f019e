# SPDX-License-Identifier: GPL-2.0-or-later
"""/etc/smtp-guard/mail.toml -> MailTable, with every problem of it in one run."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from guard.errors import MailTableError
from guard.mail.password import CREDENTIAL, Password
from guard.policy import Problem
from guard.policy.fields import Table
from guard.policy.smarthost import address_of
from guard.policy.source import Problems, Source, TooMany, from_file, from_text

DEFAULT_TABLE = Path("/etc/smtp-guard/mail.toml")
# smtp_tls_security_level, postconf(5). With a password it is encrypt at least.
TLS_LEVELS = ("encrypt", "verify", "secure")
TLS_WITHOUT_PASSWORD = ("none", "may")
MAILCHANNELS = "smtp.mailchannels.net"
SUBMISSIONS = 465  # RFC 8314: TLS from the first byte
_KEYS = (
    *("smart_host", "transports", "relay_mynetworks"),
    *("client_port_logging", "authorized_submit_users"),
)
_PASSWORD_KEYS = ("password_file", "password_credential")
_SMART_HOST_KEYS = (
    *("preset", "host", "user", *_PASSWORD_KEYS),
    *("tls", "ca_file", "authenticated_header", "pin"),
)
# As valid_hostname() of Postfix has it: one of digits alone is no name. By another
# smtp(8) ends at once, and all mail of its transport waits.
_NAME = re.compile(
    r"(?=.{1,253}\Z)(?=.*[A-Za-z_-])[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?)*"
)
_RELAY = re.compile(
    r"(?:\[(?P<exact>[^\[\]\s]+)\]|(?P<name>[^\[\]:\s]+))(?::(?P<port>[0-9]{1,5}))?"
)
# transport(5): a domain, those below it, one address (of RFC 5322's atext), or all
# others. postmap(1) takes a line that begins with # for a comment.
_PATTERN = re.compile(
    r"(?:(?!#)[a-z0-9!#$%&'*+?^_`{}~.-]{1,64}@)?\.?[a-z0-9_.-]{1,253}|\*"
)
_TRANSPORT = re.compile(r"(?P<name>[A-Za-z0-9_-]+)(?::(?P<rest>.*))?")
_BY_SMTP = ("smtp", "relay", "oneshot", "relaylim")  # what others do, we cannot know
_NEXT_HOP = re.compile(
    r"(?:\[(?P<exact>[^][\s]+)\]|(?P<name>[^][\s]+?))(?::(?P<port>[\w-]+))?"
)


@dataclass(frozen=True, slots=True)
class Relay:
    """Where to: as relayhost has it, host, port, and whether MX records count."""

    text: str
    host: str
    port: int
    by_mx: bool


@dataclass(frozen=True, slots=True)
class SmartHost:
    """The one host that all mail leaves through; without password: no AUTH."""

    relay: Relay
    user: str = ""
    password: Password | None = None
    tls: str = "encrypt"
    ca_file: Path | None = None
    authenticated_header: bool = False
    pin: bool = False  # the guard lets Postfix connect to nobody else


@dataclass(frozen=True, slots=True)
class MailTable:
    """What Postfix is to be given. None: nothing is asked for."""

    smart_host: SmartHost | None = None
    transports: dict[str, str] = field(default_factory=dict)
    relay_mynetworks: bool | None = None
    client_port_logging: bool | None = None
    authorized_submit_users: tuple[str, ...] | None = None
    warnings: tuple[Problem, ...] = ()


def load(path: Path) -> MailTable:
    """Read a table; raises MailTableError with every problem found."""
    problems = Problems()
    path = path.absolute()
    source = from_file(path, problems, main=True)
    return _read(source, problems, str(path))


def parse(text: str, name: str = "mail.toml") -> MailTable:
    """Like load(), for a text that is no file yet."""
    problems = Problems()
    return _read(from_text(text, name, problems), problems, name)


def _read(source: Source | None, problems: Problems, name: str) -> MailTable:
    table = MailTable()
    try:
        if source:
            table = _table(Table(source, problems, source.data), problems)
    except TooMany:
        pass
    if errors := problems.errors:
        raise MailTableError(name, errors[0].message, problems=problems.in_order())
    return table


def _table(top: Table, problems: Problems) -> MailTable:
    top.only(_KEYS)
    return MailTable(
        _smart_host(top),
        _transports(top),
        top.flag("relay_mynetworks"),
        top.flag("client_port_logging"),
        _submit_users(top),
        tuple(p for p in problems.in_order() if p.severity != "error"),
    )


# ---- [smart_host]


def _smart_host(top: Table) -> SmartHost | None:
    value = top.data.get("smart_host", False)
    if value is False:
        return None
    if not isinstance(value, dict):
        top.error("smart_host", "is not a section", "write [smart_host], or false")
        return None
    table = top.section("smart_host", _SMART_HOST_KEYS)
    relay = _host(table)
    user = _one_text(table, "user") or ""
    password = _password(table, user)
    levels = TLS_LEVELS if user else (*TLS_LEVELS, *TLS_WITHOUT_PASSWORD)
    tls = table.choice("tls", levels) if "tls" in table.data else "encrypt"
    ca_file = _path(table, "ca_file")
    if relay and relay.port == SUBMISSIONS and tls in TLS_WITHOUT_PASSWORD:
        table.error("tls", f"port {SUBMISSIONS} is TLS alone", 'write "encrypt"')
    header = table.flag("authenticated_header") or False
    pin = table.flag("pin") or False
    if not relay:
        return None
    return SmartHost(relay, user, password, tls or "encrypt", ca_file, header, pin)


def _host(table: Table) -> Relay | None:
    if "preset" in table.data:
        table.choice("preset", ("mailchannels",))
        if "host" not in table.data:
            return relay_of(MAILCHANNELS)
        table.error(
            "host",
            f"and preset, which is {MAILCHANNELS}",
            "keep one of the two; a preset at another port is its host with the port",
        )
    elif "host" not in table.data:
        table.error("", "host is missing", 'add host = "[mail.relay.example]:587"')
    text = _one_text(table, "host")
    if text is None:
        return None
    try:
        return relay_of(text)
    except ValueError as error:
        table.error(
            "host", str(error), 'write "[mail.relay.example]:587"; without [] by MX'
        )
        return None


def relay_of(text: str) -> Relay:
    """Understand host or [host]:port; raises ValueError with what is wrong."""
    found = _RELAY.fullmatch(text)
    if not found:
        raise ValueError("is not host, host:port, [host] or [host]:port")
    port = int(found["port"] or 25)  # postconf(5), relayhost
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is not a TCP port")
    if found["exact"]:
        return Relay(text, _exact(found["exact"]), port, by_mx=False)
    host = found["name"]
    if address_of(host):
        raise ValueError("an address stands in brackets")
    if not _NAME.fullmatch(host):
        raise ValueError("is not the name of a host")
    return Relay(text, host, port, by_mx=True)


def _exact(text: str) -> str:
    """Give what stands in brackets, a name or an address, as smtp(8) reads it.

    Raises ValueError for what it ends on, which holds up all mail of the transport.
    """
    prefix = text[:5].lower() == "ipv6:"  # in any case
    host = text[5:] if prefix else text
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        if prefix or not _NAME.fullmatch(host):
            raise ValueError("is not the name or address of a host") from None
        return host
    if prefix and found.version == 4:
        raise ValueError(f"{host} is no IPv6 address: leave ipv6: out")
    if "%" in host:
        raise ValueError(
            f"{host} has a zone, which Postfix does not take: write an address that"
            " needs none"
        )
    return host


def _password(table: Table, user: str) -> Password | None:
    file = _path(table, "password_file")
    credential = _one_text(table, "password_credential")
    if credential is not None and not CREDENTIAL.fullmatch(credential):
        table.error(
            "password_credential", "is no credential's name", "see systemd.exec"
        )
    if file and credential:
        table.error("password_file", "and password_credential", "keep one of the two")
    given = file or credential
    # whatever they are: what is wrong with them is told once
    keys = table.data.keys()
    if "user" in keys and keys.isdisjoint(_PASSWORD_KEYS):
        table.error(
            "user",
            "has no password",
            "add password_file, or password_credential for one of systemd's",
        )
    if given and "user" not in keys:
        table.error("", "there is a password and no user", 'add user = "..."')
    if re.search(r"[:\s]|[^\x21-\x7e]", user):
        table.error(
            "user", "has a colon or a blank", "smtp_sasl_password_maps cannot hold it"
        )
    return Password(file, None if file else credential) if given else None


def _path(table: Table, key: str) -> Path | None:
    text = _one_text(table, key)
    if text is None:
        return None
    if not text.startswith("/") or not text.isprintable() or re.search(r"[\s,$]", text):
        table.error(key, "is no whole path without blanks and $", 'begin it with "/"')
    return Path(text)


def _one_text(table: Table, key: str) -> str | None:
    value = table.data.get(key)
    if value is None or (isinstance(value, str) and value and value.isprintable()):
        return value
    table.error(key, "is not a line of text", "write it in quotes")
    return None


# ---- [transports]


def _transports(top: Table) -> dict[str, str]:
    value = top.data.get("transports", {})
    if not isinstance(value, dict):
        top.error("transports", "is not a section", "write [transports]")
        return {}
    table = Table(top.source, top.problems, value, "transports")
    found = {}
    for domain, transport in value.items():
        try:
            name = pattern(domain)
            if name in found:
                raise ValueError("is there twice: no case counts in a domain")
            found[name] = transport_value(transport)
        except ValueError as error:
            table.error(domain, str(error), 'write as in "yahoo.com" = "relaylim"')
    return found


def pattern(domain: str) -> str:
    """Give a domain as transport(5) looks it up; raises ValueError."""
    text = domain.lower()
    if not text.isascii():
        raise ValueError("is not ASCII: write the name as DNS has it (xn--...)")
    if not _PATTERN.fullmatch(text) or ".." in text or text in (".", ""):
        raise ValueError("is not a domain, .domain, user@domain or *")
    if text.endswith("."):
        raise ValueError("ends in a dot, and no recipient's domain does: leave it out")
    return text


def transport_value(value: object) -> str:
    """Give name:nexthop of a transport; raises ValueError."""
    found = _TRANSPORT.fullmatch(value) if isinstance(value, str) else None
    if not found or not str(value).isprintable():
        raise ValueError("is not a transport: oneshot, relaylim, error:text")
    rest = (found["rest"] or "").strip()
    if found["name"] == "error" and not rest:
        raise ValueError("error has no text: write error:Bad domain!")
    if rest and found["name"] in _BY_SMTP:
        _look_at_next_hops(rest)
    return f"{found['name']}:{rest}"


def _look_at_next_hops(rest: str) -> None:
    """Raises ValueError: postfix check sees none of it, and mail waits for days."""
    for hop in rest.split(","):  # Postfix 3.5 and later try one after the other
        found = _NEXT_HOP.fullmatch(hop.strip())
        if not found:
            raise ValueError(f"{hop.strip()!r} is no host, host:port or [host]:port")
        if found["exact"]:
            _exact(found["exact"])
        elif not (_NAME.fullmatch(found["name"]) or address_of(found["name"])):
            raise ValueError(f"{found['name']!r} is not the name of a host")
        if not _is_port(found["port"]):
            raise ValueError(f"there is no port {found['port']}")


def _is_port(text: str | None) -> bool:
    """Tell whether it is a port, by number or by its name in services(5)."""
    if text is None:
        return True
    if text.isdecimal():
        return 0 < int(text[:6]) < 65536
    try:
        return bool(socket.getservbyname(text, "tcp"))
    except (OSError, ValueError):
        return False


# ---- relaying


def _submit_users(top: Table) -> tuple[str, ...] | None:
    users = top.texts("authorized_submit_users")
    for user in users or ():
        if re.search(r"[\s,]", user) or not user.isprintable():
            top.error(
                "authorized_submit_users",
                "a user or a table has no blank and no comma in it",
                "write a list of names",
            )
    return None if users is None else tuple(users)
