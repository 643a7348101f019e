# SPDX-License-Identifier: GPL-2.0-or-later
"""What other sockets and connects pay, beside programs that do nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from guard import libbpf
from guard.abi import Counter
from tests.bench.figure import Figure, Meter, bpf_stats
from tests.faults.site import CHECKOUT, Site, policy

ROUNDS, CONNECTS = 15, 4000
# enum bpf_attach_type
EMPTY = {"empty_connect4": 10, "empty_sockops": 3, "empty_create": 2}
_WHAT = {
    "connect4": "a connect to an unguarded port",
    "sockops": "a connect to an unguarded port",
    "create": "a TCP socket",
}


def compile_empty(folder: Path) -> Path:
    """Compile the programs that do nothing, as the Makefile does ours."""
    target = folder / "empty.bpf.o"
    machine = os.uname().machine
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-c", "-o", str(target)]
        + [f"-I/usr/include/{machine}-linux-gnu"]
        + [str(CHECKOUT / "tests/bench/empty.bpf.c")],
        check=True,
    )
    return target


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """Accept and close connections on a port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def empty_programs(site: Site, cgroup: Path) -> Iterator[dict[str, Meter]]:
    """Attach the programs that do nothing to a cgroup beside the guarded one."""
    with libbpf.Object(compile_empty(site.folder)) as obj:
        obj.load()
        folder = os.open(cgroup, os.O_RDONLY)
        links = [
            libbpf.attach(obj.program(name), folder, kind)
            for name, kind in EMPTY.items()
        ]
        try:
            yield {name: Meter(obj.program(name)) for name in EMPTY}
        finally:
            for fd in (*links, folder):
                os.close(fd)


def measure(site: Site) -> list[Figure]:
    """Connect in turn from a guarded cgroup and from one with empty programs."""
    beside = site.cgroup.with_name(f"{site.cgroup.name}-empty")
    site.write_policy(policy(site.port, allow="user = 0"))
    site.start().end()
    beside.mkdir()
    ours = {
        name: Meter(libbpf.get_pinned(site.guard.home / name))
        for name in (f"guard_{hook}" for hook in _WHAT)
    }
    laps: dict[str, list[float]] = {name: [] for name in (*ours, *EMPTY)}
    try:
        with empty_programs(site, beside) as empty, listening() as port, bpf_stats():
            for _ in range(ROUNDS):
                for cgroup, meters in ((site.cgroup, ours), (beside, empty)):
                    for meter in meters.values():
                        meter.lap()
                    site.connect(CONNECTS, port=port, cgroup=cgroup)
                    for name, meter in meters.items():
                        laps[name].append(meter.lap())
    finally:
        beside.rmdir()
    ns = {name: median(values) for name, values in laps.items()}
    assert site.count(Counter.JUDGED) == 0, "it was a guarded port"
    return [
        Figure.at_most(
            f"{what}: {hook} / empty {hook}",
            2,
            ns[f"guard_{hook}"] / ns[f"empty_{hook}"],
            "x",
            f"{ns[f'guard_{hook}']:.0f} ns a run / {ns[f'empty_{hook}']:.0f} ns",
        )
        for hook, what in _WHAT.items()
    ]
