# SPDX-License-Identifier: GPL-2.0-or-later
"""pin: the guard's policy lets Postfix connect to the smart host, and nowhere else.

The policy's include of "postfix" becomes one of "postfix-smart-host"; all else of it
stays as it is. What that would deny is told before, and what it would not hinder, too.
"""

from __future__ import annotations

import contextlib
import json
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import tomlkit
import tomlkit.exceptions
from tomlkit import TOMLDocument
from tomlkit.items import Array

from guard.abi import Direction, Mode, Verdict
from guard.errors import GuardError, MailError
from guard.mail import transports
from guard.mail.postfix import DEFAULT_CONFIG_DIR, Postfix
from guard.mail.state import KeptPolicy
from guard.mail.table import MailTable, SmartHost
from guard.names import Lookup
from guard.policy import (
    Caller,
    Destination,
    Executable,
    Policy,
    Rule,
    evaluate,
    exe_id,
    load,
    parse,
)
from guard.policy.files import stat_identify
from guard.policy.smarthost import KEY, address_of, smart_host_of

SHIPPED = "postfix-smart-host"
# What lets Postfix connect anywhere, of policies/.
_WIDE = ("postfix", "postfix-unit")
_UNITS = (
    None,
    "/system.slice/system-postfix.slice/postfix@-.service",
    "/system.slice/postfix.service",
)
_ANYWHERE = IPv4Address("192.0.2.1")  # nobody's, RFC 5737
# Postfix's other ways out, postconf(5), with what they are by default.
_WAYS = (
    "sender_dependent_relayhost_maps",
    "sender_dependent_default_transport_maps",
    "smtp_fallback_relay",
)


@dataclass(frozen=True, slots=True)
class Pin:
    """What pin comes to in the policy file."""

    file: Path
    was: str  # the whole text
    text: str  # as it is to be
    before: list[str] | None  # include, as it stands
    after: list[str] | None
    kept: KeptPolicy | None  # what to keep of it; None: nothing of ours is in it
    edited: bool  # somebody changed include since the last apply
    gone: bool = False  # somebody removed the policy file

    @property
    def changes(self) -> bool:
        """Tell whether the policy file has to be written."""
        return self.text != self.was


def shown(names: list[str] | None) -> str | None:
    """Write include as the policy has it."""
    return None if names is None else json.dumps(names)


def pin_of(
    postfix: Postfix, smart_host: SmartHost | None, was: KeptPolicy | None
) -> Pin | None:
    """Work out the policy file; None: it has nothing to do with mail.toml.

    Raises MailError, PolicyError for a policy that cannot be pinned.
    """
    wants = smart_host is not None and smart_host.pin
    if not wants and was is None:
        return None
    if wants and postfix.config_dir != DEFAULT_CONFIG_DIR:
        raise MailError(
            f"pin: the guard follows the relayhost of {DEFAULT_CONFIG_DIR}, not of"
            f" {postfix.config_dir}",
            hint=f'take pin out, and write {KEY} = "..." and include = ["{SHIPPED}"]'
            " into the policy",
        )
    file = Path(was.path) if was else postfix.guard.file()
    try:
        text = file.read_bytes().decode()
        document = tomlkit.parse(text)
    except FileNotFoundError:
        if not wants:
            return Pin(file, "", "", None, None, None, True, gone=True)
        raise MailError(
            f"pin: {file}: there is no policy", hint="guardctl policy init"
        ) from None
    except OSError as error:
        raise MailError(f"pin: {file}: {error.strerror}") from None
    except (ValueError, tomlkit.exceptions.ParseError) as error:
        raise MailError(
            f"pin: {file}: {error}", hint="see what it is: guardctl policy check"
        ) from None
    before = _include(document, file)
    base = before
    if was:
        base = was.before if before == was.after else _wide(before, was)
    after = _narrow(base) if wants else base
    new = text if after == before else _with_include(document, after, file)
    kept = KeptPolicy(str(file), base, after) if wants and after != base else None
    edited = was is not None and before != was.after
    return Pin(file, text, new, before, after, kept, edited)


def _include(document: TOMLDocument, file: Path) -> list[str] | None:
    value = document.unwrap().get("include")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise MailError(
            f"pin: {file}: include is no list", hint="see guardctl policy check"
        )
    return value


def _narrow(names: list[str] | None) -> list[str]:
    """Give include with the smart host in the place of all hosts."""
    found = list(dict.fromkeys(SHIPPED if x in _WIDE else x for x in names or []))
    return found if SHIPPED in found else [SHIPPED, *found]


def _wide(names: list[str] | None, was: KeptPolicy) -> list[str] | None:
    """Give an include that somebody has changed as it would be without us."""
    if names is None or SHIPPED not in names:
        return names
    ours = [name for name in was.before or [] if name in _WIDE]
    at = names.index(SHIPPED)
    return [*names[:at], *ours, *names[at + 1 :]]


def _with_include(document: TOMLDocument, names: list[str] | None, file: Path) -> str:
    """Write the policy with another include, all else and the comments as they are."""
    there = document.get("include")
    if names is None:
        document.pop("include", None)
    elif not isinstance(there, Array):
        document["include"] = names
    else:
        while len(there) > len(names):
            del there[-1]
        for at, name in enumerate(names):
            if at == len(there):
                there.append(name)
            elif there[at] != name:
                there[at] = name
    text = tomlkit.dumps(document)
    if _include(tomlkit.parse(text), file) != names:
        raise MailError(
            f"pin: include of {file} cannot be changed",
            hint=f"write it yourself, then take pin out: include = {shown(names)}",
        )
    return text


# ---- what becomes lawful, and what does not any more


def examine(pin: Pin, postfix: Postfix, smart_host: SmartHost) -> Iterator[str]:
    """Tell what a pinned policy is, for the plan; raises MailError if it is none."""
    policy = parse(pin.text, str(pin.file), pin.file.parent)
    relay = smart_host_of(smart_host.relay.text)
    own = tomlkit.parse(pin.text).unwrap().get(KEY)
    if own is not None and str(smart_host_of(own)) != str(relay):
        raise MailError(
            f"pin: {pin.file} has {KEY} = {own}, which is not {relay}",
            hint="take that line out: without it, it is Postfix's relayhost",
        )
    if rule := _lets_anywhere(policy, postfix):
        raise MailError(
            f"pin: {rule.label} ({_place(rule)}) lets Postfix connect anywhere",
            hint="narrow that rule, or remove it",
        )
    addresses = _addresses(smart_host)
    yield f"pin: Postfix may connect to {relay} ({addresses}), and nowhere else"
    if address_of(relay.host) is None:
        yield (
            "pin: until guardd has looked that name up, which takes a second or two,"
            " Postfix may connect to nobody, and defers its mail"
        )
    if policy.mode is Mode.OBSERVE:
        yield f'pin: mode = "observe" in {pin.file}: nothing is denied yet'
    elif not postfix.guard.is_loaded():
        yield "pin: no guard is in force: guardctl load, or start smtp-guard.service"
    if relay.port not in policy.ports:
        yield (
            f"pin: port {relay.port} is not among ports of {pin.file}: anybody may"
            " connect to it"
        )
    for rule in policy.rules:
        if _is_another_way(rule):
            yield f"pin: {rule.label} ({_place(rule)}) lets others send past it"


def unpinned(postfix: Postfix, smart_host: SmartHost) -> Iterator[str]:
    """Say how to pin it, unless a policy written by hand does so already."""
    with contextlib.suppress(GuardError):
        file = postfix.guard.file()
        policy = load(file) if file.exists() else None
        if policy and any(rule.smart for rule in policy.rules):
            return
        relay = smart_host.relay.text
        if policy is None:
            yield (
                f"smart_host: nothing keeps Postfix to {relay}: there is no policy"
                f" {file}; guardctl policy init, then pin = true"
            )
            return
        of_it = f'include = ["{SHIPPED}"] in place of "postfix" in {file}'
        if postfix.config_dir == DEFAULT_CONFIG_DIR:
            how = f"pin = true, or {of_it}, leaves"
        else:  # not the one whose relayhost is followed
            how = f'{of_it}, and {KEY} = "{relay}", leave'
        yield (
            "smart_host: the guard lets Postfix connect anywhere;"
            f" {how} it {relay} alone"
        )


def around(table: MailTable) -> list[str]:
    """Name the transports of mail.toml that lead past the smart host."""
    return [
        f"transports: {domain} {transports.as_written(table.transports[domain])}"
        for domain in transports.around(table.transports)
    ]


def others(postfix: Postfix, transport_maps: str) -> list[str]:
    """Name the ways of Postfix that lead past it, which pin would deny as well.

    transport_maps is what others have in it.
    """
    values = {transports.TRANSPORT_MAPS: transport_maps}
    values |= {name: postfix.value(name) for name in _WAYS}
    default = postfix.value("default_transport")
    # trivial-rewrite(8) asks for relayhost where that names no next hop
    if default.partition(":")[2] and not default.startswith(("error:", "discard:")):
        values["default_transport"] = default
    return [f"{name} = {value}" for name, value in values.items() if value]


def _addresses(smart_host: SmartHost) -> str:
    """Ask DNS, as guardd does: a name that stands in /etc/hosts alone is nobody's."""
    relay = smart_host_of(smart_host.relay.text)
    if address_of(relay.host) is not None:
        return relay.host
    answer = Lookup(relay).ask()
    if not answer.ttls:
        why = "; ".join(sorted(set(answer.failed.values())))
        raise MailError(
            f"pin: {relay} has no address in DNS ({why}): Postfix could send to nobody",
            hint="write its address in brackets, or correct /etc/resolv.conf",
        )
    names = sorted(map(str, answer.ttls))
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _lets_anywhere(policy: Policy, postfix: Postfix) -> Rule | None:
    """Give the rule by which smtp(8) still reaches a host that is nobody's."""
    program = Path(postfix.value("daemon_directory"), "smtp")
    try:
        account = pwd.getpwnam(postfix.value("mail_owner"))
        inode, name = stat_identify(program)
    except (KeyError, OSError) as error:
        raise MailError(f"pin: Postfix's smtp cannot be told: {error}") from None
    executable = Executable(exe_id(inode), exe_id(name))
    for unit in _UNITS:
        caller = Caller(account.pw_uid, account.pw_gid, executable, unit)
        for port in sorted(policy.ports):
            found = evaluate(policy, caller, Destination(_ANYWHERE, port))
            if found.verdict is not Verdict.DENY and found.rule is not None:
                return policy.rules[found.rule]
    return None


def _is_another_way(rule: Rule) -> bool:
    """Tell whether a rule lets somebody who may exist connect elsewhere."""
    if rule.direction is not Direction.OUTBOUND or rule.verdict is not Verdict.ALLOW:
        return False
    if rule.smart or () in (rule.units, rule.uids, rule.gids, rule.to):
        return False
    return rule.exes is None or any(path.exists() for path in rule.exes)


def _place(rule: Rule) -> str:
    return f"{rule.file}:{rule.line}" if rule.line else rule.file
