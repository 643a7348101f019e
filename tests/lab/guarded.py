# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard on the lab's host: a real journald, guardd, and guardctl to ask it.

The links are pinned in the lab's own bpffs and attached to the lab's own cgroup,
so the guard sees the lab's host and nothing else of this machine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from typing import Any

from tests.journald import CONFIG, PROGRAM, served
from tests.lab.lab import SCRATCH, Done, Lab, wait_until

POLICY = "/etc/smtp-guard/policy.toml"
PIN_DIR = "/sys/fs/bpf/smtp-guard"


def start_journald(lab: Lab) -> None:
    """Start the host's journald, in memory, and wait for its socket."""
    lab.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")
    lab.write("/etc/systemd/journald.conf", CONFIG)
    lab.check(["mkdir", "-p", "/run/log/journal", "/run/systemd/journal"])
    lab.start(
        [PROGRAM],
        unit="system.slice/systemd-journald.service",
        output=f"{SCRATCH}/journald.log",
    )
    wait_until(lambda: served(lab.path("/run/systemd/journal/socket")), "journald")


def start_resolver(lab: Lab) -> subprocess.Popen[str]:
    """As the unit does: as a user without any right, in a folder that is its own."""
    wait_until(lab.path("/run/smtp-guard/smart-host").exists, "guardd's question")
    lab.check(["install", "-d", "-o", "nobody", "/run/smtp-guard-names"])
    return lab.start(
        ["guardd", "--resolve"],
        user="nobody",
        unit="system.slice/smtp-guard-names.service",
        output=f"{SCRATCH}/names.log",
    )


class Guard:
    """guardd on the lab's host, which also prints what it journals."""

    def __init__(self, lab: Lab, policy: str, prints: bool = True) -> None:
        """Write the policy (TOML), but do not start; prints: not so its unit."""
        self.lab = lab
        self._options = ["--foreground"] if prints else []
        self.write_policy(policy)
        self._process: subprocess.Popen[str] | None = None

    def write_policy(self, policy: str) -> None:
        """Write the policy file; guardd does not read it before it is told to."""
        self.lab.write(POLICY, policy)

    def start(self) -> None:
        """Start guardd and wait until the policy is in force."""
        self._process = self.lab.start(
            ["guardd", "--policy", POLICY, "--cgroup", str(self.lab.cgroup)]
            + ["--pin-dir", PIN_DIR, *self._options],
            unit="system.slice/smtp-guard.service",
            output=f"{SCRATCH}/guardd.log",
        )
        self._wait(self.in_force, "a guard in force")

    def apply(self, policy: str) -> None:
        """Put another policy in force, as an administrator does."""
        self.write_policy(policy)
        done = self.ctl("policy", "apply")
        if done.returncode != 0:
            raise RuntimeError(f"guardctl policy apply: {done.stdout}{done.stderr}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End guardd; what it pinned stays in force."""
        assert self._process
        self._process.send_signal(how)
        self._process.wait(20)

    def signal(self, number: signal.Signals) -> None:
        """Send guardd a signal."""
        assert self._process
        self._process.send_signal(number)

    def ctl(self, *argv: str) -> Done:
        """Run guardctl on the lab's host."""
        return self.lab.run(
            ["guardctl", "--pin-dir", PIN_DIR, *argv], unit="user.slice"
        )

    def in_force(self) -> bool:
        """Ask guardctl status. Raises RuntimeError when guardd has ended."""
        if self._process and self._process.poll() is not None:
            raise RuntimeError(f"guardd: {self._process.returncode}\n{self.log()}")
        return self.ctl("status").returncode == 0

    def findings(self, *options: str, at_least: int = 1) -> list[dict[str, Any]]:
        """Ask guardctl who-connected until it knows of so many; options are its own."""

        def ask() -> list[dict[str, Any]]:
            done = self.ctl("who-connected", "--json", *options)
            assert done.returncode in (0, 1), done  # 1: nothing found
            return [json.loads(line) for line in done.stdout.splitlines()]

        rows: list[dict[str, Any]] = []

        def enough() -> bool:
            rows[:] = ask()
            return len(rows) >= at_least

        self._wait(enough, f"{at_least} findings of {options}")
        return rows

    def log(self) -> str:
        """Give what guardd printed."""
        return self.lab.path(f"{SCRATCH}/guardd.log").read_text(errors="replace")

    def _wait(self, condition: Any, what: str) -> None:
        try:
            wait_until(condition, what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log()[-4000:]}") from None
