# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to change for a Postfix to be as the table says, and what that replaces.

One law for every parameter, service and list: what would stand there without us is
what apply replaced, unless somebody has changed it since; then it is what he wrote.
What the table does not ask for (any more) goes back to that.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from guard.errors import MailError
from guard.mail import pin, relaying, smarthost, transports
from guard.mail.postfix import MAIN, MASTER, Postfix
from guard.mail.relaying import Member
from guard.mail.state import Kept, KeptMember, State, read_state, sha256
from guard.mail.table import MailTable
from guard.mail.wanted import TABLES, File, Wanted, wanted

# key, blanks, user: what follows, in whatever somebody made of the line
_SECRET = re.compile(r"^(\S+[^\S\n]+(?:[^\s:]+:)?)?.+$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing in one file; None: it is not there. Holds no password."""

    file: str
    item: str  # parameter, service; "" for a whole table
    before: str | None
    after: str | None
    edited: bool  # somebody has changed it since the last apply
    why: str = ""  # where before and after do not tell


@dataclass(slots=True)
class Plan:
    """All changes, and how to make them."""

    state: State  # after it
    was: State
    digests: dict[str, str]  # sha256 of what was looked at, by path
    tables: list[str]  # names of the tables among it
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    main: dict[str, str | None] = field(default_factory=dict)
    master: dict[str, str | None] = field(default_factory=dict)
    files: dict[str, File | None] = field(default_factory=dict)
    pin: pin.Pin | None = None
    denied: list[str] = field(default_factory=list)  # ways that pin denies to Postfix

    @property
    def goal(self) -> str:
        """Give a digest of all that it would do, passwords as well."""
        policy = self.pin.changes if self.pin else None
        files = {name: file and file.text for name, file in self.files.items()}
        return sha256(json.dumps([self.main, self.master, files, policy]).encode())

    def digests_now(self, postfix: Postfix) -> dict[str, str]:
        """Give what digests is now."""
        policy = [self.pin.file] if self.pin else []
        return digests(postfix, self.tables, policy)


def digests(
    postfix: Postfix, names: Sequence[str], others: Sequence[Path] = ()
) -> dict[str, str]:
    """Give sha256 of main.cf, master.cf, these tables and indexes, and other files."""
    paths = [postfix.main_cf(), postfix.master_cf(), *others]
    for name in names:
        text = postfix.ours / name
        paths += [text, postfix.indexed(text)]
    found = {}
    for path in paths:
        try:
            found[str(path)] = sha256(path.read_bytes())
        except FileNotFoundError:
            found[str(path)] = ""
    return found


def make_plan(postfix: Postfix, table: MailTable) -> Plan:
    """Compare a Postfix with a table; the empty table takes everything back.

    Raises MailError when the table asks for what cannot be, or a file that is not ours
    is in the way; changes nothing.
    """
    was = read_state(postfix)
    known = sorted({*was.files, *TABLES})
    plan = Plan(State(), was, digests(postfix, known), known)
    services = postfix.services()
    want = wanted(table, postfix, services)
    there = postfix.parameters()
    plan.main, plan.state.parameters = _plain(
        plan, MAIN, want.parameters, there, was.parameters
    )
    plan.master, plan.state.services = _plain(
        plan, MASTER, want.services, services, was.services
    )
    _lists(plan, postfix, want, there)
    if table.relay_mynetworks is not None:
        sides = (relaying.RELAY, relaying.RECIPIENT)
        relaying.reject_open(*(_will_be(postfix, plan, name) for name in sides))
    _files(plan, postfix, want.files)
    values: dict[str, str | None] = {**there, **services, **plan.main, **plan.master}
    _leave_named(plan, postfix, values)
    _notes(plan, table)
    plan.notes += _outweighed(postfix, want)
    _pin(plan, postfix, table)
    return plan


def _plain(
    plan: Plan,
    file: str,
    want: Mapping[str, str],
    there: Mapping[str, str],
    was: Mapping[str, Kept],
) -> tuple[dict[str, str | None], dict[str, Kept]]:
    """Plan parameters or services; give what to change, and what to keep of it."""
    changes: dict[str, str | None] = {}
    keep = {}
    for name in dict.fromkeys((*want, *was)):
        now, kept = there.get(name), was.get(name)
        edited = kept is not None and now != kept.after
        base = kept.before if kept and not edited else now
        target = want.get(name, base)
        if target != now:
            changes[name] = target
            plan.changes.append(Change(file, name, now, target, edited))
        elif edited and name not in want:
            plan.notes.append(
                f"{file}: {name} was changed since apply, and is left as it is"
            )
        if name in want and target != base:
            keep[name] = Kept(base, target)
    return changes, keep


def _lists(
    plan: Plan, postfix: Postfix, want: Wanted, there: Mapping[str, str]
) -> None:
    asked = {member.parameter: member for member in want.members}
    for name in dict.fromkeys((*asked, *plan.was.members)):
        now, kept, member = there.get(name), plan.was.members.get(name), asked.get(name)
        edited = kept is not None and now != kept.after
        base = _without_us(kept, now) if kept else now
        # a table of another type (hash, then lmdb) takes the place of the one before
        other = kept and member and kept.element != member.element
        start = base if other else now
        target = _list(postfix, member, start, base) if member else base
        if target != now:
            plan.main[name] = target
            plan.changes.append(Change(MAIN, name, now, target, edited))
        if member and target != base:
            plan.state.members[name] = KeptMember(
                member.element, member.present, base, target
            )


def _without_us(kept: KeptMember, now: str | None) -> str | None:
    """Give a list as it would be without us, whatever else became of it."""
    if now == kept.after or now is None:
        return kept.before if now == kept.after else None
    if kept.present:
        return relaying.without(now, kept.element)
    return relaying.with_first(now, kept.element)


def _list(
    postfix: Postfix, member: Member, now: str | None, base: str | None
) -> str | None:
    """Give a list as the member wants it: what was there, what is, or a new one."""
    name = member.parameter
    for text in (base, now):
        whole = postfix.default(name) if text is None else text
        if text == now and _by_another(postfix, member, whole):
            return text
        if relaying.changed(member, whole) == whole:
            return text
    return relaying.changed(member, postfix.default(name) if now is None else now)


def _by_another(postfix: Postfix, member: Member, now: str) -> bool:
    """Tell whether a list has the element by a $name in it.

    Raises MailError where it must not have it: that parameter is somebody's own.
    """
    if "$" not in now or member.element in relaying.words(now):
        return False
    if member.element not in relaying.words(postfix.value(member.parameter)):
        return False
    if not member.present:
        raise MailError(
            f"{member.parameter} = {now}: {member.element} comes from a parameter"
            " named there",
            hint="take it out of that one by hand",
        )
    return True


def _will_be(postfix: Postfix, plan: Plan, name: str) -> str:
    """Give a parameter's value as it will be, $names filled in."""
    if name not in plan.main:
        return postfix.value(name)
    text = plan.main[name]
    return postfix.default(name) if text is None else postfix.expanded(name, text)


# ---- tables


def _files(plan: Plan, postfix: Postfix, want: Mapping[str, File]) -> None:
    for name in dict.fromkeys((*want, *plan.was.files)):
        path = postfix.ours / name
        file, ours = want.get(name), name in plan.was.files
        now = _text(path)
        if file and now is not None and not ours:
            raise MailError(
                f"{path}: is there, and guardctl did not write it",
                hint="move it away; its content can stand in mail.toml",
            )
        edited = ours and (now is None or _sha(now) != plan.was.files[name])
        why = _stale(postfix, path, file, now) if file else ""
        if file:
            plan.state.files[name] = _sha(file.text)
        if why or (not file and now is not None):
            plan.files[name] = file
            secret = name == smarthost.AUTH_TABLE
            before, after = (
                _shown(now, secret),
                _shown(file.text if file else None, secret),
            )
            plan.changes.append(Change(str(path), "", before, after, edited, why))


def _leave_named(
    plan: Plan, postfix: Postfix, values: Mapping[str, str | None]
) -> None:
    """Keep a table that a line of somebody's names: Postfix cannot do without it."""
    for name in [name for name, file in plan.files.items() if file is None]:
        path = str(postfix.ours / name)
        named = re.compile(re.escape(path) + r"(?![\w.-])")
        users = [item for item, value in values.items() if named.search(value or "")]
        if users:
            del plan.files[name]
            plan.changes = [change for change in plan.changes if change.file != path]
            plan.state.files[name] = plan.was.files[name]
            plan.notes.append(
                f"{path} is left: {', '.join(users)} names it; take it out there, and"
                " do this again"
            )


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MailError(f"{path}: {error.strerror}") from None


def _sha(text: str) -> str:
    return sha256(text.encode(errors="surrogateescape"))


def _shown(text: str | None, secret: bool) -> str | None:
    return _SECRET.sub(r"\1********", text) if text is not None and secret else text


def _stale(postfix: Postfix, path: Path, file: File, now: str | None) -> str:
    """Say why a table has to be written; "" when it is as it should be."""
    if now is None:
        return "new"
    if now != file.text:
        return "its text" if not file.secret else "its user or password"
    paths = [path, postfix.indexed(path)] if file.indexed else [path]
    for each in paths:
        if not each.exists():
            return f"there is no {each.name}"
        mode = each.stat().st_mode & 0o7777
        if mode != file.mode:
            return f"{each.name} has mode {mode:04o}, not {file.mode:04o}"
    if file.indexed and postfix.map_text(path) != _pairs(file.text):
        return f"{paths[1].name} was not made of it"
    return ""


def _pairs(text: str) -> str:
    """Give a table's text as `postmap -s` prints its index: keys in small letters."""
    lines = [line.split(None, 1) for line in text.splitlines() if line[:1] != "#"]
    return "".join(sorted(f"{key.lower()}\t{value}\n" for key, value in lines))


# ---- the guard's policy


def _pin(plan: Plan, postfix: Postfix, table: MailTable) -> None:
    host = table.smart_host
    found = plan.pin = pin.pin_of(postfix, host, plan.was.pinned)
    ways = _ways_around(plan, postfix) if host else []
    if host and not host.pin:
        plan.notes += [f"smart_host: mail may go past it by {way}" for way in ways]
        plan.notes += pin.unpinned(postfix, host)
    if found is None:
        return
    plan.digests[str(found.file)] = "" if found.gone else _sha(found.was)
    plan.state.pinned = found.kept
    before, after = pin.shown(found.before), pin.shown(found.after)
    if found.changes:
        plan.changes.append(
            Change(str(found.file), "include", before, after, found.edited)
        )
    elif found.edited and not (host and host.pin):
        plan.notes.append(
            f"{found.file}: include was changed since apply, and is left as it is"
        )
    if host and host.pin:
        if found.changes or "relayhost" in plan.main:
            plan.notes += pin.examine(found, postfix, host)
        plan.denied = [*pin.around(table), *ways]
        plan.state.denied = plan.denied
        plan.notes += [f"pin: denied is what goes by {way}" for way in plan.denied]
    if found.changes and postfix.guard.is_pending(found.file):
        raise MailError(
            f"pin: {found.file} has changes that are not in force, and would be then",
            hint="guardctl policy apply, if they are meant",
        )


def _ways_around(plan: Plan, postfix: Postfix) -> list[str]:
    """Name the settings of others that lead past a smart host."""
    kept = plan.state.members.get(transports.TRANSPORT_MAPS)
    text = _will_be(postfix, plan, transports.TRANSPORT_MAPS)
    return pin.others(postfix, relaying.without(text, kept.element) if kept else text)


# ---- words


def _notes(plan: Plan, table: MailTable) -> None:
    host = table.smart_host
    if host and host.tls not in smarthost.CHECKED and host.user:
        plan.notes.append(
            f'smart_host: tls = "{host.tls}" encrypts and does not check who the relay'
            ' is; tls = "secure" does'
        )
    for domain in transports.around(table.transports) if host else ():
        plan.notes.append(
            f"transports: mail for {domain} does not go through the smart host"
        )


def _outweighed(postfix: Postfix, want: Wanted) -> Iterator[str]:
    """Name what a service of master.cf sets for itself, which is not touched."""
    for service, settings in postfix.overrides().items():
        for name, value in settings.items():
            if service in want.services or value == want.parameters.get(name, value):
                continue
            yield (
                f"{MASTER}: {service} has -o {name}={value}, which outweighs the table"
            )


def diff(change: Change) -> Iterator[str]:
    """Give a change as lines that begin with - and +."""
    if not change.item:
        old, new = ((text or "").splitlines() for text in (change.before, change.after))
        lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[2:]
        yield from (line for line in lines if not line.startswith("@@"))
        return
    for sign, value in (("-", change.before), ("+", change.after)):
        if value is not None:
            plain = f"{change.item} = {value}".rstrip()
            yield f"{sign}{value if '/' in change.item else plain}"
