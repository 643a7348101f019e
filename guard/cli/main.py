# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl: finds the verb, and turns errors into messages and exit statuses."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from guard import __version__
from guard.cli import complete
from guard.errors import EX_IOERR, GuardError, NotPrivileged
from guard.privileges import SERVICE, missing
from guard.text import printable_lines

PROGRAM = "guardctl"
# Not pins.DEFAULT_PIN_DIR: importing that costs more than reading the journal.
PIN_DIR = Path("/sys/fs/bpf/smtp-guard")

# One line a verb, so that --help and the others need not import them all.
VERBS = {
    "who-connected": "who connected where, from the journal",
    "who-sent": "who sent a message, by its queue id or Message-ID",
    "srs": "whose a rewritten sender is, and is it genuine",
    "limits": "how much each origin has sent by the mail server, and may",
    "token-key": "make a new key for the header that leads from a mail to its sender",
    "watch": "findings as they come",
    "status": "is the policy in force, and what did it do",
    "plan": "who would be denied, and the rules that would allow it",
    "explain": "which rule decides about a connection, and why",
    "policy": "check a policy file and show what it comes to",
    "mail": "Postfix beside the guard: smart host, transports, relaying",
    "verify": "are programs, links and maps the ones we put there",
    "doctor": "what of this host works for the guard, what to do about the rest",
    "load": "put the policy in force",
    "unload": "take the guard out of the kernel",
}

_EPILOG = """\b
Exit status: 0 success, 1 nothing found, 2 usage, 64 to 78 as in sysexits.h
(77: not root), and what the verbs' own --help says.

\b
Examples:
  guardctl who-connected --since today --user www-data
  guardctl plan --since "1 week ago"
  guardctl --pin-dir /sys/fs/bpf/test status
"""


class Verbs(click.Group):
    """A group that imports the module of a verb when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the verbs in the order of VERBS."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import guard/cli/<verb>.py and give its `command`."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"guard.cli.{cmd_name.replace('-', '_')}")
        found: click.Command = module.command
        return found

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the verbs, importing none; after a dash the options."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(verb, help=line)
            for verb, line in VERBS.items()
            if verb.startswith(incomplete)
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb: as root or as our units do; --help is for everybody."""
        verb = [*ctx.protected_args, *ctx.args]
        helps = not {"-h", "--help"}.isdisjoint(verb)
        if os.geteuid() != 0 and not helps and (lacking := missing(*SERVICE)):
            raise NotPrivileged(PROGRAM, ", ".join(lacking))
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would make it a 1, which means no rows
            raise click.exceptions.Exit(_pipe_closed()) from None

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the verbs with their lines, importing none."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB [OPTION]...",
)
@click.option(
    "--pin-dir",
    type=click.Path(path_type=Path),
    default=PIN_DIR,
    show_default=True,
    metavar="DIR",
    shell_complete=complete.folders,
    help="Where the guard in question is pinned.",
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def guardctl(ctx: click.Context, pin_dir: Path) -> None:
    """Ask the SMTP guard of this host, and steer it."""
    ctx.obj = pin_dir


def run(argv: list[str]) -> int:
    """Run guardctl; give the exit status."""
    try:
        status = guardctl.main(argv, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except GuardError as error:
        click.echo(printable_lines(error.report()), err=True)
        return error.exit_status
    except click.ClickException as error:
        # a script may have been given what it passes on
        error.message = printable_lines(error.message)
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        return _pipe_closed()
    except OSError as error:  # a full disk under what is printed
        _drop_output()
        click.echo(f"{PROGRAM}: {error.strerror}", err=True)
        return EX_IOERR


def _pipe_closed() -> int:
    """End quietly: `| head` is done with us."""
    _drop_output()
    return 128 + signal.SIGPIPE


def _drop_output() -> None:
    """Let what is left in the buffer go nowhere, instead of failing at the end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Be the program guardctl."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
