# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody changed of the guard while guardd runs: found, told, put back.

Each second what is cheap to ask: links, programs, their order, pins, the words and
the policy that every connect() reads, the record, the clock, the policy's files.
Every row and address now and then, so seldom that it costs a thousandth of a CPU at
most, and at once when something else was changed. Compared is always with what
guardd itself put there, never with a file that somebody may have changed as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from guard import __version__, abi
from guard.backstop.keeper import Keeper
from guard.checks import Check, State
from guard.errors import GuardError, NotLoaded, PolicyError
from guard.finding import Kind, Notice
from guard.force import exe_keys, only_one, put_in_force
from guard.held import Held
from guard.hosts import own_addresses
from guard.incident import Incidents, Subject, changed
from guard.kernel import Guard, is_loaded
from guard.policy import Policy, compile_rows, load, refresh
from guard.tables import KEY0, ROW_MAPS, row_slot
from guard.verify import normal_key, unlike_pins, wrong_rows

# Between two comparisons of all rows: not sooner, not later, and else so long that
# comparing takes a thousandth of the time.
_SOONEST, _LATEST, _SHARE = 5.0, 60.0, 1000
# A policy file that is being edited is no news; one that stays so is.
_EDIT_SECONDS = 10.0
_FILE_SECONDS = 60.0
_POLICY = "put the policy in force again: guardctl policy apply"
_STEP_NS = 1_000_000_000  # a clock that was set by less is not told


class Watch:
    """The guard that this process serves, as it was put and as it is."""

    def __init__(
        self,
        guard: Guard,
        cgroup: Path,
        file: Path,
        policy: Policy | None,
        keeper: Keeper,
    ) -> None:
        """Begin when the guard is attached and its record written.

        file is the policy's; policy None: it was refused, and what is in force is
        an older one that nobody knows. Raises KernelError.
        """
        self._guard = guard
        self._file = file.absolute()
        self._held = Held(guard, cgroup.absolute(), self._lock_folder)
        self._locks: list[contextlib.AbstractContextManager[None]] = []
        if guard.control_put is None:
            guard.control_put = guard.map("control").get(KEY0)
        self._record = guard.about()
        self._policy = policy
        self._incidents = Incidents()
        self._files = Files(self._file, policy)
        self._clock = Clock()
        self._compare_at = 0.0
        self._renew_at = time.monotonic() + _FILE_SECONDS
        self._told: list[str] = []
        held = self._held
        self._often = [
            Subject(held.links, held.attach),
            Subject(held.order, held.come_last),
            Subject(held.pins, held.pin),
            Subject(self._control, self._put_back_control),
            Subject(self._live_policy, self._put_back_rows),
            # nobody's but guardd's, and what guardctl finds it by
            Subject(self._about, self._put_back_about, always=True),
            Subject(self._files.look),
            Subject(keeper.look, keeper.put_back),
        ]
        self._seldom = [
            Subject(self._rows, self._put_back_rows),
            Subject(self._addresses, self._put_back_addresses),
        ]

    @property
    def unrepaired(self) -> dict[str, str]:
        """Give what is not as it was put: its name, and in words."""
        return self._incidents.unrepaired

    def put(self, policy: Policy) -> None:
        """Another policy was put in force by this process."""
        self._policy = policy
        self._files.read(policy)
        self._compare_at = 0.0

    def refused(self) -> None:
        """The policy's file was read and refused, which was told."""
        self._files.read(self._policy, refused=True)

    def round(self) -> list[Notice]:
        """Look at all that is due, and give the findings about it."""
        now = time.monotonic()
        repair = self._policy is None or self._policy.repair
        notices = self._clock.look()
        examine = self._incidents.examine
        for subject in self._often:
            notices += examine(subject, now, repair)
        if notices:  # who changes one thing changes others
            self._compare_at = now
        if now >= self._compare_at:
            began = time.thread_time()
            for subject in self._seldom:
                notices += examine(subject, now, repair)
            took = time.thread_time() - began
            self._compare_at = now + min(max(_SOONEST, _SHARE * took), _LATEST)
        if (wrong := sorted(self.unrepaired)) != self._told:
            self._told = wrong
            self._guard.set_about(changed=wrong or None)
        return notices

    def outdated(self) -> Policy | None:
        """Once a minute, give the policy anew if it comes to other rows by now.

        Files are followed at once (guard/filewatch.py), as far as inotify can, and
        accounts that stand in files; those of a directory service are not.
        """
        now, rows = time.monotonic(), self._guard.rows_put
        if self._policy is None or rows is None or now < self._renew_at:
            return None
        self._renew_at = now + _FILE_SECONDS
        # an account or a file as it may not be: told when it changed
        with contextlib.suppress(GuardError):
            policy = refresh(self._policy)
            new = compile_rows(policy, self._slot, exe_keys(self._guard))
            if any(getattr(new, name) != getattr(rows, name) for name in ROW_MAPS):
                return policy
        return None

    def _lock_folder(self) -> None:
        """Be the only one in a folder that was made anew, too."""
        lock = only_one(self._guard.pin_dir)
        lock.__enter__()
        self._locks.append(lock)  # for as long as this process lives

    # ---- the words and the policy that every connect() reads

    def _control(self) -> Iterator[Check]:
        raw = self._guard.map("control").get(KEY0) or b""
        if raw == self._guard.control_put:
            return
        have = abi.Control.from_buffer_copy(raw)
        want = abi.Control.from_buffer_copy(self._guard.control_put or raw)
        names = ", ".join(_differing(have, want))
        yield Check("control", State.BAD, f"changed {names}", _POLICY)

    def _put_back_control(self) -> None:
        """Have the words there that this process wrote last. Raises KernelError."""
        if self._guard.control_put is not None:
            self._guard.put_control(self._guard.control_put)

    @property
    def _slot(self) -> int:
        control = abi.Control.from_buffer_copy(self._guard.control_put or b"")
        return int(control.slot) & 1

    def _live_policy(self) -> Iterator[Check]:
        rows = self._guard.rows_put
        if rows is None:
            return
        key = struct.pack("=I", self._slot)
        raw = self._guard.map("policies").get(key) or b""
        if raw != bytes(rows.policy):
            have = abi.Policy.from_buffer_copy(raw)
            names = _differing(have, rows.policy)
            detail = f"not what the policy says: {', '.join(names)}"
            yield Check("settings", State.BAD, detail, _POLICY)

    # ---- all rows

    def _rows(self) -> Iterator[Check]:
        rows = self._guard.rows_put
        if rows is None:
            return
        wrong = [
            name
            for name in wrong_rows(self._guard, rows, self._slot)
            if name not in ("policies", "ports")  # asked every second
        ]
        if wrong:
            detail = f"not what the policy says: {', '.join(wrong)}"
            yield Check("rows", State.BAD, detail, _POLICY)

    def _put_back_rows(self) -> None:
        """Put the policy in force again, whole, as this process knows it."""
        if self._policy is None or self._guard.rows_put is None:
            return
        self.make_ready()
        put_in_force(self._guard, self._policy)

    def make_ready(self) -> None:
        """Have it so that a policy can be put in force. Raises KernelError.

        Which slot is in force is read first of all, and maps full of rows that the
        policy does not say have no room for those that it does.
        """
        self._put_back_control()
        if self._guard.rows_put is None:
            return
        slot = self._slot
        for name, kind in ROW_MAPS.items():
            table = self._guard.map(name)
            wanted = getattr(self._guard.rows_put, name)
            ours = {normal_key(name, key) for key in wanted}
            for key in list(table.keys()):
                live = row_slot(kind.from_buffer_copy(key)) == slot
                if live and normal_key(name, key) not in ours:
                    table.delete(key)

    # ---- addresses, record

    def _addresses(self) -> Iterator[Check]:
        want = self._guard.hosts_put
        if want is None:
            return
        have = set(self._guard.map("hosts").keys())
        parts = []
        for what, keys in (("added", have - want), ("removed", want - have)):
            if keys:
                names = sorted(map(abi.unpack_address, keys))
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                parts.append(f"{what} {', '.join(names[:4])}{more}")
        if parts:
            yield Check("addresses", State.BAD, "; ".join(parts), _POLICY)

    def _put_back_addresses(self) -> None:
        self._guard.set_hosts(own_addresses())

    def _about(self) -> Iterator[Check]:
        try:
            record = self._guard.about()
        except NotLoaded:
            yield Check("record", State.BAD, "made unreadable")
            return
        names = ("policy", "cgroup", "pid", "pid_ticks")
        wrong = [n for n in names if record.get(n) != self._record.get(n)]
        if wrong:
            yield Check("record", State.BAD, f"changed {', '.join(wrong)}")
        else:
            self._record = record

    def _put_back_about(self) -> None:
        table = self._guard.map("about")
        table.put(KEY0, bytes(table.value_size))
        self._guard.set_about(**self._record)


def _differing(one: ctypes.Structure, other: ctypes.Structure) -> list[str]:
    """Name the fields of a record in which two differ."""
    raw, there = bytes(one), bytes(other)
    places = [(name, getattr(type(one), name)) for name, *_ in one._fields_]
    return [
        name
        for name, at in places
        if raw[at.offset : at.offset + at.size]
        != there[at.offset : at.offset + at.size]
    ]


def changed_meanwhile(pin_dir: Path, file: Path) -> list[Notice]:
    """Give the findings of what was changed while no guardd ran.

    To be asked before the guard is put in force again, which puts all of it back.
    Only what nobody but a tamperer changes: programs become others with an upgrade,
    rows of executables and accounts with a package.
    """
    checks = []
    with contextlib.suppress(GuardError):  # not whole: loaded anew, and told so
        if not is_loaded(pin_dir):
            return []
        guard = Guard(pin_dir)
        if missing := guard.missing_hooks():
            checks.append(("links", f"detached {', '.join(missing)}"))
        if wrong := unlike_pins(guard):
            checks.append(("programs", f"others on {', '.join(wrong)}"))
        policy = load(file)
        mine = guard.about().get("version") == __version__
        if mine and policy.sha256 == bytes(guard.policy().sha256):
            slot = guard.slot
            rows = compile_rows(policy, slot, exe_keys(guard))
            by_itself = ["exes", "numbers"]
            if policy.known is not None:  # the smart host's addresses
                by_itself.append("prefixes")
            if wrong := [
                name for name in wrong_rows(guard, rows, slot) if name not in by_itself
            ]:
                what = f"not what the policy says: {', '.join(wrong)}"
                checks.append(("rows", what))
    return [
        changed(Check(name, State.BAD, f"{detail}, while no guardd ran"), repaired=True)
        for name, detail in checks
    ]


class Files:
    """The policy's files: changed on disk, and what is in force is another."""

    def __init__(self, file: Path, policy: Policy | None) -> None:
        """Look at file and, of the policy that was read, what it includes."""
        self._file = file
        self._wrong: list[Check] = []
        self.read(policy)

    def read(self, policy: Policy | None, refused: bool = False) -> None:
        """The files were read just now, and what came of it was told."""
        self._policy = policy
        self._seen = self._stamps()
        self._wrong = []
        self._load_at = time.monotonic() + _FILE_SECONDS
        self._refused = refused

    def look(self) -> list[Check]:
        """Read the files when they were changed, and else once a minute."""
        now, stamps = time.monotonic(), self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            self._load_at = now + _EDIT_SECONDS
            self._refused = False
        if now >= self._load_at and not self._refused:
            self._load_at = now + _FILE_SECONDS
            self._wrong = list(self._differs())
        return self._wrong

    def _differs(self) -> Iterator[Check]:
        if self._policy is None:
            return  # what is in force is not known, and that was told
        stays = "what is in force stays"
        try:
            policy = load(self._file)
        except PolicyError as error:
            yield Check(
                "policy-file",
                State.WARN,
                f"cannot be loaded any more: {error}",
                f"{stays}, until the next boot: guardctl policy check",
            )
            return
        if policy.sha256 != self._policy.sha256:
            yield Check(
                "policy-file",
                State.WARN,
                f"{self._file} says something else than what is in force "
                f"(sha256 {policy.sha256.hex()[:12]}, in force "
                f"{self._policy.sha256.hex()[:12]})",
                f"{stays}; to put the file in force: guardctl policy apply",
            )

    def _stamps(self) -> list[tuple[int, ...] | None]:
        files = self._policy.files if self._policy else (self._file,)
        return [_stamp(path) for path in files]


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)


def _offset_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """The time of day: set by somebody, and by how much.

    Both clocks run equally fast, also while one is slewed and while the host is
    asleep, so their difference only moves when the time of day is set.
    """

    def __init__(self, offset_ns: Callable[[], int] = _offset_ns) -> None:
        """Begin with the clock as it is; offset_ns gives it against boot time."""
        self._offset_ns = offset_ns
        self._known = offset_ns()

    def look(self) -> list[Notice]:
        """Give the finding that the clock was set, once each time."""
        offset = self._offset_ns()
        moved = offset - self._known
        if abs(moved) < _STEP_NS:
            return []
        self._known = offset
        to_us = time.time_ns() // 1000
        from_us = to_us - moved // 1000
        return [
            Notice(
                Kind.CLOCK_SET,
                to_us,
                f"the clock was set by {moved / 1e9:+.3f} s, from "
                f"{_when(from_us)} to {_when(to_us)}: times of findings before "
                "this one are those of the old clock",
                4,
                {"BY_US": str(moved // 1000), "FROM_US": str(from_us)},
            )
        ]


def _when(time_us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_us // 1_000_000))
