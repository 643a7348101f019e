# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail smart-host: the one host that all mail leaves through."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from guard.cli import complete
from guard.cli import mail_options as options
from guard.cli.answers import show_checks
from guard.errors import MailError
from guard.mail import edit, smarthost
from guard.mail.nexthop import asking_of
from guard.mail.password import usable
from guard.mail.table import TLS_LEVELS, TLS_WITHOUT_PASSWORD, SmartHost, load
from guard.text import json_text, printable

_PASSWORD_FILE = "smart-host.password"
_PRESETS = ("mailchannels",)

_EXAMPLES = """\b
Examples:
  guardctl mail smart-host set "[mail.relay.example]:587" someuser
  guardctl mail smart-host test
  guardctl mail smart-host off
"""
_SET = """\b
Examples:
  guardctl mail smart-host set "[mail.relay.example]:587" someuser
  guardctl mail smart-host set mailchannels account --authenticated-header
  guardctl mail smart-host set "[mail.relay.example]" app --password-file - <secret
  guardctl mail smart-host set "[192.0.2.1]:25" --tls may --pin
"""
_SHOW = """\b
Exit status: 0 with a smart host, 1 without.

\b
Examples:
  guardctl mail smart-host show
  guardctl mail smart-host show --json | jq -r .host
"""
_OFF = """\b
Examples:
  guardctl mail smart-host off
"""
_TEST = """\b
Exit status: 0 when Postfix could send by it, 1 when not.

\b
Examples:
  guardctl mail smart-host test
  guardctl mail smart-host test --json | jq -r 'select(.state == "fail")'
"""


@click.group(name="smart-host", epilog=_EXAMPLES)
def smart_host() -> None:
    """Have all mail leave through one relay, ask which, and try it."""


@smart_host.command("set", epilog=_SET)
@click.argument("host")
@click.argument("user", required=False)
@click.option(
    "--password-file",
    metavar="FILE",
    shell_complete=complete.files,
    help="A file with the password, root's and of mode 0600; -: standard input.",
)
@click.option(
    "--password-credential", metavar="NAME", help="One of systemd's credentials."
)
@click.option(
    "--tls",
    type=click.Choice([*TLS_LEVELS, *TLS_WITHOUT_PASSWORD]),
    help="What TLS has to be (default: encrypt, or verify and secure as before); verify"
    " and secure look at the certificate.",
)
@click.option(
    "--ca-file",
    metavar="FILE",
    shell_complete=complete.files,
    help="The authorities that may have signed it.",
)
@click.option(
    "--authenticated-header/--no-authenticated-header",
    default=None,
    help="Tell the relay which user sent each message (Received: header); of the same"
    " HOST as before unless given.",
)
@click.option(
    "--pin/--no-pin",
    default=None,
    help="Have the guard let Postfix connect to it and nowhere else; as before unless"
    " given.",
)
@options.table
def set_(
    host: str,
    user: str | None,
    password_file: str | None,
    password_credential: str | None,
    tls: str | None,
    ca_file: str | None,
    authenticated_header: bool | None,
    pin: bool | None,
    table: Path,
    config_dir: Path,
    as_json: bool,
) -> None:
    """Write HOST and USER into the table and apply it.

    HOST is host, host:port, [host] or [host]:port, where brackets say that MX records
    do not count; or mailchannels. Asks for the password of USER unless an option says
    where it is; what is asked for is kept beside the table, for root alone.
    """
    if password_credential and password_file:
        raise click.UsageError("--password-file or --password-credential: one of them")
    if (password_credential or password_file) and not user:
        raise click.UsageError("a password needs a USER")
    postfix = options.postfix_in(config_dir)
    values: dict[str, object] = {}
    preset = host.lower() in _PRESETS
    values["preset" if preset else "host"] = host.lower() if preset else host
    password = None
    if user:
        values["user"] = user
        if password_credential:
            values["password_credential"] = password_credential
        elif password_file not in (None, "-"):
            values["password_file"] = str(Path(str(password_file)).absolute())
        else:
            kept = table.absolute().with_name(_PASSWORD_FILE)
            values["password_file"] = str(kept)
            password = _ask(user, password_file == "-")
    if tls:
        values["tls"] = tls
    if ca_file:
        values["ca_file"] = str(Path(ca_file).absolute())
    if authenticated_header is not None:
        values["authenticated_header"] = authenticated_header
    if pin is not None:
        values["pin"] = pin
    options.edit_and_apply(
        postfix, table, edit.smart_host_on(values), as_json, password
    )


def _ask(user: str, from_stdin: bool) -> str:
    if from_stdin:
        return usable(sys.stdin.buffer.read(4096), "standard input")
    if not sys.stdin.isatty():
        raise click.UsageError(
            "there is no terminal to ask for the password: --password-file FILE,"
            " or - for standard input"
        )
    asked: str = click.prompt(f"Password of {printable(user)}", hide_input=True)
    return usable(asked.encode(errors="surrogateescape"), "the password")


@smart_host.command("show", epilog=_SHOW)
@options.table
def show(table: Path, config_dir: Path, as_json: bool) -> None:
    """Show the table's smart host, and what Postfix has now; no password."""
    host = load(table).smart_host if table.exists() else None
    now = options.postfix_in(config_dir).value("relayhost")
    if as_json:
        click.echo(json_text({**_json(host), "relayhost": now or None}, indent=2))
    else:
        click.echo(f"table      {printable(_words(host))}")
        click.echo(f"relayhost  {printable(now) or 'none'}")
    if host is None and not now:
        raise SystemExit(1)


def _json(host: SmartHost | None) -> dict[str, object]:
    return {
        "host": host.relay.text if host else None,
        "port": host.relay.port if host else None,
        "user": host.user or None if host else None,
        "password": str(host.password) if host and host.password else None,
        "tls": host.tls if host else None,
        "authenticated_header": host.authenticated_header if host else None,
        "pin": host.pin if host else None,
    }


def _words(host: SmartHost | None) -> str:
    if host is None:
        return "no smart host"
    user = f", user {host.user} ({host.password})" if host.user else ""
    pinned = ", pinned" if host.pin else ""
    return f"{host.relay.text}{user}, tls {host.tls}{pinned}"


@smart_host.command("off", epilog=_OFF)
@options.table
def off(table: Path, config_dir: Path, as_json: bool) -> None:
    """Take the smart host out of the table and apply that.

    Postfix has again what it had before; the password's file stays.
    """
    postfix = options.postfix_in(config_dir)
    options.edit_and_apply(postfix, table, edit.smart_host_off, as_json)


@smart_host.command("test", epilog=_TEST)
@options.table_file
@options.config_dir
@click.option(
    "--timeout",
    type=click.IntRange(1, 3600),
    default=smarthost.SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take in all.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def test(table: Path, config_dir: Path, timeout: int, as_json: bool) -> None:
    """Connect, shake hands and log in to the table's smart host; send no mail.

    Need not be applied yet. A line is a step: name, connect, certificate, tls, login;
    the first that fails is the last. What waits when time is up has failed.
    """
    host = load(table).smart_host
    if host is None:
        raise MailError(
            f"{table}: no smart host", hint="guardctl mail smart-host set HOST USER"
        )
    password = host.password.read() if host.password else ""
    postfix = options.postfix_in(config_dir)
    name, asking = postfix.value("myhostname"), asking_of(postfix)
    show_checks(smarthost.test(host, password, name, asking, timeout), as_json)
