# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts a policy in force, whole, and follows the files that it names."""

from __future__ import annotations

import time
from pathlib import Path

from guard import abi
from guard.errors import GuardError
from guard.finding import Kind, Notice
from guard.kernel import Guard
from guard.policy import Policy, compile_rows

_OTHERS_WRITE = 0o022


class Force:
    """The policy that is in force in one guard."""

    def __init__(self, guard: Guard) -> None:
        """Nothing is applied yet."""
        self._guard = guard
        self._policy: Policy | None = None

    def apply(self, policy: Policy) -> None:
        """Put policy in force; on KernelError the old one stays, whole."""
        self._guard.apply(compile_rows(policy, 1 - self._guard.slot, self._keys))
        self._policy = policy

    def follow_files(self) -> None:
        """Look again at the executables the policy names: one was replaced.

        No mail waits for this: the kernel also knows an executable by its name
        in its directory, which holds from the moment of the rename.
        """
        if self._policy:
            rows = compile_rows(self._policy, self._guard.slot, self._keys)
            self._guard.update_exes(rows.exes)

    def _keys(self, path: Path) -> tuple[abi.ExeKey, abi.ExeKey]:
        """Identify an executable for the exes map.

        One that others than root can write counts as missing: the kernel would
        not match it either.
        """
        seen = self._guard.identify(path)
        if seen.uid or seen.mode & _OTHERS_WRITE:
            raise FileNotFoundError(2, "not root's alone to write", str(path))
        return seen.inode, seen.name


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


def refusal_notice(error: GuardError, path: Path) -> Notice:
    """Make the finding that a policy was refused and the old one stays."""
    return Notice(
        Kind.POLICY_REFUSED,
        time.time_ns() // 1000,
        f"policy refused, the one in force stays: {error}",
        priority=3,
        fields={"POLICY": str(path)},
    )
