# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl who-sent: the process behind a message of the mail server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from guard.cli import complete, options
from guard.cli.output import iso_time, mail_row, row, valid
from guard.finding import REASONS, Finding, Kind
from guard.mta.handin import Caller, CallingScript, HandedIn
from guard.mta.maillog import files, journalled
from guard.mta.origintoken import TOKEN_KEYS, check_token, read_keys
from guard.mta.senders import Sent, by_token, senders
from guard.query import Filter
from guard.text import address, json_text, printable

_EPILOG = """\b
Postfix tells guardd of every message, if main.cf says (see docs/postfix.md):
  smtpd_end_of_data_restrictions =
      check_policy_service { unix:smtp-guard/policy, default_action=DUNNO }
Of a message that guardd was not told of, the mail server's log gives the port
it came from, and the journal whose connection that was at the time; such an
answer says "joined by port and time". The log is the journal's, or --log.

\b
A --token that this host's keys did not make is no "unknown" one: that is status 65,
and says whether it is another host's or forged.


Exit status: 0 with at least one message, 1 when none is known (as grep).

\b
Examples:
  guardctl who-sent 4Zx1Yb2Q9dz1Lm
  guardctl who-sent "<20261124.8f2c@shop.example>" --since yesterday
  guardctl who-sent 4Zx1Yb2Q9dz1Lm --json
  guardctl who-sent --token 4hqvo3zyl5c7wd2tfxe6sjrk4m2ahb3pnyu5qxo
  guardctl who-sent 1vNQ2k-000000-A7 --log /var/log/exim4/mainlog
"""


@click.command(name="who-sent", epilog=_EPILOG)
@click.argument("what", metavar="QUEUEID|MESSAGE-ID", required=False)
@click.option(
    "--token",
    metavar="TOKEN",
    help="The message with this word in its header X-SMTP-Guard-Origin.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    default=TOKEN_KEYS,
    show_default=True,
    metavar="FILE",
    shell_complete=complete.files,
    help="Of --token: the keys, as token_keys in [mta] names them.",
)
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
@click.option("--json", "json_", is_flag=True, help="JSON Lines: an object a line.")
def command(
    what: str | None,
    token: str | None,
    keys: Path,
    since: str | None,
    until: str | None,
    directory: str | None,
    merge: bool,
    logs: tuple[Path, ...],
    json_: bool,
) -> int:
    """Show who sent a message: process, user, script, folder, unit.

    A queue id that was used more than once has as many answers.
    """
    wanted = options.take_filter({}, since, until)
    journal = options.take_journal(directory, merge)
    log = files(logs) if logs else journalled(journal, *_times(wanted))
    torn = options.Torn()
    shown = 0
    if (what is None) == (token is None):
        raise click.UsageError("name a queue id, a Message-ID or a --token")
    if token is not None:
        found = by_token(check_token(read_keys(keys), token), journal, wanted, torn)
    else:
        found = senders(what or "", journal, log, wanted, torn)
    for sent in found:
        sys.stdout.write(json_text(_row(sent)) if json_ else _block(sent))
        sys.stdout.write("\n")
        shown += 1
    torn.tell()
    if not shown and token is not None:
        click.echo(
            "this host made the token, but its journal has no such message: it was"
            " not sent in the end, or the journal no longer goes back so far",
            err=True,
        )
    elif not shown:
        where = "the log" if logs else "the journal"
        click.echo(
            f"no message {printable(what or '')}: guardd was not told of it, and"
            f" {where} has no line that tells its client",
            err=True,
        )
    return 0 if shown else 1


def _times(wanted: Filter) -> tuple[int, int]:
    return wanted.since_us, wanted.until_us


def _how(sent: Sent) -> str | None:
    if sent.handed_in:
        return "seen at sendmail(1)"
    if sent.origin is None:
        return None
    return "joined by port and time" if sent.joined else "told by the mail server"


def _row(sent: Sent) -> dict[str, Any]:
    """Give the JSON row; the keys are documented and stay."""
    made: dict[str, Any] = {
        "queue_id": valid(sent.queue_id),
        "time": iso_time(sent.time_us),
        "how": _how(sent),
        "why": sent.why or None,
        "origin": row(sent.origin) if sent.origin else None,
        "one_of": [row(found) for found in sent.one_of],
        "handed_in": _handed_in_row(sent.handed_in) if sent.handed_in else None,
    }
    message = mail_row(sent.message) if sent.message else {}
    for name in ("sender", "recipients", "size", "sasl_user", "sasl_method", "helo"):
        made[name] = message.get(name)
    for name in ("answer", "reason", "limit", "token"):
        made[name] = message.get(name)
    made["client"] = message.get("client")
    if (logged := sent.logged) is not None:
        client = logged.client or (None, None)
        made["client"] = {"addr": client[0] and valid(client[0]), "port": client[1]}
        made["sender"] = _maybe(logged.sender)
        made["sasl_user"] = valid(logged.sasl_user)
        made["uid"] = logged.uid
    if sent.handed_in:
        made["uid"] = sent.handed_in.uid
    return made


def _handed_in_row(found: HandedIn) -> dict[str, Any]:
    return {
        "maildrop": valid(found.maildrop),
        "caller": _caller_row(found.caller),
        "script": _maybe(found.script.script),
        "script_from": _maybe(found.script.script_from),
        "pool": _maybe(found.script.pool),
        "request_method": _maybe(found.script.request_method),
        "request_uri": _maybe(found.script.request_uri),
        "incomplete": list(map(valid, found.script.incomplete)),
        "chain": [_caller_row(one) for one in found.chain],
    }


def _maybe(text: str | None) -> str | None:
    return None if text is None else valid(text)


def _caller_row(caller: Caller) -> dict[str, Any]:
    return {
        "pid": caller.pid,
        "uid": caller.uid,
        "comm": valid(caller.comm),
        "exe": _maybe(caller.exe),
        "args": [valid(arg) for arg in caller.args],
        "cwd": _maybe(caller.cwd),
        "unit": _maybe(caller.unit),
        "known": caller.known or None,
    }


def _block(sent: Sent) -> str:
    """Give some lines for eyes, each escaped."""
    lines = [f"{sent.queue_id}  {iso_time(sent.time_us)}", *_mail(sent)]
    if sent.origin:
        lines += [f"  {name:<9} {text}" for name, text in _who(sent.origin)]
        lines.append(f"  known     {_how(sent)}")
    elif sent.handed_in:
        lines += [f"  {name:<9} {text}" for name, text in _handed(sent.handed_in)]
        lines.append(f"  known     {_how(sent)}, file {sent.handed_in.maildrop}")
    else:
        lines.append(f"  unknown   {sent.why}")
        for found in sent.one_of:
            lines += [f"  one of    {name}: {text}" for name, text in _who(found)]
    return "\n".join(map(printable, lines))


def _mail(sent: Sent) -> list[str]:
    if (message := sent.message) is None:
        logged = sent.logged
        return (
            [f"  login     {logged.sasl_user}"] if logged and logged.sasl_user else []
        )
    count = message.recipients
    recipients = "1 recipient" if count == 1 else f"{count} recipients"
    lines = [f"  from      <{message.sender}>, {recipients}, {message.size} bytes"]
    if message.sasl_user:
        lines.append(f"  login     {message.sasl_user} ({message.sasl_method})")
    if message.answer != "dunno":
        word = "would be, " if message.kind is Kind.WOULD_REJECT else ""
        why = f"{REASONS.get(message.reason, message.reason)} {message.limit}"
        lines.append(f"  {message.answer:<9} {word}{why}".rstrip())
    if message.client and not message.origin:
        lines.append(f"  client    {address(message.client)}")
    return lines


def _handed(found: HandedIn) -> list[tuple[str, str]]:
    by = found.caller
    lines = [
        ("process", f"pid {by.pid} ({by.comm}), uid {by.uid}"),
        ("program", by.exe or "not known"),
        ("arguments", " ".join(by.args)),
        *_script(found.script),
        ("folder", by.cwd or "not known"),
        *([("pool", found.script.pool)] if found.script.pool else []),
        ("unit", by.unit or "not known"),
    ]
    for one in found.chain:
        if one is not by:
            what = " ".join(one.args) or one.exe or "ended before it was looked at"
            lines.append(
                ("chain", f"pid {one.pid} ({one.comm}), uid {one.uid}: {what}")
            )
    return lines


def _script(found: Finding | CallingScript) -> list[tuple[str, str]]:
    lines = [("script", found.script)] if found.script else []
    if found.request_uri:
        method = found.request_method or "?"
        lines.append(("request", f"{method} {found.request_uri}"))
    return lines


def _who(found: Finding) -> list[tuple[str, str]]:
    user = found.user if found.user is not None else f"uid {found.uid}"
    lines = [
        ("process", f"pid {found.pid} ({found.comm}), user {user}"),
        ("program", found.exe or "no executable"),
        ("arguments", " ".join(found.args)),
        *_script(found),
        ("folder", found.cwd),
        *([("pool", found.pool)] if found.pool else []),
        ("unit", found.unit or found.cgroup),
    ]
    if found.container:
        lines.append(("container", found.container))
    source = f"{address(found.src)} -> " if found.src else ""
    lines.append(("by", f"{source}{address(found.via or found.dst)}"))
    lines.append(("connected", f"{iso_time(found.time_us)}, {found.connection}"))
    return lines
