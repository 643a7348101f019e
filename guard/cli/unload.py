# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl unload: open the host again."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click

from guard.backstop.keeper import remove_all, same_namespace
from guard.cli.notices import tell_journal
from guard.errors import GuardError, NotLoaded
from guard.finding import Kind, Notice
from guard.force import only_one
from guard.kernel import Guard, remains, take_out
from guard.origin import Naming
from guard.ownerrules import not_served, read_state, stands, state_file
from guard.policy import load
from guard.scribe import Scribe
from guard.text import json_text

_EXAMPLES = """\b
Examples:
  systemctl stop smtp-guard && guardctl unload
  guardctl --pin-dir /sys/fs/bpf/lab unload
"""
_JOURNAL_SECONDS = 10.0


@click.command(epilog=_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(pin_dir: Path, as_json: bool) -> None:
    """Take the guard out of the kernel: from then on nothing is denied.

    Findings that wait in the kernel are journalled first. Refused while guardd
    runs.
    """
    try:
        guard = Guard(pin_dir)
    except NotLoaded:
        without = state_file(pin_dir)
        not_served(pin_dir)
        about = (read_state(pin_dir) or {}).get("backstop") or {}
        same_namespace(about)
        with only_one(pin_dir) if remains(pin_dir) else contextlib.nullcontext():
            # also those of a guard whose pins somebody removed
            rules = remove_all(pin_dir, known=str(about.get("kind", "")))
            if not rules and not stands(pin_dir):
                raise
            without.unlink(missing_ok=True)
            without.with_suffix(".lock").unlink(missing_ok=True)
            if remains(pin_dir):
                take_out(pin_dir)
        tell_journal([_notice()])
    else:
        with only_one(pin_dir):
            _unload(guard)
    if as_json:
        click.echo(json_text({"in_force": False, "pin_dir": str(pin_dir)}))
    else:
        click.echo("unloaded: outbound SMTP is open to every process")


def _unload(guard: Guard) -> None:
    """Detach first, so that nothing more is found; then journal, then forget."""
    about = guard.about().get("backstop") or {}
    same_namespace(about)
    # first: what is not judged has no mark
    remove_all(guard.pin_dir, known=str(about.get("kind", "")))
    guard.detach()
    scribe = Scribe(guard, _naming(guard), lambda found: None)
    scribe.start()
    scribe.tell(_notice())
    if not scribe.stop(_JOURNAL_SECONDS, everything=True):
        click.echo(f"last findings not journalled: {scribe.trouble}", err=True)
    guard.unload()


def _naming(guard: Guard) -> Naming:
    """Name rules by the policy file, if it is still what is in force."""
    naming = Naming()
    with contextlib.suppress(GuardError):
        policy = load(Path(guard.about().get("policy", "")))
        if policy.sha256 == bytes(guard.policy().sha256):
            naming.use_rules(0, policy.rule_name)
    return naming


def _notice() -> Notice:
    return Notice(
        Kind.UNLOADED,
        time.time_ns() // 1000,
        f"guard unloaded by uid {_login()}: outbound SMTP is open to every process",
        priority=4,
    )


def _login() -> str:
    """Give who logged in, through sudo and su: /proc/self/loginuid, audit(8)."""
    try:
        uid = Path("/proc/self/loginuid").read_text().strip()
    except OSError:
        return "0"
    return "0" if uid == str(2**32 - 1) else uid
