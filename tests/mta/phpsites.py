# SPDX-License-Identifier: GPL-2.0-or-later
"""Web sites in PHP that share a user: Debian's php-fpm in the lab, and who asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.kernel.phphost import Asking, fpm_config, fpm_program
from tests.lab import wait_until
from tests.mta.desk import Desk

SITES = "/srv/www"
_PROBED = "<?php fclose(stream_socket_client('tcp://127.0.0.1:25')); echo getmypid();\n"


class Sites:
    """Folders of sites below SITES, which one pool serves as www-data."""

    def __init__(self, desk: Desk, *, told: bool = True) -> None:
        """Start php-fpm, and wait until the guard is told of its requests.

        Not told: from a file that is not root's, whose probes the guard leaves alone.
        """
        self.desk = desk
        self.lab = desk.lab
        self._folder = "/srv/fpm" if told else "/srv/fpm-of-a-user"
        self.lab.write(f"{self._folder}/fpm.conf", fpm_config(Path(self._folder)))
        program = fpm_program()
        if not told:
            self.lab.check(["cp", program, self._folder])
            program = f"{self._folder}/{Path(program).name}"
            self.lab.check(["chown", "nobody", program])
        self.lab.start(
            [program, "--nodaemonize", "--fpm-config", f"{self._folder}/fpm.conf"],
            unit="system.slice/php-fpm.service",
            output=f"{self._folder}/fpm.out",
        )
        for pool in ("shop", "blog"):
            wait_until(self._socket(pool).exists, f"the pool {pool}")
        if told:
            self.write("probe.example/index.php", _PROBED)
            wait_until(self._is_told, "requests that are told")

    def write(self, script: str, text: str) -> None:
        """Write a script of a site, by its path below SITES."""
        self.lab.write(f"{SITES}/{script}", text)

    def asking(self, script: str, *request: Any, **more: Any) -> Asking:
        """Ask for a script, by its whole path or that below SITES."""
        path = script if script.startswith("/") else f"{SITES}/{script}"
        return Asking(self._socket("shop"), path, *request, **more)

    def ask(self, script: str, *request: Any, **more: Any) -> str:
        """Ask for a script and wait for its output."""
        return self.asking(script, *request, **more).answer()

    def _socket(self, pool: str) -> Path:
        return self.lab.path(f"{self._folder}/{pool}.sock")

    def _is_told(self) -> bool:
        pid = self.ask("probe.example/index.php")
        [row] = self.desk.guard.findings("--pid", pid, "--limit", "1")
        return bool(row["script_from"] == "request")
