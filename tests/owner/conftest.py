# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts in namespaces, and a guardd without kernel programs on one of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guard.ownerrules import STATE_DIR
from tests.faults.site import CHECKOUT, Guardd, Site, build_connects, lacking
from tests.kernel.world import MX4, MX6, SMTP, Child, Done, World
from tests.lab.lab import wait_until

KINDS = ("nftables", "iptables")


@dataclass
class Host:
    """The host, what is on it, and the acts that are tried."""

    world: World
    site: Site

    @property
    def unit(self) -> str:
        """The guarded cgroup, as a rule names it."""
        return f"/{self.world.name}/guarded"

    def policy(self, kind: str, rules: str, mode: str = "enforce") -> None:
        """Write the policy file."""
        self.site.write_policy(
            f'mode = "{mode}"\n[backstop]\nkind = "{kind}"\n{rules}'
            '[fold]\nwindow = "0s"\n'
        )

    def start(self, kind: str, rules: str, mode: str = "enforce") -> Guardd:
        """Write the policy, and start guardd in the host's namespace."""
        self.policy(kind, rules, mode)
        return self.site.start("--design", "owner", netns=self.netns)

    @property
    def netns(self) -> str:
        """A file that leads to the host's network namespace."""
        return f"/proc/{os.getpid()}/fd/{self.world.host}"

    def connect(
        self,
        to: str = MX4,
        cgroup: Path | None = None,
        uid: int = 0,
        until: Callable[[], object] | None = None,
    ) -> Done:
        """Connect; the connection stays until a condition holds."""
        go, stop = os.pipe()

        def act() -> None:
            os.close(stop)
            if uid:
                os.setgid(uid)
                os.setuid(uid)
            with socket.create_connection((to, SMTP), timeout=5):
                os.read(go, 1)

        child = Child(act, cgroup or self.world.free)
        os.close(go)
        try:
            if until:
                wait_until(until, "the connection's finding")
        finally:
            os.close(stop)
            done = child.finish()
        return done

    def findings(self, kind: str) -> list[dict[str, str]]:
        """Give the findings of a kind, their fields without prefix."""
        return self.site.entries(kind)


@pytest.fixture(scope="session")
def connects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_connects(tmp_path_factory.mktemp("connects"))


@pytest.fixture
def host(tmp_path: Path, connects: Path) -> Iterator[Host]:
    with (
        World() as world,
        Site(tmp_path, connects) as site,
        world.inside(world.host),
        world.serve(world.mx, MX4, MX6),
        world.serve(world.host, "127.0.0.1"),
    ):
        yield Host(world, site)
        for path in STATE_DIR.glob(f"{site.pin_dir.name}.*"):
            path.unlink()
        if STATE_DIR.exists() and not any(STATE_DIR.iterdir()):
            shutil.rmtree(STATE_DIR)


def guardctl(
    host: Host, *argv: str, netns: str = "", without: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run guardctl on the host (or in another namespace), for this guard.

    without: capabilities that it is not to have.
    """
    return subprocess.run(
        [
            *["nsenter", f"--net={netns or host.netns}", *lacking(without)],
            *[sys.executable, "-m", "guard.cli.main"],
            *["--pin-dir", str(host.site.pin_dir), *argv],
        ],
        capture_output=True,
        text=True,
        pass_fds=[host.world.host, host.world.mx],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )


def rules_left() -> str:
    """Give what netfilter holds in this namespace: "" when nothing of ours."""
    nft = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True)
    saved = [
        subprocess.run([program], capture_output=True, text=True).stdout
        for program in ("iptables-legacy-save", "ip6tables-legacy-save")
    ]
    lines = "\n".join([nft.stdout, *saved]).splitlines()
    return "\n".join(line for line in lines if "smtp_guard" in line.lower())
