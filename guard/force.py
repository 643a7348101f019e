# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts a policy in force, whole, and the guard with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from guard import __version__, abi, lastpolicy, lsm
from guard.backstop.keeper import Keeper, remove_all
from guard.backstop.lock import Design
from guard.errors import (
    AlreadyRunning,
    BackstopError,
    GuardError,
    KernelError,
    NoPrograms,
    NotBpffs,
    NotCgroup,
    NotPrivileged,
    PolicyError,
)
from guard.finding import Kind, Notice
from guard.hosts import own_addresses
from guard.kernel import (
    DENYING,
    SUCCEEDS,
    Guard,
    find_cgroup2,
    is_loaded,
    remains,
    take_out,
)
from guard.needs import passes
from guard.pins import ensure_bpffs
from guard.policy import Policy, compile_rows
from guard.privileges import KERNEL, missing
from guard.serving import this_process
from guard.tables import FileIdentity

_OTHERS_WRITE = 0o022


def put_in_force(guard: Guard, policy: Policy, keeper: Keeper | None = None) -> None:
    """Put policy in force; on KernelError or BackstopError the old one stays, whole.

    keeper: puts the second lock in force as well, none is left as it is.
    """
    rows = compile_rows(policy, 1 - guard.slot, exe_keys(guard))
    if keeper is None:
        guard.apply(rows)
        return
    keeper.loosen(guard, policy)
    try:
        guard.apply(rows)
    except KernelError:
        keeper.stay()
        raise
    tighten(guard, policy, keeper)


def tighten(guard: Guard, policy: Policy, keeper: Keeper) -> None:
    """Put the second lock in force, now that the kernel programs follow policy.

    What fails now did not fail when it was tried: guardd tells and tries again.
    """
    keeper.put(policy, Design.MARK)
    guard.set_about(backstop=keeper.record())


def keeper_of(guard: Guard) -> Keeper:
    """Give the keeper of a guard that is in force without a guardd."""
    cgroup = guard.about().get("cgroup")
    return Keeper(guard.pin_dir, Path(cgroup) if cgroup else None)


def exe_keys(guard: Guard) -> Callable[[Path], tuple[abi.ExeKey, abi.ExeKey]]:
    """Give what compile_rows() asks for the kernel's keys of an executable.

    One that is missing, or that others than root can write, is known by its name
    in its folder alone: the kernel asks at each connect() whose both are, and so
    it matches from the moment it is installed, before we know.
    """

    def keys(path: Path) -> tuple[abi.ExeKey, abi.ExeKey]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            seen = look(path)
            if not seen.uid and not seen.mode & _OTHERS_WRITE:
                return seen.inode, seen.name
        folder = look(path.parent).inode  # missing too: no row until it appears
        name = os.fsencode(path.name)
        if len(name) >= abi.NAME_LEN:
            raise FileNotFoundError(2, "its name is too long to match", str(path))
        key = abi.ExeKey(folder.inode, folder.device, 0, 0, 0, name)
        return key, key

    def look(path: Path) -> FileIdentity:
        try:
            return guard.identify(path)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise KernelError(
                f"cannot look at {path}",
                error.errno or 0,
                hint="guardd's user must be able to enter its folder (chmod o+x), and "
                "its unit sees nothing in /home and /root",
            ) from None

    return keys


@contextlib.contextmanager
def only_one(pin_dir: Path) -> Iterator[None]:
    """Be the only process that changes the guard pinned there.

    Two guardds would each read half the ring. Raises AlreadyRunning; the lock
    ends with the process, however it ends.
    """
    folder = -1
    while folder < 0:
        ensure_bpffs(pin_dir)
        folder = os.open(pin_dir, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise AlreadyRunning(
                pin_dir, hint="stop it first: systemctl stop smtp-guard"
            ) from None
        if not _is(folder, pin_dir):  # removed before we had the lock
            os.close(folder)
            folder = -1
    try:
        lsm.enrol(pin_dir)
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: a guard is pinned there
            pin_dir.rmdir()
        os.close(folder)


def _is(folder: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(folder), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def programs_or_none(pin_dir: Path) -> Iterator[None]:
    """Raise NoPrograms for what the kernel refuses, where nothing of ours is in it.

    A guard that is pinned, of whatever version, stays what this host is guarded by:
    then errors are what they are.
    """
    there = remains(pin_dir)
    if lacking := ", ".join(missing(*KERNEL)):
        if there:
            raise NotPrivileged("what serves a guard in the kernel", lacking)
        raise NoPrograms(f"this process lacks {lacking}")
    try:
        yield
    except (NotBpffs, NotCgroup):  # what is wrong is an option
        raise
    except KernelError as error:
        if there:
            raise
        raise NoPrograms(error, hint=error.hint, passing=passes(error)) from None


@contextlib.contextmanager
def for_programs(pin_dir: Path, cgroup: Path | None) -> Iterator[Path]:
    """Be the only one to change the guard there, and give the cgroup2 folder.

    Raises AlreadyRunning, or NoPrograms where this host can have none.
    """
    with contextlib.ExitStack() as stack:
        with programs_or_none(pin_dir):
            found = cgroup or find_cgroup2()
            stack.enter_context(only_one(pin_dir))
        yield found


@dataclass(frozen=True)
class Start:
    """A guard that was brought up, and how."""

    guard: Guard
    adopted: bool  # it was loaded already; its programs were swapped for ours
    policy: Policy | None
    refused: GuardError | None  # why the policy file is not what is in force
    kept: bool  # what is in force is the policy that was kept, see lastpolicy.py
    keeper: Keeper  # of the second lock
    since_ns: int  # CLOCK_BOOTTIME from when on events are the policy's; 0: all

    def notices(self, file: Path) -> list[Notice]:
        """Make the findings that tell of it, but for those of connections."""
        notices = [loaded_notice(self.guard, self.adopted)]
        if self.guard.abandoned:
            notices.append(abandoned_notice(self.guard.abandoned))
        if self.guard.retired:
            notices.append(retired_notice(self.guard.retired))
        if self.policy and not self.refused:
            notices.append(policy_notice(self.policy, file))
        if self.refused:
            notices.append(refusal_notice(self.refused, file, self.kept))
        return notices


def bring_up(
    pin_dir: Path, cgroup: Path, file: Path, ring_bytes: int | None = None
) -> Start:
    """Load or adopt the guard, put the policy in force, attach.

    Where a guard is loaded already, a policy that fails, or that names a program
    which this process may not look at, leaves the rows that are in force: better
    than none. Where none is, the policy that was kept is put in force; where there
    is none either it raises PolicyError, and NoPrograms where the kernel takes no
    programs. After any error of a first load nothing is left behind; of one that comes
    when both locks are in force, or when the programs of a guard from before were
    replaced, all is: the next start goes on with it.
    """
    # what is recorded must not depend on where guardctl was called
    cgroup, file = cgroup.absolute(), file.absolute()
    adopted = is_loaded(pin_dir)
    policy: Policy | None = None
    refused: GuardError | None = None
    since_ns = 0
    first, attached = not remains(pin_dir), False
    try:
        policy, refused = lastpolicy.load_or_kept(file)
    except PolicyError as error:
        if not adopted:
            raise
        refused = error
    kept = policy is not None and refused is not None and not adopted
    with programs_or_none(pin_dir):
        guard = Guard.load(pin_dir, ring_bytes=ring_bytes)
    if refused and adopted and policy and not _is_in_force(guard, policy):
        policy = None
    keeper = Keeper(pin_dir, cgroup)
    try:
        guard.set_hosts(own_addresses())
        try:
            if policy:  # guardd's own user may not enter the folder of a program
                compile_rows(policy, 1 - guard.slot, exe_keys(guard))
                keeper.loosen(guard, policy)
        except (KernelError, BackstopError) as error:
            if not adopted:
                raise
            policy, refused, kept = None, error, False
        if policy:
            was = bytes(guard.policy().sha256)
            put_in_force(guard, policy)
            if adopted and was != policy.sha256:  # what waits is not its doing
                since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if not adopted and not {*DENYING} & {*guard.missing_hooks()}:
            guard.set_about(**{SUCCEEDS: 1})  # first: see preexisting.py
        with programs_or_none(pin_dir):
            guard.attach(cgroup)
        attached = True
        guard.set_about(
            lsm=lsm.put(guard, cgroup) or None,
            policy=str(file),
            cgroup=str(cgroup),
            version=__version__,
            loaded=guard.about().get("loaded", time.time()),
            refused=brief(refused) if refused else None,
        )
        if policy:  # last: a socket of before has no mark
            tighten(guard, policy, keeper)
            lastpolicy.keep(policy)
            # of a guard whose pins somebody removed, or of one without programs
            remove_all(pin_dir, but=keeper.kind)
    except BaseException:
        if not attached and not adopted:  # a version before ours stays in force
            guard.forget()
        elif attached and first and keeper.lock is None:
            take_out(pin_dir)  # rules by owner that were in force still are
        raise
    return Start(guard, adopted, policy, refused, kept, keeper, since_ns)


def _is_in_force(guard: Guard, policy: Policy) -> bool:
    return policy.sha256 == bytes(guard.policy().sha256)


def loaded_notice(guard: Guard, adopted: bool) -> Notice:
    """Make the finding that the guard is in the kernel."""
    how = "adopted, programs swapped" if adopted else "loaded"
    cgroup = guard.about().get("cgroup")
    return Notice(
        Kind.LOADED,
        time.time_ns() // 1000,
        f"guard {how}: smtp-guard {__version__} at {cgroup}, pinned under "
        f"{guard.pin_dir}",
        fields={"VERSION": __version__, "ADOPTED": str(int(adopted))},
    )


def record_daemon(guard: Guard) -> None:
    """Record this process as the guardd that serves the guard."""
    guard.set_about(**this_process(), started=time.time())


def abandoned_notice(size: int) -> Notice:
    """Make the finding that findings of an earlier load can no longer be read."""
    return Notice(
        Kind.LOST,
        time.time_ns() // 1000,
        f"lost: {size} bytes of findings that an earlier load left unread",
        priority=3,
        fields={"ABANDONED": str(size)},
    )


def retired_notice(hooks: list[str]) -> Notice:
    """Make the finding that hooks are gone which only another version has."""
    return Notice(
        Kind.LOADED,
        time.time_ns() // 1000,
        f"hooks of another version taken out, which this one does not have: "
        f"{', '.join(hooks)[:500]}; what they alone guarded is not guarded any more",
        priority=4,
        fields={"VERSION": __version__},
    )


def nothing_notice(error: GuardError, path: Path) -> Notice:
    """Make the finding that this host is not guarded at all, and why."""
    return Notice(
        Kind.POLICY_REFUSED,
        time.time_ns() // 1000,
        f"NOT IN FORCE, outbound SMTP is open to every process: {error}",
        priority=2,
        fields={"POLICY": str(path)},
    )


def brief(error: GuardError) -> str:
    """Give an error for the guard's record, which has no room for a long one.

    ASCII, because the record is JSON: another letter would take six bytes.
    """
    return str(error).encode("ascii", "backslashreplace")[:500].decode()


def policy_notice(policy: Policy, path: Path) -> Notice:
    """Make the finding that a policy is in force, with what it warns of."""
    mode = policy.mode.name.lower()
    text = (
        f"policy loaded: {path}, {mode}, {len(policy.rules)} rules, "
        f"sha256 {policy.sha256.hex()[:12]}"
    )
    if policy.warnings:
        text += f", {len(policy.warnings)} warnings (guardctl policy check)"
    return Notice(
        Kind.POLICY_LOADED,
        time.time_ns() // 1000,
        text,
        fields={
            "POLICY": str(path),
            "POLICY_SHA256": policy.sha256.hex(),
            "MODE": mode,
            "RULES": str(len(policy.rules)),
        },
    )


def refusal_notice(error: GuardError, path: Path, kept: bool = False) -> Notice:
    """Make the finding that a policy was refused and the old one stays.

    kept: it is in force anew, because this host was booted.
    """
    stays = "the last good one is in force" if kept else "the one in force stays"
    return Notice(
        Kind.POLICY_REFUSED,
        time.time_ns() // 1000,
        f"policy refused, {stays}: {error}",
        priority=3,
        fields={"POLICY": str(path)},
    )
