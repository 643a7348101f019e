# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan put in force: one at a time, all or nothing, with Postfix asked at the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from guard.errors import (
    GuardError,
    MailBusy,
    MailError,
    MailNotApplied,
    NotWritten,
)
from guard.mail.planning import Plan, make_plan
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
from guard.mail.transaction import (
    Target,
    commit,
    make_folder,
    not_applied,
    pending,
    roll_back,
    write_private,
)

_PLANNED = "planned.json"
_STAGED = "staged"
_POLICY = "policy"  # its name among the whole files of a state


@contextlib.contextmanager
def alone(postfix: Postfix) -> Iterator[list[str]]:
    """Have the Postfix for ourselves; give the files that somebody killed left half.

    They are as before when this is entered. Raises MailBusy at once while another works
    on it, NotWritten where nothing can be written.
    """
    folder = state_dir(postfix)
    try:
        make_folder(postfix.ours, 0o755)
        make_folder(folder, 0o700)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotWritten(f"{error.filename or folder}: {error.strerror}") from None
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
    folder = state_dir(postfix)
    if not pending(folder) and not (folder / _STAGED).exists():
        return []
    with alone(postfix) as restored:
        return restored


def _recover(postfix: Postfix) -> list[str]:
    try:
        restored = roll_back(state_dir(postfix))
        shutil.rmtree(state_dir(postfix) / _STAGED, ignore_errors=True)
    except OSError as error:
        where = error.filename or state_dir(postfix)
        raise NotWritten(f"{where}: {error.strerror}") from None
    if restored:
        postfix.reload()
        with contextlib.suppress(GuardError):
            policy = postfix.guard.file()
            if str(policy) in restored:
                postfix.guard.put(policy)
    return restored


def remember(postfix: Postfix, plan: Plan) -> None:
    """Keep what a plan looked at, so that apply sees that it has changed since."""
    with contextlib.suppress(OSError):  # read-only: apply will not work either
        make_folder(postfix.ours, 0o755)
        make_folder(state_dir(postfix), 0o700)
        seen = {
            "time": int(time.time()),
            "digests": plan.digests,
            "denied": plan.denied,
            "goal": plan.goal,
        }
        write_private(state_dir(postfix) / _PLANNED, json.dumps(seen).encode())


def apply(
    postfix: Postfix,
    table: MailTable,
    *,
    as_planned: bool = True,
    written: Sequence[Target] = (),
) -> Plan:
    """Make a Postfix what the table says, within alone(); give what was done.

    as_planned: refuse where a plan was looked at, and files or the table have changed
    since. written: the table's own file and others that are replaced with the rest.
    Raises MailNotApplied, MailError; all is then as before.
    """
    if complaint := postfix.examine():
        raise MailNotApplied(
            f"postfix check fails already: {complaint}",
            hint=f"put that right first: postfix -c {postfix.config_dir} check",
        )
    plan = make_plan(postfix, table)
    seen = _planned(postfix)
    if as_planned and seen:
        _as_planned(plan, seen)
    _as_told(plan, seen if as_planned else None)
    changed = state_bytes(plan.state) != state_bytes(_items(plan.was))
    if plan.changes or changed or written:
        _carry_out(postfix, plan, written)
    (state_dir(postfix) / _PLANNED).unlink(missing_ok=True)
    return plan


def _items(state: State) -> State:
    """Give a state without the copies of whole files, to compare it."""
    return replace(state, original={}, left={})


@dataclass(frozen=True, slots=True)
class _Seen:
    """A plan that somebody has looked at."""

    then: str
    digests: dict[str, str]
    denied: list[str]
    goal: str


def _planned(postfix: Postfix) -> _Seen | None:
    raw = read_private(state_dir(postfix) / _PLANNED)
    if raw is None:
        return None
    try:
        seen = json.loads(raw)
        then = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen["time"]))
        return _Seen(
            then, dict(seen["digests"]), list(seen["denied"]), str(seen["goal"])
        )
    except (ValueError, KeyError, TypeError):
        return None  # no plan that anybody has seen


def _as_planned(plan: Plan, seen: _Seen) -> None:
    other = [
        path
        for path, digest in plan.digests.items()
        if seen.digests.get(path) != digest
    ]
    if other:
        raise MailNotApplied(
            f"{', '.join(other)} changed since the plan of {seen.then}",
            hint="look at it again: guardctl mail plan",
        )
    if plan.goal != seen.goal:
        raise MailNotApplied(
            f"the table asks for something else than in the plan of {seen.then}",
            hint="look at it again: guardctl mail plan",
        )


def _as_told(plan: Plan, seen: _Seen | None) -> None:
    """Refuse to deny mail that nobody was told of."""
    told = {*plan.was.denied, *(seen.denied if seen else ())}
    if new := [way for way in plan.denied if way not in told]:
        raise MailNotApplied(
            f"pin would deny to Postfix what goes by {'; '.join(new)}",
            hint="pin = true in mail.toml, guardctl mail plan, and if that is what you"
            " want, guardctl mail apply",
        )


def _carry_out(postfix: Postfix, plan: Plan, written: Sequence[Target]) -> None:
    policy = plan.pin.file if plan.pin and plan.pin.changes else None
    with postfix.guard.alone(policy) if policy else contextlib.nullcontext():
        _carry_out_alone(postfix, plan, written)


def _carry_out_alone(postfix: Postfix, plan: Plan, written: Sequence[Target]) -> None:
    staged = state_dir(postfix) / _STAGED
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(mode=0o700)
        targets = [*written, *_targets(postfix, plan, staged)]
        if plan.digests_now(postfix) != plan.digests:
            raise MailNotApplied(
                "somebody edited one of the files at this very moment",
                hint="look at it again: guardctl mail plan",
            )
        commit(
            state_dir(postfix),
            targets,
            lambda: _verify(postfix, plan),
            lambda: _reload_old(postfix, plan),
        )
    except OSError as error:  # of a write(2): it does not say which file
        raise not_applied(error, staged) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _reload_old(postfix: Postfix, plan: Plan) -> None:
    """Have Postfix forget what was taken back: its programs read it as they start."""
    with contextlib.suppress(GuardError):
        postfix.reload()
    if plan.pin and plan.pin.changes:
        with contextlib.suppress(GuardError):
            postfix.guard.put(plan.pin.file)


def _verify(postfix: Postfix, plan: Plan) -> None:
    """Ask Postfix, and the guard, in the order that denies nothing in between.

    What went wrong is rolled back, and both are told of that, too.
    """
    policy = plan.pin.file if plan.pin and plan.pin.changes else None
    pinned = plan.state.pinned is not None
    if policy and not pinned:
        postfix.guard.put(policy)
    if complaint := postfix.examine():
        raise MailNotApplied(f"postfix check: {complaint}")
    postfix.reload()
    if policy and pinned:
        postfix.guard.put(policy)


def _targets(postfix: Postfix, plan: Plan, staged: Path) -> list[Target]:
    """Make every file as it is to be; tables are there before main.cf names them."""
    written, gone = [], []
    for name, file in plan.files.items():
        path = postfix.ours / name
        if file is None:
            gone += [Target(old, None) for old in (path, *postfix.indexes(path))]
            continue
        text = staged / name
        text.write_bytes(file.text.encode())
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
    if plan.pin and plan.pin.changes:
        now = plan.pin.file.read_bytes()
        new = _whole(plan, _POLICY, now) or plan.pin.text.encode()
        _remember_whole(plan, _POLICY, now, new)
        configs.append(Target(plan.pin.file, new, keep_mode=True))
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
    if name == _POLICY:
        return state.pinned is not None
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
