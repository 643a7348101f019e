# SPDX-License-Identifier: GPL-2.0-or-later
"""What guardd tells systemd, sd_notify(3), and what it costs the host."""

from __future__ import annotations

import re
from pathlib import Path

from guard.ringbuf import ring_backlog
from tests.faults.site import Guardd, Site

RSS_LIMIT_KB = 45 * 1024


def test_what_systemd_hears(site: Site) -> None:
    guardd = site.start()
    assert guardd.messages[0] == "READY=1"
    guardd.until(lambda: "WATCHDOG=1" in "\n".join(guardd.messages), "WATCHDOG")
    assert site.connect(7).denied == 7
    guardd.until(lambda: "7 connects judged, 7 denied" in guardd.status, "STATUS")
    assert guardd.status.startswith("enforce: ")

    guardd.reload()
    before_ready = guardd.messages[: _last(guardd.messages, "READY=1")]
    [reloading] = [m for m in before_ready if m.startswith("RELOADING=1")]
    # systemd.service(5), Type=notify-reload: both in one message
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)

    assert guardd.end() == 0
    assert guardd.messages[-1] == "STOPPING=1"


def test_a_failed_start_says_why(site: Site) -> None:
    site.write_policy("nonsense")
    guardd = Guardd(site)
    assert guardd.process.wait(20) == 78
    assert "READY=1" not in guardd.messages
    assert "not TOML" in guardd.status


def test_the_watchdog_goes_on_while_journald_hangs(site: Site) -> None:
    """A restart would not help: findings wait in the kernel."""
    guardd = site.start()
    site.journald.pause()
    site.connect(500)
    guardd.until(lambda: "does not take" in guardd.status, "the trouble")
    beats = sum("WATCHDOG=1" in message for message in guardd.messages)
    guardd.until(
        lambda: sum("WATCHDOG=1" in m for m in guardd.messages) > beats + 2, "beats"
    )
    site.journald.resume()


def test_memory_after_20000_findings(site: Site) -> None:
    guardd = site.start()
    ring = site.guard.map("ring")
    for _ in range(20):
        assert site.connect(1000).denied == 1000
        guardd.until(lambda: not ring_backlog(ring.fd), "an empty ring")
    ledger = site.settled(guardd)
    assert len(ledger.findings) == 20000
    assert ledger.lost == ledger.doubles == 0
    rss = resident_kb(guardd.process.pid)
    print(f"guardd: {rss / 1024:.1f} MB resident")
    assert rss <= RSS_LIMIT_KB


def resident_kb(pid: int) -> int:
    """Give VmRSS, the pages of the ring that are mapped included."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)
    assert found
    return int(found[1])


def _last(messages: list[str], text: str) -> int:
    return len(messages) - 1 - messages[::-1].index(text)
