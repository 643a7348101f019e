# SPDX-License-Identifier: GPL-2.0-or-later
"""All that a MailTable comes to in one Postfix: parameters, services, tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guard.mail import relaying, smarthost, transports
from guard.mail.postfix import Postfix
from guard.mail.relaying import Member
from guard.mail.table import MailTable, SmartHost

TRANSPORT_TABLE = "transport"
STATUS_TABLE = "oneshot-status"
TABLES = (smarthost.AUTH_TABLE, TRANSPORT_TABLE, STATUS_TABLE)


@dataclass(frozen=True, slots=True)
class File:
    """A table of ours: its text, and whether postmap(1) makes an index of it."""

    text: str
    indexed: bool
    secret: bool = False

    @property
    def mode(self) -> int:
        """Give the permissions of text and index."""
        return 0o600 if self.secret else 0o644


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be; files by their names in Postfix's folder smtp-guard."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    services: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)


def wanted(table: MailTable, postfix: Postfix, services: Mapping[str, str]) -> Wanted:
    """Work it out; services are those of master.cf now.

    Raises MailError for a transport or a file, as of the password, that is not there.
    """
    parameters: dict[str, str] = {}
    files: dict[str, File] = {}
    members = relaying.members(table.relay_mynetworks)
    lines: dict[str, str] = {}
    if table.smart_host:
        parameters |= _smart_host(table.smart_host, postfix, files)
    if table.transports:
        transports.reject_unknown(table.transports, services)
        text = transports.table_text(table.transports, table.smart_host)
        files[TRANSPORT_TABLE] = File(text, indexed=True)
        name = f"{postfix.map_kind()}:{postfix.ours / TRANSPORT_TABLE}"
        members.append(Member(transports.TRANSPORT_MAPS, name, present=True))
        if transports.ONESHOT in transports.used(table.transports):
            files[STATUS_TABLE] = File(transports.STATUS_FILTER, indexed=False)
        lines = transports.services(
            table.transports,
            postfix.ours / STATUS_TABLE,
            services.get("smtp/unix", ""),
        )
        parameters |= transports.parameters(table.transports)
    if table.client_port_logging is not None:
        word = "yes" if table.client_port_logging else "no"
        parameters["smtpd_client_port_logging"] = word
    if table.authorized_submit_users is not None:
        relaying.reject_missing(table.authorized_submit_users)
        users = ", ".join(table.authorized_submit_users)
        parameters["authorized_submit_users"] = users
    return Wanted(parameters, tuple(members), lines, files)


def _smart_host(
    smart_host: SmartHost, postfix: Postfix, files: dict[str, File]
) -> dict[str, str]:
    smarthost.reject_unusable(smart_host)
    auth_map = ""
    if smart_host.password:
        password = smart_host.password.read()
        text = smarthost.auth_text(smart_host, password)
        files[smarthost.AUTH_TABLE] = File(text, indexed=True, secret=True)
        auth_map = f"{postfix.map_kind()}:{postfix.ours / smarthost.AUTH_TABLE}"
    return smarthost.parameters(smart_host, auth_map)
