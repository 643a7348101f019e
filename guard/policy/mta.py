# SPDX-License-Identifier: GPL-2.0-or-later
"""[mta]: what the guard and the host's own mail server tell each other."""

from __future__ import annotations

import os
from pathlib import Path

from guard.abi import Mode
from guard.policy.fields import MAX_UINT, Table
from guard.policy.model import Limit, Mta, Rule, excerpt
from guard.text import printable

_EXAMPLE = "/var/spool/postfix/smtp-guard/policy"
_LONGEST = 100  # sun_path has 108 bytes, unix(7); a new one is .NAME.new at first
_KEYS = ("socket", "mode", "relay_mynetworks", "unknown", "token_keys", "limit")
_LIMIT_KEYS = (
    *("name", "by", "below", "rule", "action"),
    *("messages_per_minute", "messages_per_hour"),
    *("recipients_per_minute", "recipients_per_hour"),
)
_MOST_LIMITS = 32  # each costs a message some microseconds
_NAME_LIMIT = 64


def mta_section(top: Table, rules: tuple[Rule, ...]) -> Mta:
    """Read [mta] of the main policy file; without it nothing is served."""
    table = top.section("mta", _KEYS)
    plain = Mta()
    mode = "observe"
    if "mode" in table.data:
        mode = table.choice("mode", ("observe", "enforce")) or mode
    unknown = plain.unknown
    if "unknown" in table.data:
        unknown = table.choice("unknown", ("pass", "defer", "reject")) or unknown
    relay = table.flag("relay_mynetworks")
    made = Mta(
        _socket(table),
        Mode.ENFORCE if mode == "enforce" else Mode.OBSERVE,
        plain.relay_mynetworks if relay is None else relay,
        unknown,
        _limits(table, rules),
        _token_keys(table),
    )
    decides = not made.relay_mynetworks or made.limits
    if (decides or made.token_keys) and made.socket is None:
        table.error(
            "",
            "Postfix is to be answered, but there is no socket where it asks",
            f'write socket = "{_EXAMPLE}"',
        )
    elif "mode" in table.data and not decides:
        table.warn(
            "mode",
            "there is nothing to refuse",
            "write relay_mynetworks = false or an [[mta.limit]], or remove it",
        )
    elif top.data.get("mode") == "observe" and mode == "enforce":
        table.warn(
            "mode",
            "nothing is refused while the mode of the whole policy is observe",
            'write mode = "enforce" at the head of the file as well',
        )
    if "unknown" in table.data and made.relay_mynetworks:
        table.warn(
            "unknown",
            "nobody has to log in, so nobody is unknown",
            "write relay_mynetworks = false as well, or remove it",
        )
    return made


def _socket(table: Table) -> Path | None:
    value = table.data.get("socket", False)
    if value is False:
        return None
    path = Path(value) if isinstance(value, str) and "\0" not in value else Path()
    if not path.is_absolute() or ".." in path.parts or len(path.parts) < 4:
        table.error(
            "socket",
            f"{excerpt(repr(value))} is no socket in a folder of its own",
            f'write "{_EXAMPLE}": two levels below Postfix\'s queue_directory;'
            " false: none",
        )
    elif len(os.fsencode(path)) > _LONGEST:
        table.error("socket", f"is longer than {_LONGEST} bytes", "shorten it")
    else:
        return path
    return None


def _token_keys(table: Table) -> Path | None:
    paths = table.paths("token_keys")
    if not paths:
        return None
    if len(paths) != 1:
        table.error("token_keys", "is more than one file", "name one")
    elif not paths[0].exists():
        table.warn(
            "token_keys",
            f"{paths[0]}: no such file; messages have no header until it is there",
            f"guardctl token-key --file {paths[0]}",
        )
    return paths[0]


def _limits(table: Table, rules: tuple[Rule, ...]) -> tuple[Limit, ...]:
    items = table.data.get("limit", [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        table.error("limit", "is not a list of limits", "write [[mta.limit]]")
        return ()
    if len(items) > _MOST_LIMITS:
        table.error("limit", f"more than {_MOST_LIMITS}", "join some of them")
        return ()
    found: dict[str, Limit] = {}
    for index, item in enumerate(items):
        inner = Table(
            table.source,
            table.problems,
            item,
            "mta.limit",
            index,
            len(items),
            f"limit {index + 1}",
        )
        limit = _limit(inner, rules)
        if limit.name in found:
            inner.error("name", "is taken by a limit before it", "choose another")
        found[limit.name] = limit
    return tuple(found.values())


def _limit(table: Table, rules: tuple[Rule, ...]) -> Limit:
    table.only(_LIMIT_KEYS)
    by = table.choice("by", ("user", "unit", "folder")) or "user"
    action = table.choice("action", ("defer", "hold", "reject", "notify")) or "notify"
    messages = _most(table, "messages_per_minute"), _most(table, "messages_per_hour")
    recipients = (
        _most(table, "recipients_per_minute"),
        _most(table, "recipients_per_hour"),
    )
    if messages + recipients == (None,) * 4:
        table.error("", "it limits nothing", "add messages_per_hour = 100 or the like")
    return Limit(
        _name(table),
        by,
        action,
        messages,
        recipients,
        _below(table, by),
        _rules(table, rules),
    )


def _name(table: Table) -> str:
    name = table.data.get("name")
    if not isinstance(name, str) or not name.strip():
        table.error("", "name is missing", 'add one, as in name = "sites"')
        return ""
    # it goes into an answer to an SMTP client: RFC 5321 section 4.2
    if not (name.isascii() and printable(name) == name and len(name) <= _NAME_LIMIT):
        table.error(
            "name",
            f"is longer than {_NAME_LIMIT}, or not plain ASCII",
            "shorten it to letters, digits and dashes",
        )
    return name


def _most(table: Table, key: str) -> int | None:
    return table.number(key, 1, MAX_UINT, "a count") if key in table.data else None


def _below(table: Table, by: str) -> Path | None:
    paths = table.paths("below")
    if by != "folder":
        if paths is not None:
            table.error(
                "below",
                "is about folders",
                'write by = "folder", or remove it',
            )
        return None
    if paths is None or len(paths) != 1:
        table.error(
            "below",
            "by folder: one folder whose subfolders are told apart",
            'add below = "/srv/www"',
        )
        return None
    return paths[0]


def _rules(table: Table, rules: tuple[Rule, ...]) -> tuple[str, ...] | None:
    names = table.texts("rule")
    if names is None:
        return None
    known = {rule.name for rule in rules if rule.reaches_us}
    for name in names:
        if name not in known:
            table.error(
                "rule",
                f"{excerpt(repr(name))} is no rule that lets somebody pass to this"
                " host's own mail server",
                "name a [[local.rule]] that allows, or a rule that redirects",
            )
    return tuple(dict.fromkeys(names))
