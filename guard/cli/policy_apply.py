# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl policy apply: install a policy file and put it in force."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from pathlib import Path

import click

from guard.cli.files import write_whole
from guard.cli.switching import loaded, one_at_a_time, switch
from guard.errors import GuardError, NotApplied
from guard.force import keeper_of, only_one, put_in_force
from guard.kernel import Guard
from guard.pins import roots_alone
from guard.policy import DEFAULT_FILE, Policy, load
from guard.serving import signal_daemon
from guard.text import json_text, printable

_EXAMPLES = """\b
Examples:
  guardctl policy apply
  guardctl policy check draft.toml && guardctl policy apply draft.toml
  guardctl --pin-dir /sys/fs/bpf/lab policy apply lab.toml
"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def apply(pin_dir: Path, file: Path | None, as_json: bool) -> None:
    """Put FILE in force, in place of the policy that guardd was started with.

    FILE replaces that policy file, so that it holds after a restart too; without
    FILE the policy file itself is read again. A policy with errors changes
    nothing, neither the file nor what is in force.
    """
    guard = loaded(pin_dir)
    target = Path(guard.about().get("policy", ""))
    with one_at_a_time(target.parent):
        if file is None or os.path.realpath(file) == os.path.realpath(target):
            policy = load(target)
            switch(guard, policy)
        else:
            _may_be_replaced(guard, file, target)
            policy = _install(guard, file, target)
    mode = policy.mode.name.lower()
    if as_json:
        answer = {"in_force": str(target), "mode": mode, "sha256": policy.sha256.hex()}
        click.echo(json_text(answer))
        return
    shown = printable(str(target))
    click.echo(f"in force: {shown}, {mode}, sha256 {policy.sha256.hex()[:12]}")


def _may_be_replaced(guard: Guard, file: Path, target: Path) -> None:
    """Raise NotApplied where somebody else than root says which file to replace.

    The record is in a map of guardd's own user, who could name any file there.
    """
    if target != DEFAULT_FILE and not roots_alone(guard.pin_dir):
        raise NotApplied(
            f"{target} is where guardd says that its policy file is, and it is not "
            "root's word",
            hint="if it is right: "
            f"{shlex.join(['install', '-m', '644', str(file), str(target)])} && "
            "guardctl policy apply",
        )


def _install(guard: Guard, file: Path, target: Path) -> Policy:
    """Replace target by file, and take that back when it is refused."""
    # read beside the target, where its relative includes will be looked for
    staged = target.with_name(f".{target.name}.new")
    kept = target.with_name(f".{target.name}.old")
    try:
        text = file.read_bytes()
    except OSError as error:
        raise NotApplied(f"{file}: {error.strerror}") from None
    load(file)  # names the admin's own file in what is wrong with it
    try:
        write_whole(staged, text)
        load(staged)
        kept.unlink(missing_ok=True)
        os.link(target, kept)
        staged.rename(target)
    except OSError as error:
        raise NotApplied(f"{error.filename or staged}: {error.strerror}") from None
    finally:
        staged.unlink(missing_ok=True)
    try:
        policy = load(target)
        switch(guard, policy)
    except BaseException:
        kept.rename(target)
        _back(guard, target)
        raise
    kept.unlink()
    return policy


def _back(guard: Guard, target: Path) -> None:
    """Have the old file in force again: the new one may be, when the wait for it
    was broken off.
    """
    with contextlib.suppress(GuardError):
        if signal_daemon(guard, signal.SIGHUP) is None:
            with only_one(guard.pin_dir):
                put_in_force(guard, load(target), keeper_of(guard))
