# SPDX-License-Identifier: GPL-2.0-or-later
"""The options that guardctl and guardd take, asked of their own parsers."""

from __future__ import annotations

from collections.abc import Iterator

import click

from guard.cli.main import guardctl
from guard.daemon import command_line


def verbs(
    command: click.Command = guardctl, name: str = ""
) -> Iterator[tuple[str, click.Command]]:
    """Give each verb by its words, guardctl itself by none."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            inner = command.get_command(context, word)
            assert inner
            yield from verbs(inner, f"{name} {word}".lstrip())


def guardctl_options() -> dict[str, dict[str, list[str]]]:
    """Give the options of each verb, and of each the words that it takes, if so."""
    found = {}
    names: list[str] = guardctl.context_settings["help_option_names"]
    for name, command in verbs():
        context = click.Context(command, help_option_names=names)
        found[name] = {
            option: list(getattr(parameter.type, "choices", ()))
            for parameter in command.get_params(context)
            if isinstance(parameter, click.Option)
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
    return found


def guardd_options() -> dict[str, list[str]]:
    """Give the options of guardd, and of each the words that it takes, if so."""
    return {
        option: list(action.choices or ())
        for action in command_line()._actions
        for option in action.option_strings
    }
