# SPDX-License-Identifier: GPL-2.0-or-later
"""[backstop]: the second lock, in netfilter."""

from __future__ import annotations

import re
import socket

from guard.policy.fields import MAX_UINT, Table
from guard.policy.model import Backstop

KINDS = ("auto", "nftables", "iptables", "off")
_KEYS = ("kind", "mark", "forward", "uplinks", "group")
# dev_valid_name(), net/core/dev.c, less what would need quoting in a rule
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}")


def backstop_section(top: Table) -> Backstop:
    """Read [backstop] of the main policy file; what is missing is the default."""
    table = top.section("backstop", _KEYS)
    plain = Backstop()
    kind = table.choice("kind", KINDS) if "kind" in table.data else plain.kind
    return Backstop(
        kind or plain.kind,
        table.number("mark", plain.mark, MAX_UINT, "one or more bits of 32"),
        table.networks("forward") or () if table.data.get("forward") else (),
        _uplinks(table),
        table.number("group", plain.group, 0xFFFF, "an NFLOG group"),
    )


def _uplinks(table: Table) -> tuple[str, ...] | None:
    names = table.texts("uplinks")
    for name in names or ():
        if not _INTERFACE.fullmatch(name):
            table.error(
                "uplinks",
                f"{name!a} is not the name of an interface",
                'write it as "ip link" shows it, as in "eth0"',
            )
        elif name not in {there for _, there in socket.if_nameindex()}:
            table.warn(
                "uplinks",
                f"there is no interface {name} now",
                "correct the name, unless it is made later; until then nothing that"
                " leaves by it is met",
            )
    return None if names is None else tuple(dict.fromkeys(names))
