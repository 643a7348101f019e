# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl srs: whose a rewritten sender is, and is it genuine."""

from __future__ import annotations

import pwd
import sys
import time
from pathlib import Path
from typing import Any

import click

from guard.cli import options
from guard.cli.output import iso_time, valid
from guard.hosts import own_addresses
from guard.mta.maillog import files, journalled
from guard.mta.postsrsd import Forwarder, forwarder
from guard.mta.rewritten import Rewritten, rewritten
from guard.mta.srs import Judgement, NotSrs, Srs, decode, judge
from guard.text import address, json_text, printable

NOT_SRS, BAD, EXPIRED = 1, 3, 4
_STATUS = {"good": 0, "bad-hash": BAD, "bad-stamp": BAD, "expired": EXPIRED}

_EXAMPLES = """\b
Examples:
  guardctl srs decode SRS0=HHHH=TT=example.org=alice@forwarder.example
  guardctl srs check SRS0=HHHH=TT=example.org=alice@forwarder.example
  guardctl srs local --since today
"""
_DECODE = """\b
Exit status: 0, or 1 when it is no SRS address.

\b
Examples:
  guardctl srs decode SRS0=HHHH=TT=example.org=alice@forwarder.example
  guardctl srs decode --json "<SRS1=HH=b.example==GG=TT=a.example=al@c.example>"
"""
_CHECK = """\b
Exit status: 0 when a bounce to it would be taken, 1 when it is no SRS address,
3 when its hash or time stamp is wrong, 4 when it has expired, 78 when the
secrets cannot be read.

\b
Examples:
  guardctl srs check SRS0=HHHH=TT=example.org=alice@forwarder.example
  guardctl srs check --secrets /etc/postsrsd.secret --max-age 30 ADDRESS
"""
_LOCAL = """\b
Such mail needs no SRS; where it came without From:, Postfix made one of the
rewritten sender. See docs/srs.md for the cure.

\b
Exit status: 0 with at least one, 1 with none (as grep).

\b
Examples:
  guardctl srs local --since yesterday
  guardctl srs local --log /var/log/mail.log --json
"""
_ADDRESS = click.argument("address_", metavar="ADDRESS")


@click.group(name="srs", epilog=_EXAMPLES)
def command() -> None:
    """Tell of rewritten senders (SRS): whose they are, and are they genuine."""


@command.command("decode", epilog=_DECODE)
@_ADDRESS
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def decode_(address_: str, as_json: bool) -> int:
    """Tell who ADDRESS is a rewritten name of; nothing is checked."""
    srs = _decoded(address_, as_json)
    if srs is None:
        return NOT_SRS
    if as_json:
        click.echo(json_text(_row(srs), indent=2))
    else:
        _show(srs)
    return 0


@command.command("check", epilog=_CHECK)
@_ADDRESS
@click.option(
    "--secrets",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of secrets, one a line (default: as postsrsd is set up).",
)
@click.option(
    "--hash-length",
    type=click.IntRange(1, 28),
    metavar="N",
    help="Characters of the hashes made (default: as postsrsd is set up, or 4).",
)
@click.option(
    "--hash-min",
    type=click.IntRange(1, 28),
    metavar="N",
    help="Characters that are enough (default: likewise).",
)
@click.option(
    "--max-age",
    type=click.IntRange(0, 1023),
    metavar="DAYS",
    help="After which an address has expired (default 21, as postsrsd's).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(
    address_: str,
    secrets: Path | None,
    hash_length: int | None,
    hash_min: int | None,
    max_age: int | None,
    as_json: bool,
) -> int:
    """Tell whether this host made ADDRESS, and would take a bounce to it."""
    made = forwarder(secrets, hash_length, hash_min, max_age)
    for warning in made.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    srs = _decoded(address_, as_json)
    if srs is None:
        return NOT_SRS
    judgement = judge(srs, made.settings)
    if as_json:
        click.echo(json_text({**_row(srs), **_judged(judgement, made)}, indent=2))
    else:
        _show(srs)
        _line("verdict", f"{judgement.state}: {judgement.why}")
        if judgement.secret is not None and judgement.secret > 1:
            _line("secret", f"number {judgement.secret}, an older one")
    return _STATUS[judgement.state]


def _decoded(text: str, as_json: bool) -> Srs | None:
    try:
        return decode(text)
    except NotSrs as error:
        if as_json:
            click.echo(json_text({"state": "not-srs", "why": str(error)}, indent=2))
        else:
            click.echo(f"no SRS address: {error}", err=True)
        return None


def _row(srs: Srs) -> dict[str, Any]:
    return {
        "kind": f"SRS{srs.kind}",
        "original": valid(srs.original),
        "forwarder": valid(srs.forwarder),
        "first_forwarder": valid(srs.first),
        "bounce_to": valid(srs.bounce),
        "stamp": valid(srs.stamp),
        "age_days": srs.age(time.time()),
    }


def _judged(judgement: Judgement, made: Forwarder) -> dict[str, Any]:
    return {
        "state": judgement.state,
        "why": judgement.why,
        "secret": judgement.secret,
        "secrets_file": str(made.secrets),
        "warnings": list(made.warnings),
    }


def _show(srs: Srs) -> None:
    _line("sender", srs.original)
    _line("forwarder", srs.forwarder)
    if srs.kind:
        _line("before", f"{srs.first}, who rewrote it first")
        _line("bounce", f"goes to {srs.bounce}")
    age = srs.age(time.time())
    told = "no time stamp" if age is None else f"{age} days"
    _line("age", f"{told} ({srs.stamp})")


def _line(name: str, text: str) -> None:
    click.echo(f"{name:<10} {printable(text)}")


@command.command("local", epilog=_LOCAL)
@click.option("--since", metavar="TIME", help="Taken in then or later.")
@click.option("--until", metavar="TIME", help="Taken in then or earlier.")
@options.journals
@click.option(
    "--log",
    "logs",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Read the mail log in FILE (also .gz), not in the journal.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON Lines: an object a line.")
def local(
    since: str | None,
    until: str | None,
    directory: str | None,
    merge: bool,
    logs: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Show mail of this host's own processes that got an SRS sender."""
    wanted = options.take_filter({}, since, until)
    journal = options.take_journal(directory, merge)
    log = files(logs) if logs else journalled(journal, wanted.since_us, wanted.until_us)
    shown = 0
    for found in rewritten(log, frozenset(own_addresses())):
        if not wanted.since_us <= found.time_us <= wanted.until_us:
            continue
        sys.stdout.write(json_text(_local_row(found)) if as_json else _block(found))
        sys.stdout.write("\n")
        shown += 1
    return 0 if shown else 1


def _who(found: Rewritten) -> tuple[str, str | None]:
    """Give how it came in, in words, and the user of sendmail(1)."""
    logged = found.submitted
    if logged.uid is not None:
        try:
            user = pwd.getpwuid(logged.uid).pw_name
        except (KeyError, OverflowError):
            user = None
        return f"sendmail, uid {logged.uid}{f' ({user})' if user else ''}", user
    host, port = logged.client or ("?", None)
    text = f"SMTP, {host if port is None else address((host, port))}"
    return text + (f", login {logged.sasl_user}" if logged.sasl_user else ""), None


def _local_row(found: Rewritten) -> dict[str, Any]:
    logged = found.submitted
    client = logged.client
    return {
        "queue_id": valid(found.queue_id),
        "time": iso_time(found.time_us),
        "uid": logged.uid,
        "user": _who(found)[1],
        "client": client and {"addr": valid(client[0]), "port": client[1]},
        "sasl_user": valid(logged.sasl_user),
        "sender": valid(found.srs.original),
        "rewritten": valid(found.sender),
    }


def _block(found: Rewritten) -> str:
    lines = [
        f"{found.queue_id}  {iso_time(found.time_us)}",
        f"  by        {_who(found)[0]}",
        f"  sender    {found.srs.original}",
        f"  became    {found.sender}",
    ]
    return "\n".join(map(printable, lines))
