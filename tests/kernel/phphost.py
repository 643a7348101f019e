# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's own php-fpm and Apache with mod_php, as small as they go, and who asks them.

They run in the guarded cgroup and in the network namespace of who starts them; no
web server stands before php-fpm, so a request can say of itself what it likes.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.kernel import Guard
from guard.requests import PIN
from tests.kernel.world import World
from tests.lab.lab import PATIENCE, join_cgroup, wait_until

_FPM = """\
[global]
error_log = {folder}/fpm.log
daemonize = no
[shop]
listen = {folder}/shop.sock
user = www-data
pm = static
pm.max_children = 1
catch_workers_output = yes
[blog]
listen = {folder}/blog.sock
user = www-data
pm = static
pm.max_children = 1
catch_workers_output = yes
"""
_APACHE = """\
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
DefaultRuntimeDir {folder}
Mutex file:{folder}
ErrorLog {folder}/apache.log
Listen 127.0.0.1:8080
LoadModule mpm_prefork_module {modules}/mod_mpm_prefork.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule mime_module {modules}/mod_mime.so
LoadModule php_module {php}
User www-data
Group www-data
StartServers 1
MinSpareServers 1
MaxRequestWorkers 1
TypesConfig /dev/null
DocumentRoot {root}
<FilesMatch "\\.php$">
    SetHandler application/x-httpd-php
</FilesMatch>
"""
# The FastCGI specification, 3.3 and 5.1.
_BEGIN, _END, _PARAMS, _STDIN, _STDOUT, _STDERR = 1, 3, 4, 5, 6, 7


def fpm_program() -> str:
    """Give the path of php-fpm; skips where it is not installed."""
    found = sorted(Path("/usr/sbin").glob("php-fpm*"))
    if not found:
        pytest.skip("php-fpm is not installed: make setup")
    return str(found[0])


def fpm_config(folder: Path) -> str:
    """Configure the pools shop and blog, a worker each; sockets are in folder."""
    return _FPM.format(folder=folder)


@contextlib.contextmanager
def fpm(folder: Path, cgroup: Path, program: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run php-fpm with the pools shop and blog, a worker each, from one program."""
    config = folder / "fpm.conf"
    config.write_text(fpm_config(folder))
    for name in ("shop", "blog"):
        (folder / f"{name}.sock").unlink(missing_ok=True)
    process = subprocess.Popen(
        [program, "--nodaemonize", "--fpm-config", str(config)],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: join_cgroup(cgroup),
    )
    try:
        for name in ("shop", "blog"):
            wait_until((folder / f"{name}.sock").exists, f"pool {name}")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


@contextlib.contextmanager
def apache(folder: Path, root: Path, cgroup: Path) -> Iterator[None]:
    """Run Apache with mod_php at 127.0.0.1:8080; skips where it is not installed."""
    modules = Path("/usr/lib/apache2/modules")
    library = sorted(modules.glob("libphp*.so"))
    program = shutil.which("apache2")
    if not program or not library:
        pytest.skip("Apache with mod_php is not installed: make setup")
    config = folder / "apache.conf"
    config.write_text(
        _APACHE.format(folder=folder, modules=modules, php=library[-1], root=root)
    )
    process = subprocess.Popen(
        [program, "-D", "FOREGROUND", "-f", str(config)],
        preexec_fn=lambda: join_cgroup(cgroup),
        start_new_session=True,  # Apache ends its whole process group
    )
    try:
        wait_until((folder / "apache.pid").exists, "Apache")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


class Asking:
    """A request that php-fpm was sent; its answer comes later."""

    def __init__(
        self,
        pool: Path,
        script: Path | str,
        uri: bytes = b"/",
        method: str = "GET",
        query: str = "x",
    ) -> None:
        """Send it to the socket of a pool; query is what the script has as q."""
        values = {
            b"SCRIPT_FILENAME": str(script).encode("utf-8", "surrogateescape"),
            b"SCRIPT_NAME": uri,  # what PHP takes for the URI: without a query
            b"REQUEST_URI": b"/?q=x",
            b"REQUEST_METHOD": method.encode(),
            b"QUERY_STRING": f"q={query}".encode(),
            b"GATEWAY_INTERFACE": b"CGI/1.1",
        }
        params = b"".join(
            struct.pack(">II", len(name) | 1 << 31, len(value) | 1 << 31) + name + value
            for name, value in values.items()
        )
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(pool))
        self.socket.sendall(
            _record(_BEGIN, struct.pack(">HB5x", 1, 0))  # FCGI_RESPONDER
            + _record(_PARAMS, params)
            + _record(_PARAMS, b"")
            + _record(_STDIN, b"")
        )

    def answer(self) -> str:
        """Wait for its end, and give its output without the header."""
        out = b""
        with self.socket, self.socket.makefile("rb") as stream:
            while True:
                head = stream.read(8)
                if len(head) < 8:
                    raise ConnectionError(f"the worker is gone: {out!r}")
                _, kind, _, size, pad = struct.unpack(">BBHHBx", head)
                body = stream.read(size + pad)[:size]
                if kind == _STDOUT:
                    out += body
                elif kind == _STDERR:
                    raise AssertionError(body)
                elif kind == _END:
                    return out.partition(b"\r\n\r\n")[2].decode()


def _record(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBHHBx", 1, kind, 1, len(body), 0) + body


def ask(pool: Path, script: Path, uri: bytes = b"/", method: str = "GET") -> str:
    """Send php-fpm a request and wait for its answer."""
    return Asking(pool, script, uri, method).answer()


def silence(guard: Guard) -> None:
    """Remove all pins; the kernel lets go of what they held in its own time."""
    for pin in guard.home.glob(f"{PIN}*"):
        pin.unlink()


def forget_rows(guard: Guard) -> None:
    """Remove what is known of requests."""
    for key in list(guard.map("requests").keys()):
        guard.map("requests").delete(key)


def php(world: World, cwd: Path, *argv: str) -> None:
    """Run PHP's command line in the guarded cgroup."""
    subprocess.run(
        ["php", *argv],
        cwd=cwd,
        preexec_fn=lambda: join_cgroup(world.guarded),
        stdout=subprocess.DEVNULL,
        check=True,
    )
