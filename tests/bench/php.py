# SPDX-License-Identifier: GPL-2.0-or-later
"""What PHP's probes cost a web request: nginx, php-fpm and ab(1), in turns.

Two copies of Debian's php-fpm: guardd's own code attaches to one, and not to the
other, which others than root can write.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from guard import libbpf
from guard.kernel import Guard
from guard.requests import Requests
from tests.bench.figure import Figure, Meter, bpf_stats
from tests.faults.site import Site
from tests.kernel.phphost import fpm, fpm_program
from tests.kernel.world import PROGRAMS, PROGRAMS_PREFIX, World
from tests.lab.lab import wait_until

# Short turns: both sides then meet the same of what else the machine does.
ROUNDS, REQUESTS, AT_ONCE = 301, 100, 1
SIDES = ("without", "with")
NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    fastcgi_temp_path {folder}/fastcgi;
    proxy_temp_path {folder}/proxy;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    fastcgi_param SCRIPT_FILENAME {folder}/trivial.php;
    fastcgi_param SCRIPT_NAME $uri;
    fastcgi_param REQUEST_METHOD $request_method;
    server {{
        listen 127.0.0.1:8080;
        location /without {{ fastcgi_pass unix:{folder}/without/shop.sock; }}
        location /with {{ fastcgi_pass unix:{folder}/with/shop.sock; }}
    }}
}}
"""


def measure(_: Site) -> list[Figure]:
    """Send requests to both in turns."""
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        stack.enter_context(world.inside(world.host))
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(
                    dir=PROGRAMS, prefix=f"{PROGRAMS_PREFIX}{os.getpid()}-"
                )
            )
        )
        folder.chmod(0o755)
        masters: dict[str, int] = {}
        (folder / "trivial.php").write_text('<?php echo "hello\\n";\n')
        for side, mode in zip(SIDES, (0o775, 0o755), strict=True):
            (folder / side).mkdir()
            program = folder / side / Path(fpm_program()).name
            shutil.copy(fpm_program(), program)
            program.chmod(mode)
            started = fpm(folder / side, world.guarded, str(program))
            masters[side] = stack.enter_context(started).pid
        stack.enter_context(_nginx(folder))
        guard = Guard.load(world.pin_dir)
        stack.callback(guard.unload)
        requests = Requests(guard)
        requests.look()
        assert not requests.trouble, requests.trouble
        _prove(guard)
        took: dict[str, list[float]] = {side: [] for side in SIDES}
        spent: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(ROUNDS + 1):
            for side in SIDES if number % 2 else SIDES[::-1]:
                before = _on_cpu_us(masters[side])
                us = _ab(side)
                if number:  # the first warms up
                    took[side].append(us)
                    on_cpu = _on_cpu_us(masters[side]) - before
                    spent[side].append(on_cpu / REQUESTS)
    without, with_ = (median(took[side]) for side in SIDES)
    cpu_without, cpu_with = (median(spent[side]) for side in SIDES)
    return [
        Figure.at_most(
            "a request to a trivial PHP script, with the probes / without",
            1.03,
            with_ / without,
            "x",
            f"{with_:.0f} us / {without:.0f} us, nginx and php-fpm, {AT_ONCE} at once;"
            f" medians of {ROUNDS} turns of {REQUESTS} requests by ab",
        ),
        Figure.told(
            "the same, time of php-fpm's worker on a CPU",
            f"{cpu_with / cpu_without:.2f}x",
            f"{cpu_with:.1f} us / {cpu_without:.1f} us",
        ),
    ]


@contextlib.contextmanager
def _nginx(folder: Path) -> Iterator[None]:
    for side in SIDES:  # both to whom nginx runs as
        (folder / side / "shop.sock").chmod(0o666)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder))
    process = subprocess.Popen(["nginx", "-c", str(config), "-e", f"{folder}/log"])
    try:
        wait_until((folder / "nginx.pid").exists, "nginx")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _prove(guard: Guard) -> None:
    """See that the one tells each request, and the other none."""
    program = next(guard.home.glob("php-*-php_startup"))
    number = libbpf.info(libbpf.get_pinned(program), libbpf.LinkInfo).prog_id
    with bpf_stats():
        meter = Meter(libbpf.program_by_id(number))
        for side, runs in zip(SIDES, (0, REQUESTS), strict=True):
            before = meter.runs
            _ab(side)
            meter.lap()
            assert meter.runs - before >= runs
            assert runs or meter.runs - before < REQUESTS // 10


def _on_cpu_us(master: int) -> float:
    """Give how long the workers of a php-fpm have run: Documentation/scheduler/
    sched-stats.rst, schedstat of a process.
    """
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    stats = (Path(f"/proc/{child}/schedstat").read_text() for child in children)
    return sum(int(stat.split()[0]) for stat in stats) / 1000


def _ab(side: str) -> float:
    """Give microseconds a request, as one of those at once has to wait for it."""
    done = subprocess.run(
        ["ab", "-q", "-n", str(REQUESTS), "-c", str(AT_ONCE)]
        + [f"http://127.0.0.1:8080/{side}/x.php"],
        capture_output=True,
        text=True,
        check=True,
    )

    def said(what: str) -> str:
        found = re.search(rf"^{what}: +([\d.]+)", done.stdout, re.MULTILINE)
        assert found, done.stdout
        return found[1]

    assert "Non-2xx" not in done.stdout, done.stdout
    assert (said("Complete requests"), said("Failed requests")) == (str(REQUESTS), "0")
    return 1e6 / float(said("Requests per second"))
