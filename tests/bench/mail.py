# SPDX-License-Identifier: GPL-2.0-or-later
"""What a message costs: Postfix's question to guardd, and mail through smtpd.

In a lab of its own, with a real Postfix: see tests/mta.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

from tests.bench.figure import Figure
from tests.faults.site import Site
from tests.lab import Lab
from tests.lab.guarded import Guard, start_journald
from tests.lab.lab import CHECKOUT, HOST
from tests.mta.desk import Desk
from tests.mta.mailhost import POLICY, SOCKET, MailHost
from tests.mta.test_delegation import changed

ASKED, ROUNDS, MESSAGES, SESSIONS = 2000, 21, 400, 4
SETTLE_SECONDS = 0.3
PAUSE_SECONDS = 0.002  # no smtpd asks again in the moment it was answered
YARDSTICKS = ("real", "bare")  # of trivial.py
# 465 is guarded as 25 is, and its smtpd asks nobody.
WITH, WITHOUT = 25, 465
# Nobody is refused: what is measured is how long it takes to find that out.
DECIDES = """\
relay_mynetworks = false
mode = "observe"

[[mta.limit]]
name = "users"
by = "user"
messages_per_hour = 1000000
action = "defer"

[[mta.limit]]
name = "units"
by = "unit"
recipients_per_minute = 1000000
action = "reject"
"""
MASTER_CF = f"""\
{WITHOUT} inet n - y - - smtpd
  -o smtpd_end_of_data_restrictions=
"""
MAIN_CF = """\
max_use = 100
default_transport = discard:
transport_maps =
"""
SPOOL = "/var/spool/postfix"


class BenchHost(MailHost):
    """The same, and what it takes it throws away."""

    def __init__(self, lab: Lab, spool: str) -> None:
        """Configure, but do not start; queue in this folder, or "": in memory."""
        super().__init__(lab)
        if spool:
            os.chmod(spool, 0o755)  # as Postfix's own
            lab.check(["cp", "-a", f"{SPOOL}/.", spool])
            lab.check(["mount", "--bind", spool, SPOOL])
        for name, more in (("main.cf", MAIN_CF), ("master.cf", MASTER_CF)):
            path = lab.path(f"/etc/postfix/{name}")
            path.write_text(path.read_text() + more)


def measure(_: Site) -> list[Figure]:
    """Ask both servers in turns; send through both smtpds in turns."""
    # what outlasts a reboot, as a queue must: a disk, not memory
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, _desk(folder) as desk:
        figures = [*_answers(desk), *_throughput(desk, 0.9, "the queue on this disk")]
        desk.guard.apply(POLICY + DECIDES)
        figures += _answers(desk, " that decides and counts")
    with _desk("") as desk:
        figures += _throughput(desk, None, "the queue in memory: fsync is free")
    return figures


@contextlib.contextmanager
def _desk(spool: str) -> Iterator[Desk]:
    with Lab() as lab:
        start_journald(lab)
        postfix = BenchHost(lab, spool)
        postfix.start()
        desk = Desk(lab, postfix, Guard(lab, POLICY, prints=False))
        desk.start_guard()
        yield desk
        desk.guard.stop()


def _answers(desk: Desk, what: str = "") -> list[Figure]:
    servers = [_yardstick(desk, which) for which in YARDSTICKS]
    # a connection that guardd finds: what most messages have
    holder = desk.hold(["/usr/bin/python3", "-c", _HOLD])
    assert holder.stdout
    port = holder.stdout.readline().strip().encode()
    request = changed(b"client_port", port) + b"\n\n"
    paths = {"guardd": SOCKET, **{which: f"/run/{which}" for which in YARDSTICKS}}
    took = {who: _Asker(desk.lab.path(path), request) for who, path in paths.items()}
    for number in range(ASKED):
        for asker in took.values():
            time.sleep(PAUSE_SECONDS)
            asker.ask(number)
    for process in (holder, *servers):
        process.kill()
    ours, real, bare = (median(asker.took_us) for asker in took.values())
    slowest = quantiles(took["guardd"].took_us, n=100)[98]
    return [
        Figure.at_most(
            f"a policy answer to Postfix{what}, median",
            1,
            ours / 1000,
            " ms",
            f"of {ASKED}, each journalled with its process; 99 % within"
            f" {slowest / 1000:.2f} ms",
        ),
        Figure.at_most(
            f"the same{what} / a server that only says DUNNO",
            1.5,
            ours / real,
            "x",
            f"{ours:.0f} us / {real:.0f} us; a thread a client, by Python's library",
        ),
        Figure.told(
            f"the same{what} / a bare loop of recv() and send()",
            f"{ours / bare:.2f}x",
            f"{ours:.0f} us / {bare:.0f} us",
        ),
    ]


def _yardstick(desk: Desk, which: str) -> subprocess.Popen[str]:
    path = f"/run/{which}"
    desk.lab.path(path).unlink(missing_ok=True)
    program = str(CHECKOUT / "tests/bench/trivial.py")
    server = desk.lab.start(
        [sys.executable, program, which, path], unit=f"system.slice/{which}.service"
    )
    assert server.stdout and server.stdout.readline() == "listens\n"
    return server


_HOLD = """\
import socket
mail = socket.create_connection(("127.0.0.1", 25))
print(mail.getsockname()[1], flush=True)
while mail.recv(1000):
    pass
"""


class _Asker:
    """One connection to a policy server, and how long its answers took."""

    def __init__(self, path: Path, request: bytes) -> None:
        self._request = request
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self.took_us: list[float] = []

    def ask(self, number: int) -> None:
        # a message of its own: one that is asked for again is not counted again
        request = self._request.replace(b"123.456.7", b"123.456.%d" % number)
        began = time.perf_counter_ns()
        self._socket.sendall(request)
        answer = self._socket.recv(100)
        self.took_us.append((time.perf_counter_ns() - began) / 1000)
        assert answer == b"action=DUNNO\n\n", answer


def _throughput(desk: Desk, target: float | None, where: str) -> list[Figure]:
    """Send by turns; a turn of one and the next of the other are a pair."""
    rates: dict[int, list[float]] = {WITH: [], WITHOUT: []}
    spent: dict[int, list[float]] = {WITH: [], WITHOUT: []}
    for number in range(ROUNDS + 1):
        for port in (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH):
            before = _on_cpu_us(desk)
            began = time.perf_counter()
            desk.run(
                ["smtp-source", "-s", str(SESSIONS), "-m", str(MESSAGES)]
                + ["-f", "app@host.example.net", "-t", "somebody@example.org"]
                + [f"127.0.0.1:{port}"],
                where=HOST,
                timeout=120,
            )
            took = time.perf_counter() - began
            time.sleep(SETTLE_SECONDS)  # what is behind it is its own as well
            if number:  # the first starts the processes
                rates[port].append(MESSAGES / took)
                spent[port].append((_on_cpu_us(desk) - before) / MESSAGES)
    ratio, cpu = (
        median(a / b for a, b in zip(values[WITH], values[WITHOUT], strict=True))
        for values in (rates, spent)
    )
    with_, without = median(rates[WITH]), median(rates[WITHOUT])
    name = "mail through smtpd, with the policy service / without"
    made_of = (
        f"{where}; {with_:.0f} a second / {without:.0f}; {SESSIONS} sessions at once, a"
        f" connection a message, guardd running for both; median of {ROUNDS} pairs"
    )
    figures = []
    if target is None:
        name += ", in memory"
        figures.append(Figure.told(name, f"{ratio:.2f}x", made_of))
    else:
        figures.append(Figure.at_least(name, target, ratio, "x", made_of))
    with_, without = median(spent[WITH]), median(spent[WITHOUT])
    made_of = f"{with_:.0f} us / {without:.0f} us: Postfix, guardd, journald, sender"
    cpu_name = f"{name}: CPU time of a message"
    return [*figures, Figure.told(cpu_name, f"{cpu:.2f}x", made_of)]


def _on_cpu_us(desk: Desk) -> float:
    """Give how long all processes of the host have run; cpu.stat, cgroups(7)."""
    stat = (desk.lab.cgroup / "cpu.stat").read_text()
    return float(dict(line.split() for line in stat.splitlines())["usage_usec"])
