# SPDX-License-Identifier: GPL-2.0-or-later
"""make demo: the guard shown to a newcomer, on a mail host that is thrown away.

Every line marked ok was looked at, not assumed: the exit status is 0 only if all
of them happened.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from tests.lab import MX4, Lab, Postfix
from tests.lab.guarded import Guard, start_journald
from tests.lab.lab import Done
from tests.lab.rogue import FOLDER, ROGUES

PHP = next(rogue for rogue in ROGUES if rogue.name == "php")
POLICY = """\
mode = "observe"
include = ["postfix"]
"""
STAGE = f"""\
smtp-guard, on a mail host in namespaces of this machine. Nothing leaves it.

  the internet   mx.example.org, {MX4}, takes every mail
  the host       host.example.net: Debian's Postfix, journald, a web server
  the rogue      {FOLDER}/cache.php, as www-data"""


class NotSeen(Exception):
    """A step that did not happen."""


def say(text: str) -> None:
    print(text, flush=True)


def ok(what: str, happened: object) -> None:
    """Print a step; raises NotSeen when it did not happen."""
    if not happened:
        say(f"  NOT  {what}")
        raise NotSeen(what)
    say(f"  ok   {what}")


def show(guard: Guard, *argv: str) -> str:
    """Run guardctl before the reader's eyes; give what it printed."""
    done = guard.ctl(*argv)
    say(f"\n$ guardctl {' '.join(argv)}\n{(done.stdout + done.stderr).rstrip()}\n")
    if done.returncode != 0:
        raise NotSeen(f"guardctl {argv[0]} ended with {done.returncode}")
    return done.stdout


def mail_flows(postfix: Postfix) -> bool:
    """Send a customer's mail through Postfix and find it at the MX."""
    return bool(postfix.delivered(postfix.submit(user="www-data")))


def spam(lab: Lab) -> tuple[Done, int]:
    """Run the rogue; give how it ended, and what the MX saw of it."""
    before = len(lab.mx_saw("connect"))
    done = PHP.run(lab, "mx.example.org")
    return done, len(lab.mx_saw("connect")) - before


def demo(lab: Lab) -> None:
    """Observe, plan, enforce, denied, and who it was."""
    postfix = Postfix(lab)
    postfix.start()
    start_journald(lab)
    guard = Guard(lab, POLICY)

    say("\n1. Observe: nothing is denied, everything is written down.")
    guard.start()
    ok("guardd is in force", guard.in_force())
    ok("the shop's mail goes through Postfix to the MX", mail_flows(postfix))
    log = postfix.log()
    done, seen = spam(lab)
    ok("cache.php talks to the MX itself", done.returncode == 0 and seen)
    ok("... and Postfix's log has no word of it", postfix.log() == log)
    guard.findings("--pid", str(done.pid))

    say("\n2. Plan: whom would this policy have stopped?")
    plan = show(guard, "plan")
    ok(
        "the script is in the plan, Postfix is not",
        "/usr/bin/php" in plan and "postfix" not in plan,
    )

    say('\n3. Enforce: mode = "enforce" in /etc/smtp-guard/policy.toml.')
    guard.write_policy(POLICY.replace("observe", "enforce"))
    show(guard, "policy", "apply")
    done, seen = spam(lab)
    ok(f"cache.php is told: {done.stderr.strip()}", done.returncode != 0)
    ok("the MX saw nothing of it", not seen)
    ok("the shop's mail still goes through Postfix", mail_flows(postfix))

    say("\n4. Who was it?")
    row, *_ = guard.findings("--pid", str(done.pid))
    show(guard, "who-connected", "--verdict", "deny")
    ok("the culprit is named:", culprit(row))
    for name in ("user", "unit", "exe", "args", "cwd"):
        value = " ".join(row[name]) if isinstance(row[name], list) else row[name]
        say(f"         {name:5} {value}")
    guard.stop()
    done, seen = spam(lab)
    ok("and with guardd stopped it is denied as before", done.returncode and not seen)


def culprit(row: dict[str, Any]) -> bool:
    """Tell whether a finding says all that a responder needs."""
    who, what, exe = (row["user"], row["unit"], row["cwd"]), row["args"][:2], row["exe"]
    named = who == ("www-data", "apache2.service", FOLDER)
    return (
        named and what == ["php", "cache.php"] and str(exe).startswith("/usr/bin/php")
    )


def main() -> int:
    """Run the demo; 0 when every step was seen."""
    began = time.monotonic()
    say(STAGE)
    try:
        with Lab() as lab:
            demo(lab)
    except (NotSeen, TimeoutError, RuntimeError) as error:
        say(f"\nThe demo failed: {error}")
        return 1
    seconds = time.monotonic() - began
    say(f"\nAll of it happened, in {seconds:.0f} s; the host is gone without a trace.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
