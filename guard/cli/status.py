# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl status: is the policy in force, and what has it done?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from guard import lsm
from guard.abi import Counter
from guard.backstop.keeper import compare
from guard.checks import State
from guard.errors import EX_UNAVAILABLE, NotLoaded
from guard.force import daemon_pid
from guard.kernel import Guard
from guard.ownerrules import read_state, served_by, state_file
from guard.ring import LOSSES
from guard.ringbuf import ring_backlog
from guard.smarthost import describe, in_words
from guard.tables import guarded_ports
from guard.text import json_text, printable

_EXAMPLES = """\b
Examples:
  guardctl status
  guardctl status --json | jq .counters
  guardctl status >/dev/null || echo "not in force"
"""


@click.command(epilog=_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def command(pin_dir: Path, as_json: bool) -> None:
    """Tell whether the policy is in force, and its counters and losses.

    The exit status is 0 when the policy is in force (in observe mode too), and
    69 when it is not.
    """
    try:
        guard = Guard(pin_dir)
    except NotLoaded:
        without = read_state(pin_dir)
        if without is None:
            raise
        _tell_unaided(pin_dir, without, as_json)
        return
    state = _state(guard)
    if as_json:
        click.echo(json_text(state, indent=2))
    else:
        _show(state)
    if not state["in_force"]:
        raise SystemExit(EX_UNAVAILABLE)


def _tell_unaided(pin_dir: Path, state: dict[str, Any], as_json: bool) -> None:
    """Tell of a guard without kernel programs: rules of netfilter by owner."""
    check = compare(state["backstop"], pin_dir)
    in_force = check.state is not State.BAD
    state["in_force"] = in_force
    state["smart_host"] = describe(state.get("smart_host"))
    state["guardd"] = {"pid": served_by(state_file(pin_dir))}
    if as_json:
        click.echo(json_text(state, indent=2))
    else:
        word = "in force" if in_force else "NOT IN FORCE"
        click.secho(
            f"{word}, {state['mode']}, without kernel programs",
            fg="yellow" if in_force else "red",
        )
        _line("why", state.get("why") or "?")
        _line("rules", check.detail)
        _line("policy", f"{state['policy']}, sha256 {state['policy_sha256'][:12]}")
        if state["refused"]:
            _line("refused", state["refused"].splitlines()[0])
        _line("ports", _ports(state["ports"]))
        if state["smart_host"]:
            _line("relay", in_words(state["smart_host"]))
        pid = state["guardd"]["pid"]
        _line("guardd", f"pid {pid}" if pid else "not running: nobody journals")
        for weaker in state["weaker"]:
            _line("weaker", f"{weaker['rule']}: {weaker['what']}")
    if not in_force:
        raise SystemExit(EX_UNAVAILABLE)


def _state(guard: Guard) -> dict[str, Any]:
    about = guard.about()
    counters = guard.counters()
    missing = guard.missing_hooks()
    sha256 = bytes(guard.policy().sha256).hex()
    pid = daemon_pid(guard)
    changed = about.get("changed", []) if pid else []
    accounted = (
        counters[Counter.EVENTS]
        + counters[Counter.FOLDED]
        + counters[Counter.QUIET]
        + counters[Counter.HELD]
        + counters[Counter.LOST_RING]
    )
    return {
        "in_force": not missing and int(sha256, 16) != 0,
        "mode": guard.mode.name.lower(),
        "policy": about.get("policy"),
        "policy_sha256": sha256,
        "refused": about.get("refused"),
        "ports": sorted(guarded_ports(guard.control())),
        "cgroup": about.get("cgroup"),
        "lsm": lsm.check(guard).detail,
        "not_attached": missing,
        "backstop": about.get("backstop"),
        "changed": changed,
        "loaded": about.get("loaded"),
        "uptime_s": _since(about.get("loaded")),
        "version": about.get("version"),
        "before": about.get("before"),
        "mail": about.get("mail") if pid else None,
        "smart_host": describe(about.get("smart_host")),
        "guardd": {
            "pid": pid,
            "uptime_s": _since(about.get("started")) if pid else None,
        },
        "waiting_bytes": ring_backlog(guard.map("ring").fd),
        "counters": {counter.name.lower(): n for counter, n in counters.items()},
        "unaccounted": counters[Counter.JUDGED] - accounted,
        "losses": {counter.name.lower(): counters[counter] for counter in LOSSES},
    }


def _ports(ports: list[int]) -> str:
    """Write them out, but for the whole that a table nobody filled stands for."""
    return "every port" if len(ports) == 1 << 16 else " ".join(map(str, ports))


def _before(open: int, denied: int, due_ns: int | None = None) -> str:
    text = f"{open} connections were open at load, {denied} denied by the policy"
    if due_ns is None:
        return text
    seconds = due_ns / 1e9 - time.clock_gettime(time.CLOCK_BOOTTIME)
    return f"{text}: to end in {max(0, seconds):.0f} s, if guardd runs"


def _mail(mail: dict[str, Any]) -> str:
    text = f"sendmail(1): {mail.get('sendmail')}"
    if refused := mail.get("refused"):
        text += f"; {refused} connections of Postfix refused: too many at once"
    if waiting := mail.get("waiting"):
        text += f"; {waiting} messages wait for journald"
    return text


def _since(start: float | None) -> float | None:
    return None if start is None else round(time.time() - start, 1)


def _show(state: dict[str, Any]) -> None:
    counters = state["counters"]
    if not state["in_force"]:
        click.secho("NOT IN FORCE", fg="red")
        if state["not_attached"]:
            _line("missing", ", ".join(state["not_attached"]))
    elif state["mode"] == "observe":
        click.secho("in force, observe: nothing is denied yet", fg="yellow")
    else:
        click.secho("in force, enforce", fg="green")
    _line("policy", f"{state['policy']}, sha256 {state['policy_sha256'][:12]}")
    if state["refused"]:
        _line("refused", state["refused"].splitlines()[0])
    if state["changed"]:
        _line("CHANGED", f"by somebody: {', '.join(state['changed'])}")
    _line("ports", _ports(state["ports"]))
    _line("cgroup", state["cgroup"])
    _line("lsm", state["lsm"])
    _line("loaded", f"{_ago(state['uptime_s'])} ago, smtp-guard {state['version']}")
    _line("2nd lock", _backstop(state["backstop"] or {}))
    if state["before"] and state["before"]["open"]:
        _line("before", _before(**state["before"]))
    if state["smart_host"]:
        _line("relay", in_words(state["smart_host"]))
    guardd = state["guardd"]
    if guardd["pid"]:
        _line("guardd", f"pid {guardd['pid']}, up {_ago(guardd['uptime_s'])}")
    else:
        _line("guardd", "not running: findings wait in the kernel")
    if state["mail"]:
        _line("mail", _mail(state["mail"]))
    _line(
        "judged",
        f"{counters['judged']}: {counters['denied']} denied,"
        f" {counters['would_deny']} would be, {counters['redirected']} redirected,",
    )
    _line("", f"{counters['allowed']} allowed; {counters['local']} of all were local")
    _line(
        "reported",
        f"{counters['events']} one by one, {counters['folded']} as repeats,"
        f" {counters['quiet']} only counted",
    )
    lost = {name: n for name, n in state["losses"].items() if n}
    _line("lost", ", ".join(f"{n} {name}" for name, n in lost.items()) or "nothing")
    if state["waiting_bytes"]:
        _line("waiting", f"{state['waiting_bytes']} bytes in the ring")


def _backstop(about: dict[str, Any]) -> str:
    kind = about.get("kind", "off")
    return f"none: {about.get('why') or 'not loaded'}" if kind == "off" else str(kind)


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _line(name: str, text: str | None) -> None:
    click.echo(f"  {name:<9} {printable(text or '?')}")
