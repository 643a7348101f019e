# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail spf: a domain's SPF record, and the zone that goes with it."""

from __future__ import annotations

import re
from typing import Any

import click

from guard.cli.output import valid
from guard.errors import BadQuery
from guard.mta.asking import asker
from guard.mta.spf import MAX_LOOKUPS, Count, examine, is_spf, wanted
from guard.mta.zone import Record, records
from guard.policy.model import Address
from guard.policy.smarthost import address_of, relayhost
from guard.text import json_text, printable

# What a relay's customers are told to include.
_INCLUDES = {"smtp.mailchannels.net": "relay.mailchannels.net"}
_NAME = re.compile(
    r"(?=.{1,240}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
_MOST = 0x7FFFFFFF  # TTL, RFC 2181 section 8

_EPILOG = """\b
Without --include the relay's name is that of Postfix's relayhost, where it is a
relay that is known (MailChannels).

\b
Exit status: 0 when the record is as it should be, 1 when not, 75 when no name
server answers.

\b
Examples:
  guardctl mail spf example.com
  guardctl mail spf example.com --include relay.mailchannels.net
  guardctl mail spf example.com --address 192.0.2.1 --zone-file
  guardctl mail spf shop.example.com --zone example.com --json
"""


@click.command(name="spf", epilog=_EPILOG)
@click.argument("domain")
@click.option(
    "--include",
    "includes",
    multiple=True,
    metavar="DOMAIN",
    help="Relay to include; may be given more than once.",
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="Of this mail host, for the zone; may be given more than once.",
)
@click.option(
    "--zone",
    metavar="DOMAIN",
    help="Zone that DOMAIN is in (default: DOMAIN itself).",
)
@click.option(
    "--ttl",
    type=click.IntRange(0, _MOST),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="Of the zone's records.",
)
@click.option(
    "--server", metavar="ADDRESS", help="Ask this name server, not resolv.conf's."
)
@click.option("--zone-file", is_flag=True, help="Print the zone's records, only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def spf(
    domain: str,
    includes: tuple[str, ...],
    addresses: tuple[str, ...],
    zone: str | None,
    ttl: int,
    server: str | None,
    zone_file: bool,
    as_json: bool,
) -> int:
    """Show the SPF record of DOMAIN as it is, and as it should be.

    What it says is kept; what the relay needs is added. The zone is the whole of
    what a domain with mail here has: MX, TXT, and A and AAAA for mail, horde and
    roundcube.
    """
    if zone_file and as_json:
        raise click.UsageError("--zone-file or --json, not both")
    domain, inside = _domain(domain), _domain(zone or domain)
    if domain != inside and not domain.endswith(f".{inside}"):
        raise BadQuery("--zone", f"{domain} is not in {inside}")
    hosts = [_host(text) for text in addresses]
    if server is not None:
        server = str(_host(server))
    relays = tuple(map(_domain, includes)) or _known_relay()
    ask = asker(server)
    have = [text for text in ask(domain, "TXT") if is_spf(text)]
    want = wanted(have[0] if len(have) == 1 else _joined(have), relays)
    count = examine(domain, want, ask)
    now = examine(domain, have[0], ask) if len(have) == 1 else None
    if len(have) > 1:
        count.problems.insert(
            0, f"{domain} has {len(have)} SPF records: all are void, leave one"
        )
    zone_records = list(records(domain, inside, want, hosts, ttl))
    if zone_file:
        click.echo("\n".join(map(str, zone_records)))
    elif as_json:
        click.echo(json_text(_row(have, want, count, now, zone_records), indent=2))
    else:
        _show(have, want, count, now, zone_records, relays)
    return 0 if have == [want] and not count.problems else 1


def _joined(have: list[str]) -> str | None:
    """Make one record of several: every term of each, in order, `all` from the last."""
    words: dict[str, None] = {}
    ends: list[str] = []
    for text in have:
        for word in text.split(" ")[1:]:
            if re.fullmatch("[+?~-]?all", word, re.IGNORECASE):
                ends.append(word)
            elif word:
                words.setdefault(word)
    return " ".join(["v=spf1", *words, *ends[-1:]]) if have else None


def _known_relay() -> tuple[str, ...]:
    host, _ = relayhost()
    return (_INCLUDES[host.host],) if host and host.host in _INCLUDES else ()


def _domain(text: str) -> str:
    name = text.rstrip(".").lower()
    if not _NAME.fullmatch(name):
        raise BadQuery(
            "domain", f"{printable(text)[:80]!r} is none; other letters go as xn--"
        )
    return name


def _host(text: str) -> Address:
    address = address_of(text)
    if address is None:
        raise BadQuery("address", f"{printable(text)[:80]!r} is none")
    return address


def _row(
    have: list[str], want: str, count: Count, now: Count | None, zone: list[Record]
) -> dict[str, Any]:
    return {
        "records": list(map(valid, have)),
        "wanted": valid(want),
        "good": have == [want] and not count.problems,
        "lookups": now.lookups if now else None,
        "wanted_lookups": count.lookups,
        "problems": list(map(printable, count.problems)),
        "notes": list(map(printable, count.notes)),
        "zone": [
            {
                "name": valid(one.name),
                "ttl": one.ttl,
                "type": one.type,
                "value": valid(one.value),
            }
            for one in zone
        ],
    }


def _show(
    have: list[str],
    want: str,
    count: Count,
    now: Count | None,
    zone: list[Record],
    relays: tuple[str, ...],
) -> None:
    for text in have:
        click.echo(f"is        {printable(text)}")
    if not have:
        click.echo("is        no SPF record")
    if now:
        click.echo(f"          {now.lookups} of {MAX_LOOKUPS} lookups")
    if have == [want]:
        click.echo("should    be so")
    else:
        click.echo(f"should    {printable(want)}")
        click.echo(f"          {count.lookups} of {MAX_LOOKUPS} lookups")
    if not relays:
        click.echo("relay     none is known: --include DOMAIN names it")
    for what, texts in (("problem", count.problems), ("note", count.notes)):
        for text in texts:
            click.echo(f"{what:<9} {printable(text)}")
    click.echo("\n" + "\n".join(printable(str(one)) for one in zone))
