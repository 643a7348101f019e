# SPDX-License-Identifier: GPL-2.0-or-later
"""The transports oneshot and relaylim, and the table that sends domains there.

oneshot: one attempt. smtp(8) tells the queue manager of a temporary failure by a
status 4.x.x; a delivery status filter makes that 5.x.x, which bounces at once. A
destination that failed must not be "suspended" either, or the next message to it would
be deferred with no attempt: its cohort limit is 0. There is no fallback relay to try,
and a global soft_bounce does not count.

relaylim: one connection at a time. The concurrency limit is the queue manager's, of one
destination; maxproc 1 is for all of them, since several domains may have one server.
A cached connection would stay open beside a new one, so none is kept. Since one server
that does not answer holds up the others, its timeouts are short.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from guard.errors import MailError
from guard.mail.table import SmartHost

ONESHOT, RELAYLIM = "oneshot", "relaylim"
OWN = (ONESHOT, RELAYLIM)
TRANSPORT_MAPS = "transport_maps"
HEADER = "# Written by guardctl mail from mail.toml: change it there.\n"
# regexp_table(5), asked for "4.4.1 connect to ...": postconf(5),
# default_delivery_status_filter.
STATUS_FILTER = rf"{HEADER}/^4\.(.*)$/ 5.${{1}}" + "\n"
# A unix service of master.cf, master(5); chroot as the host's own smtp has it.
_SMTP = "unix - - {chroot} - {maxproc} smtp"


def used(transports: Mapping[str, str]) -> set[str]:
    """Name the transports that the table sends mail to."""
    return {value.partition(":")[0] for value in transports.values()}


def as_written(value: str) -> str:
    """Give a transport as one writes it: relaylim, not relaylim: for no next hop."""
    name, _, rest = value.partition(":")
    return value if rest else name


def services(
    transports: Mapping[str, str], filter_file: Path, smtp: str
) -> dict[str, str]:
    """Give the lines of master.cf for those of ours that are used.

    smtp is the host's own line of smtp/unix, or "".
    """
    fields = smtp.split()
    chroot = fields[4] if len(fields) > 4 else "-"
    found = {}
    if ONESHOT in used(transports):
        found["oneshot/unix"] = (
            f"oneshot {_SMTP.format(chroot=chroot, maxproc='-')}"
            " -o syslog_name=postfix/oneshot"
            f" -o smtp_delivery_status_filter=regexp:{filter_file}"
            " -o smtp_fallback_relay= -o soft_bounce=no"
        )
    if RELAYLIM in used(transports):
        found["relaylim/unix"] = (
            f"relaylim {_SMTP.format(chroot=chroot, maxproc=1)}"
            " -o syslog_name=postfix/relaylim"
            " -o smtp_connection_cache_on_demand=no"
            " -o smtp_connection_cache_destinations="
            " -o smtp_connect_timeout=10s -o smtp_helo_timeout=30s"
        )
    return found


def parameters(transports: Mapping[str, str]) -> dict[str, str]:
    """Give what the queue manager, qmgr(8), is told of those of ours that are used."""
    found = {}
    if ONESHOT in used(transports):
        found["oneshot_destination_concurrency_failed_cohort_limit"] = "0"
    if RELAYLIM in used(transports):
        found["relaylim_destination_concurrency_limit"] = "1"
    return found


def table_text(transports: Mapping[str, str], smart_host: SmartHost | None) -> str:
    """Write the table for postmap(1).

    transport(5): a transport without a next hop goes to the recipient's own domain.
    With a smart host ours go there instead, or they would lead around it.
    """
    relay = smart_host.relay.text if smart_host else ""
    lines = []
    for domain, value in transports.items():
        name, _, rest = value.partition(":")
        if name in OWN and not rest:
            rest = relay
        lines.append(f"{domain}\t{name}:{rest}\n")
    return HEADER + "".join(lines)


def reject_unknown(transports: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Raise MailError for a transport that master.cf does not have."""
    for name in used(transports):
        if name not in OWN and f"{name}/unix" not in there:
            raise MailError(
                f"there is no transport {name} in master.cf",
                hint="write oneshot, relaylim, error:text, or one that `postconf -M`"
                " shows",
            )


def around(transports: Mapping[str, str]) -> list[str]:
    """Name the domains whose transport leads past a smart host, as was asked for."""
    return [
        domain
        for domain, value in transports.items()
        if (name := value.partition(":")[0]) not in ("error", "discard", "local")
        and (name not in OWN or value.partition(":")[2])
    ]
