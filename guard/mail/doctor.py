# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a host's Postfix leaves its local submission anonymous.

Read with postconf alone, also where mail.toml was never applied; the remedies are
lines to copy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from guard.checks import Check, State, good
from guard.mail import relaying
from guard.mail.postfix import DEFAULT_CONFIG_DIR, Postfix

_STOCK = "permit_sasl_authenticated, defer_unauth_destination"  # postconf(5)
_LOOPBACK = tuple(map(ipaddress.ip_network, ("127.0.0.0/8", "::1/128")))
# The largest that can be one site: RFC 1918 has 10.0.0.0/8, a provider 2001:db8::/32.
_WIDEST = {4: 8, 6: 32}
_CLAIMS = ("smtpd_authorized_xclient_hosts", "smtpd_authorized_xforward_hosts")
_AROUND = ("sender_dependent_relayhost_maps", "sender_dependent_default_transport_maps")


def diagnose(postfix: Postfix) -> Iterator[Check]:
    """Go through the posture; remedies have the exact postconf line."""
    host = _Host(postfix)
    yield from _networks(host)
    yield from _relaying(host)
    yield _port(host)
    yield _queue_ids(host)
    yield _attribution(host)
    yield from _claims(host)
    yield _sendmail(host)
    yield from _smart_host(host)


class _Host:
    """Settings, and what services of master.cf have of their own."""

    def __init__(self, postfix: Postfix) -> None:
        """Ask postconf, once for each."""
        self.postfix = postfix
        self._values: dict[str, str] = {}
        self.overrides = postfix.overrides()
        programs = {n: line.split()[7] for n, line in postfix.services().items()}
        # 127.0.0.1:submission/inet, but not lmtp: what smtpd(8) listens at.
        self.smtpds = [
            name
            for name, program in programs.items()
            if name.endswith("/inet") and program == "smtpd"
        ]
        # smtp/unix, relay/unix, oneshot/unix: what sends.
        self.smtps = [name for name, program in programs.items() if program == "smtp"]

    def value(self, name: str) -> str:
        """Give a parameter of main.cf, or its default, with $names filled in."""
        if name not in self._values:
            self._values[name] = self.postfix.value(name)
        return self._values[name]

    def of(self, service: str, name: str) -> tuple[str, bool]:
        """Give a parameter as a service has it; and whether by an -o of its own."""
        own = self.overrides.get(service, {})
        if name not in own:
            return self.value(name), False
        return self._filled(own[name], own), True

    def _filled(self, text: str, own: Mapping[str, str]) -> str:
        """Fill in $names, one level: what `-o smtpd_..=$mua_..` has."""
        return re.sub(
            r"\$[({]?(\w+)[)}]?",
            lambda found: own.get(found[1]) or self.value(found[1]),
            text,
        )

    def edit(self, name: str, value: str, service: str = "") -> str:
        """Write the line that sets a parameter, in main.cf or for one service."""
        place = self.postfix.config_dir
        where = "" if place == DEFAULT_CONFIG_DIR else f" -c {place}"
        if service:
            return f"postconf{where} -P '{service}/{name}={value}'"
        return f"postconf{where} -e '{name} = {value}'"


def _networks(host: _Host) -> Iterator[Check]:
    wide = []
    for word in re.split(r"[\s,]+", host.value("mynetworks")):
        try:
            network = ipaddress.ip_network(word.replace("[", "").replace("]", ""))
        except ValueError:  # a table, a file, !pattern
            continue
        if network.prefixlen < _WIDEST[network.version] and not network.is_loopback:
            wide.append(word)
    if wide:
        yield Check(
            "mynetworks",
            State.BAD,
            f"{', '.join(wide)} may relay as this host's own: strangers are in it",
            host.edit("mynetworks", "127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128"),
        )


def _local_relays(host: _Host) -> bool:
    """Tell whether mynetworks has the loopback addresses in it."""
    for word in re.split(r"[\s,]+", host.value("mynetworks")):
        try:
            network = ipaddress.ip_network(word.replace("[", "").replace("]", ""))
        except ValueError:
            continue
        for own in _LOOPBACK:
            if network.version == own.version and (
                network.supernet_of(own) or own.supernet_of(network)  # type: ignore[arg-type]
            ):
                return True
    return False


def _relaying(host: _Host) -> Iterator[Check]:
    """permit_mynetworks: who connects from 127.0.0.1 relays without a name."""
    if not _local_relays(host):
        yield good("relaying", "mynetworks has no loopback address: nobody is exempt")
        return
    clear = True
    told: set[str] = set()
    for service in host.smtpds:
        for name in (relaying.RELAY, relaying.RECIPIENT):
            text, own = host.of(service, name)
            if not _anonymous(text) or (not own and name in told):
                continue
            clear = False
            if not own:
                told.add(name)
            yield _anonymous_relay(host, name, text, service if own else "")
    if clear:
        yield good("relaying", "every client has to say who it is before it may relay")


def _anonymous(text: str) -> bool:
    """Tell whether permit_mynetworks is met before a restriction that stops all."""
    for word in relaying.words(text):
        if word == relaying.MYNETWORKS:
            return True
        if word in ("reject", "defer"):
            return False
    return False


def _anonymous_relay(host: _Host, name: str, text: str, service: str) -> Check:
    port = host.of(service or "smtp/inet", "smtpd_client_port_logging")[0]
    rest = relaying.without(text, relaying.MYNETWORKS)
    if name == relaying.RELAY and not rest:
        rest = _STOCK
    where = f"{service}: {name}" if service else name
    known = port == "yes"
    return Check(
        "relaying",
        State.WARN if known else State.BAD,
        f"{where} has {relaying.MYNETWORKS}: every process of this host may relay by"
        " 127.0.0.1 without a password"
        + (
            "; its port is logged, guardctl who-sent finds it by that"
            if known
            else ", and the log does not tell which it was"
        ),
        host.edit(name, rest.replace("\n", " "), service),
    )


def _port(host: _Host) -> Check:
    name = "smtpd_client_port_logging"
    without = [service for service in host.smtpds if host.of(service, name)[0] != "yes"]
    if not without:
        return good("port", "the log has the client's port, which leads to its process")
    own = [service for service in without if host.of(service, name)[1]]
    line = host.edit(name, "yes", own[0] if own else "")
    return Check(
        "port",
        State.BAD,
        f"client=localhost[127.0.0.1] in the log has no port ({', '.join(without)}):"
        " a message cannot be joined to its connection afterwards",
        line,
    )


def _queue_ids(host: _Host) -> Check:
    if host.value("enable_long_queue_ids") == "yes":
        return good("queue-id", "queue ids are not used twice")
    return Check(
        "queue-id",
        State.WARN,
        "queue ids are short ones, which are used again: months later one may name"
        " another message",
        host.edit("enable_long_queue_ids", "yes"),
    )


def _attribution(host: _Host) -> Check:
    name = "smtpd_end_of_data_restrictions"
    lacking = [s for s in host.smtpds if "smtp-guard/policy" not in host.of(s, name)[0]]
    if not lacking:
        return good("guardd", "Postfix tells guardd of every message")
    text, own = host.of(lacking[0], name)
    asks = (
        "check_policy_service { unix:smtp-guard/policy, default_action=DUNNO,"
        " timeout=2s, try_limit=1 }"
    )
    return Check(
        "guardd",
        State.WARN,
        f"guardd is not told of messages ({', '.join(lacking)}): they are joined to"
        " processes by port and time alone",
        host.edit(name, f"{text}, {asks}" if text else asks, lacking[0] if own else ""),
    )


def _claims(host: _Host) -> Iterator[Check]:
    """Clients that may say they are somebody else: XCLIENT, XFORWARD, PROXY."""
    for service in host.smtpds:
        for name in _CLAIMS:
            text, own = host.of(service, name)
            if re.search(r"127\.|::1|localhost|mynetworks|0\.0\.0\.0/0", text):
                yield Check(
                    "claims",
                    State.BAD,
                    f"{service}: {name} = {text}: any process of this host may claim"
                    " to be another client",
                    host.edit(name, "", service if own else ""),
                )
        proxy, own = host.of(service, "smtpd_upstream_proxy_protocol")
        if proxy:
            yield Check(
                "claims",
                State.WARN,
                f"{service} believes the PROXY protocol: who reaches that port may"
                " claim any address",
                "let only the proxy's user connect there, by a [[local.rule]]",
            )


def _sendmail(host: _Host) -> Check:
    users = host.value("authorized_submit_users")
    if users == "static:anyone":
        return Check(
            "sendmail",
            State.NOTE,
            "every user may submit by sendmail(1); the log has the user ID",
            host.edit("authorized_submit_users", "root, www-data"),
        )
    return good("sendmail", f"those who may submit by sendmail(1): {users}")


def _smart_host(host: _Host) -> Iterator[Check]:
    relay = host.value("relayhost")
    if not relay:
        return
    yield from _in_the_clear(host, relay)
    for name in _AROUND:
        if value := host.value(name):
            yield Check(
                "smart-host",
                State.WARN,
                f"{name} = {value} may lead past {relay}",
                host.edit(name, ""),
            )
    for table in re.split(r"[\s,]+", host.value("smtp_sasl_password_maps")):
        yield from _readable(host, Path(table.rpartition(":")[2]))
    yield good("smart-host", f"mail leaves through {relay}")


def _in_the_clear(host: _Host, relay: str) -> Iterator[Check]:
    name, told = "smtp_tls_security_level", False
    for service in host.smtps:
        (level, own), (auth, _) = (
            host.of(service, key) for key in (name, "smtp_sasl_auth_enable")
        )
        if auth != "yes" or level not in ("", "none", "may") or (told and not own):
            continue
        told = told or not own
        yield Check(
            "smart-host",
            State.BAD,
            f"{f'{service}: ' if own else ''}the password for {relay} may be sent in"
            f" the clear: TLS is {level or 'off'}",
            host.edit(name, "encrypt", service if own else ""),
        )


def _readable(host: _Host, text: Path) -> Iterator[Check]:
    """Tell of a password that others than root can read."""
    if not text.is_absolute():
        return
    for path in (text, *host.postfix.indexes(text)):
        if path.is_file() and path.stat().st_mode & 0o077:
            yield Check(
                "smart-host",
                State.BAD,
                f"{path}: others than root can read the password",
                f"chmod 600 {path}",
            )
