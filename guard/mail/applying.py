# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan put in force: one at a time, all or nothing, with Postfix asked at the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from guard.errors import (
    GuardError,
    MailBusy,
    MailError,
    MailNotApplied,
    NotWritten,
)
from guard.mail.planning import Plan, digests, make_plan
from guard.mail.postfix import MAIN, MASTER, Postfix
from guard.mail.state import (
    State,
    read_private,
    sha256,
    state_bytes,
    state_dir,
    state_file,
)
from guard.mail.table import MailTable
from guard.mail.transaction import Target, commit, pending, roll_back, write_private

_PLANNED = "planned.json"
_STAGED = "staged"


@contextlib.contextmanager
def alone(postfix: Postfix) -> Iterator[list[str]]:
    """Have the Postfix for ourselves; give the files that somebody killed left half.

    They are as before when this is entered. Raises MailBusy at once while another works
    on it, NotWritten where nothing can be written.
    """
    folder = state_dir(postfix)
    try:
        postfix.ours.mkdir(mode=0o755, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotWritten(f"{error.filename}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MailBusy(
                postfix.config_dir, hint="wait for it, and plan again"
            ) from None
        yield _recover(postfix)
    finally:
        os.close(fd)


def look(postfix: Postfix) -> list[str]:
    """Put right what somebody killed left half, if so; give the files.

    For what only reads: nothing is written where nothing is amiss.
    """
    if not pending(state_dir(postfix)):
        return []
    with alone(postfix) as restored:
        return restored


def _recover(postfix: Postfix) -> list[str]:
    try:
        restored = roll_back(state_dir(postfix))
    except OSError as error:
        raise NotWritten(f"{error.filename}: {error.strerror}") from None
    if restored:
        postfix.reload()
    return restored


def remember(postfix: Postfix, plan: Plan) -> None:
    """Keep what a plan looked at, so that apply sees that it has changed since."""
    with contextlib.suppress(OSError):  # read-only: apply will not work either
        postfix.ours.mkdir(mode=0o755, exist_ok=True)
        state_dir(postfix).mkdir(mode=0o700, exist_ok=True)
        seen = {"time": int(time.time()), "digests": plan.digests}
        write_private(state_dir(postfix) / _PLANNED, json.dumps(seen).encode())


def apply(postfix: Postfix, table: MailTable, *, as_planned: bool = True) -> Plan:
    """Make a Postfix what the table says, within alone(); give what was done.

    as_planned: refuse where a plan was looked at, and files have changed since.
    Raises MailNotApplied, MailError; all is then as before.
    """
    if complaint := postfix.examine():
        raise MailNotApplied(
            f"postfix check fails already: {complaint}",
            hint=f"put that right first: postfix -c {postfix.config_dir} check",
        )
    plan = make_plan(postfix, table)
    if as_planned:
        _as_planned(postfix, plan)
    if plan.changes or state_bytes(plan.state) != state_bytes(_items(plan.was)):
        _carry_out(postfix, plan)
    (state_dir(postfix) / _PLANNED).unlink(missing_ok=True)
    return plan


def _items(state: State) -> State:
    """Give a state without the copies of whole files, to compare it."""
    return State(state.parameters, state.members, state.services, state.files)


def _as_planned(postfix: Postfix, plan: Plan) -> None:
    raw = read_private(state_dir(postfix) / _PLANNED)
    if raw is None:
        return
    try:
        seen = json.loads(raw)
        then = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen["time"]))
        before = dict(seen["digests"])
    except (ValueError, KeyError, TypeError):
        return  # no plan that anybody has seen
    other = [
        path for path, digest in plan.digests.items() if before.get(path) != digest
    ]
    if other:
        raise MailNotApplied(
            f"{', '.join(other)} changed since the plan of {then}",
            hint="look at it again: guardctl mail plan",
        )


def _carry_out(postfix: Postfix, plan: Plan) -> None:
    staged = state_dir(postfix) / _STAGED
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(mode=0o700)
        targets = _targets(postfix, plan, staged)
        if digests(postfix, plan.tables) != plan.digests:
            raise MailNotApplied(
                "somebody edited main.cf, master.cf or a table at this very moment",
                hint="look at it again: guardctl mail plan",
            )
        commit(
            state_dir(postfix),
            targets,
            lambda: _verify(postfix),
            lambda: _reload_old(postfix),
        )
    except OSError as error:
        raise NotWritten(f"{error.filename}: {error.strerror}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _reload_old(postfix: Postfix) -> None:
    """Have Postfix forget what was taken back: its programs read it as they start."""
    with contextlib.suppress(GuardError):
        postfix.reload()


def _verify(postfix: Postfix) -> None:
    """Ask Postfix; what went wrong is rolled back, and Postfix told of that, too."""
    if complaint := postfix.examine():
        raise MailNotApplied(f"postfix check: {complaint}")
    postfix.reload()


def _targets(postfix: Postfix, plan: Plan, staged: Path) -> list[Target]:
    """Make every file as it is to be; tables are there before main.cf names them."""
    written, gone = [], []
    for name, file in plan.files.items():
        path = postfix.ours / name
        if file is None:
            gone += [Target(old, None) for old in (path, *postfix.indexes(path))]
            continue
        text = staged / name
        text.write_text(file.text)
        text.chmod(file.mode)
        written.append(Target(path, text.read_bytes(), file.mode))
        if file.indexed:
            postfix.make_map(text)
            index = postfix.indexed(text).read_bytes()
            written.append(Target(postfix.indexed(path), index, file.mode))
            others = {*postfix.indexes(path)} - {postfix.indexed(path)}
            gone += [Target(old, None) for old in sorted(others)]
    state = plan.state
    edited = []
    for name, real, edits in (
        (MASTER, postfix.master_cf(), plan.master),
        (MAIN, postfix.main_cf(), plan.main),
    ):
        now = real.read_bytes()
        (staged / name).write_bytes(now)
        edited.append((name, real, edits, now))
    _edit(postfix, plan, staged)
    configs = []
    for name, real, edits, now in edited:
        new = _whole(plan, name, now) or (staged / name).read_bytes()
        _remember_whole(plan, name, now, new)
        if edits:
            configs.append(Target(real, new, keep_mode=True))
    record = Target(state_file(postfix), state_bytes(state), 0o600)
    return [*written, *configs, *gone, record]


def _edit(postfix: Postfix, plan: Plan, staged: Path) -> None:
    """Edit the copies, and read them back: master.cf first, it makes names known."""
    if plan.master:
        postfix.edit_master(staged, plan.master)
    if plan.main:
        postfix.edit_main(staged, plan.main)
    after = {**postfix.parameters(staged), **postfix.services(staged)}
    for name, value in {**plan.main, **plan.master}.items():
        if after.get(name) != value:
            raise MailError(
                f"postconf made {after.get(name)!r} of {name}, not {value!r}",
                hint="nothing was changed; is it set twice in main.cf?",
            )


# ---- whole files: put back byte for byte where nobody else edited them meanwhile


def _ours_in(state: State, name: str) -> bool:
    return bool(state.services if name == MASTER else state.parameters or state.members)


def _untouched(state: State, name: str, now: bytes) -> bool:
    return name in state.original and state.left.get(name) == sha256(now)


def _whole(plan: Plan, name: str, now: bytes) -> bytes | None:
    """Give the file as it was before the first apply, once nothing of ours is in it."""
    if _ours_in(plan.state, name) or not _untouched(plan.was, name, now):
        return None
    return plan.was.original[name].encode(errors="surrogateescape")


def _remember_whole(plan: Plan, name: str, now: bytes, new: bytes) -> None:
    if not _ours_in(plan.state, name):
        return
    if not _ours_in(plan.was, name):
        plan.state.original[name] = now.decode(errors="surrogateescape")
    elif _untouched(plan.was, name, now):
        plan.state.original[name] = plan.was.original[name]
    plan.state.left[name] = sha256(new)
