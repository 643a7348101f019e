# SPDX-License-Identifier: GPL-2.0-or-later
"""A host of the test's own, a policy file, and guardctl for its guard."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from systemd import journal

from guard.cli.main import guardctl
from guard.errors import GuardError
from guard.journal import PREFIX
from guard.ownerrules import STATE_DIR
from tests.journald import shared
from tests.kernel.world import MX4, SMTP, World

OBSERVE = 'mode = "observe"\n'
ENFORCE = 'mode = "enforce"\n'


@dataclass
class Answer:
    """How a run of guardctl ended, and what it said."""

    status: int
    text: str

    def rows(self) -> list[dict[str, Any]]:
        """Read its output as one JSON object a line."""
        return [json.loads(line) for line in self.text.splitlines()]


def run(*argv: str) -> Answer:
    """Run guardctl in this process."""
    result = CliRunner().invoke(guardctl, argv)
    if isinstance(result.exception, GuardError):
        return Answer(result.exception.exit_status, result.exception.report())
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.output)


@dataclass
class Site:
    """What a test acts on."""

    world: World
    policy: Path

    def ctl(self, *argv: str) -> Answer:
        """Run guardctl for this site's guard."""
        return run("--pin-dir", str(self.world.pin_dir), *argv)

    def load(self) -> Answer:
        """Put the guard in force as it is done at boot."""
        return self.ctl(
            "load", "--policy", str(self.policy), "--cgroup", str(self.world.guarded)
        )

    def states(self) -> dict[str, str]:
        """Give what verify says of each thing."""
        return {
            row["name"]: row["state"] for row in self.ctl("verify", "--json").rows()
        }

    def told(self, kind: str) -> list[str]:
        """Give the messages of a kind in the journal that name this site's policy."""
        with contextlib.closing(journal.Reader()) as reader:
            reader.add_match(f"{PREFIX}KIND={kind}", f"{PREFIX}POLICY={self.policy}")
            return [str(entry["MESSAGE"]) for entry in reader]

    def denied(self) -> bool:
        """Try the MX from a guarded process; anything but EPERM is a reply."""

        def connect() -> None:
            with socket.create_connection((MX4, SMTP), timeout=5):
                pass

        return self.world.act(connect).errno == errno.EPERM


@pytest.fixture
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="smtp-guard-test-", dir="/var/lib"))
    os.chmod(folder, 0o755)
    policy = folder / "policy.toml"
    policy.write_text(ENFORCE)
    try:
        with World() as world, shared(), world.inside(world.host):
            site = Site(world, policy)
            try:
                with world.serve(world.mx, MX4):
                    yield site
            finally:
                (STATE_DIR / f"{world.pin_dir.name}.told").unlink(missing_ok=True)
                if world.pin_dir.exists():
                    site.ctl("unload")
    finally:
        shutil.rmtree(folder)
