# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl policy apply: install a policy file and put it in force."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import click

from guard.cli.files import write_whole
from guard.cli.notices import tell_journal
from guard.errors import GuardError, NotApplied, NotLoaded
from guard.force import keeper_of, only_one, policy_notice, put_in_force
from guard.kernel import Guard
from guard.ownerrules import served_by
from guard.pins import roots_alone
from guard.policy import DEFAULT_FILE, Policy, load
from guard.serving import daemon_pid, signal_daemon
from guard.text import json_text, printable

_EXAMPLES = """\b
Examples:
  guardctl policy apply
  guardctl policy check draft.toml && guardctl policy apply draft.toml
  guardctl --pin-dir /sys/fs/bpf/lab policy apply lab.toml
"""
_SECONDS = 15.0  # that guardd may take
_LOCK_SECONDS = 60.0  # that others who apply may take


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
    try:
        guard = Guard(pin_dir)
    except NotLoaded:
        pid = served_by(pin_dir)
        if pid is None:
            raise
        raise NotApplied(
            "this host is guarded without kernel programs",
            hint=f"kill -HUP {pid} has guardd read its policy file again",
        ) from None
    target = Path(guard.about().get("policy", ""))
    with _one_at_a_time(target.parent):
        if file is None or os.path.realpath(file) == os.path.realpath(target):
            policy = load(target)
            _switch(guard, policy)
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


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for another apply to this folder: file and kernel must stay a pair.

    Not for ever: whoever may read the folder can hold that lock.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotApplied(f"{folder}: {error.strerror}") from None
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while not _locked(fd):
            if time.monotonic() > end:
                raise NotApplied(
                    f"{folder} is locked by another process",
                    hint=f"find it: lslocks; ls -di {shlex.quote(str(folder))} tells "
                    "the inode",
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


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
        raise NotApplied(f"{error.filename}: {error.strerror}") from None
    finally:
        staged.unlink(missing_ok=True)
    try:
        policy = load(target)
        _switch(guard, policy)
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


def _switch(guard: Guard, policy: Policy) -> None:
    pid = daemon_pid(guard)
    if pid is None:
        with only_one(guard.pin_dir):
            put_in_force(guard, policy, keeper_of(guard))
            guard.set_about(refused=None)
        tell_journal([policy_notice(policy, policy.files[0])])
        return
    before = guard.about().get("attempt", 0)
    signal_daemon(guard, signal.SIGHUP)
    end = time.monotonic() + _SECONDS
    while guard.about().get("attempt", 0) == before:
        if time.monotonic() > end:
            raise NotApplied(
                f"guardd (pid {pid}) did not answer",
                hint="journalctl -u smtp-guard tells why",
            )
        time.sleep(0.02)
    refused = guard.about().get("refused")
    if refused:
        raise NotApplied(f"guardd refused it: {refused}")
    if bytes(guard.policy().sha256) != policy.sha256:
        raise NotApplied("the file was changed meanwhile", hint="apply it again")
