# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection that was open before the guard is journalled, once, with its owner."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

from tests.kernel.world import MX4, SMTP
from tests.lab.lab import wait_until
from tests.verbs.conftest import Site

HOLD = f"""
import socket, sys
peer = socket.create_connection(("{MX4}", {SMTP}))
print(peer.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_an_open_connection_is_told_when_the_guard_is_loaded(site: Site) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout and holder.stdin
        port = int(holder.stdout.readline())
        assert site.load().status == 0
        asked = ("who-connected", "--json", "--from-port", str(port))
        asked += ("--pid", str(holder.pid))
        wait_until(lambda: "pre-existing" in site.ctl(*asked).text, "the finding")
        assert site.load().status == 0  # adopts: nothing is told again
        (row,) = (json.loads(line) for line in site.ctl(*asked).text.splitlines())
    finally:
        holder.communicate("")
    assert row["kind"] == "pre-existing"
    assert row["dst"] == {"addr": MX4, "port": SMTP}
    assert row["args"][-1] == HOLD
    assert row["exe"].startswith("/usr/bin/python3")
    assert row["direction"] == "outbound"
    assert "from-proc" in row["incomplete"]


def test_other_ports_are_nobodys_business(site: Site) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        port = client.getsockname()[1]
        assert site.load().status == 0
        asked = ("who-connected", "--from-port", str(port), "--since", "-1min")
        assert "pre-existing" not in site.ctl(*asked, "--json").text
