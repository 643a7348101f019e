# SPDX-License-Identifier: GPL-2.0-or-later
"""Web sites in PHP that share a user: Debian's php-fpm in the lab, and who asks it."""

from __future__ import annotations

from pathlib import Path

from tests.kernel.phphost import ask, fpm_config, fpm_program
from tests.lab import wait_until
from tests.mta.desk import Desk

UNIT = "system.slice/php-fpm.service"
SITES = "/srv/www"
_FOLDER = "/srv/fpm"
_PROBED = "<?php fclose(stream_socket_client('tcp://127.0.0.1:25')); echo getmypid();\n"


class Sites:
    """Two sites, shop.example and evil.example, which one pool serves as www-data."""

    def __init__(self, desk: Desk) -> None:
        """Start php-fpm, and wait until the guard is told of its requests."""
        self.desk = desk
        self.lab = desk.lab
        self.write("probe.example/index.php", _PROBED)
        self.lab.write(f"{_FOLDER}/fpm.conf", fpm_config(Path(_FOLDER)))
        self.lab.start(
            [fpm_program(), "--nodaemonize", "--fpm-config", f"{_FOLDER}/fpm.conf"],
            unit=UNIT,
            output=f"{_FOLDER}/fpm.out",
        )
        for pool in ("shop", "blog"):
            wait_until(self._socket(pool).exists, f"the pool {pool}")
        wait_until(self._is_told, "requests that are told")

    def write(self, script: str, text: str) -> None:
        """Write a script of a site, by its path below SITES."""
        self.lab.write(f"{SITES}/{script}", text)

    def ask(
        self, script: str, uri: bytes = b"/", method: str = "GET", pool: str = "shop"
    ) -> str:
        """Ask for a script, by its whole path or that below SITES; give its output."""
        path = script if script.startswith("/") else f"{SITES}/{script}"
        return ask(self._socket(pool), path, uri, method)

    def _socket(self, pool: str) -> Path:
        return self.lab.path(f"{_FOLDER}/{pool}.sock")

    def _is_told(self) -> bool:
        pid = self.ask("probe.example/index.php")
        [row] = self.desk.guard.findings("--pid", pid, "--limit", "1")
        return bool(row["script_from"] == "request")
