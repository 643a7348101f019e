# SPDX-License-Identifier: GPL-2.0-or-later
"""Two guardds, and a guardd that may not: one line, a status, nothing disturbed."""

from __future__ import annotations

import subprocess
import sys
import threading

from guard import kernel
from tests.faults.site import CHECKOUT, Guardd, Site, policy


def test_a_second_guardd_disturbs_nothing(site: Site) -> None:
    guardd = site.start()
    before = site.guard.attachments()
    about = site.guard.about()
    control = bytes(site.guard.control())
    open_policy = site.folder / "open.toml"
    open_policy.write_text(policy(site.port, allow="user = 0"))
    load = site.load(pause_us=20)
    for _ in range(3):
        second = Guardd(site, policy=str(open_policy))
        assert second.process.wait(20) == 75  # EX_TEMPFAIL
        said = second.said()
        assert said.startswith(f"guardd: another guardd serves {site.pin_dir}")
        assert "Traceback" not in said
    tally = site.tally(load)
    assert tally.tried == tally.denied > 100
    assert site.guard.attachments() == before, "programs were swapped"
    assert bytes(site.guard.control()) == control
    now = site.guard.about()  # the first one goes on writing into it, and counts mail
    about.pop("mail", None)
    assert {name: now.get(name) for name in about} == about
    ledger = site.settled(guardd)
    assert len(ledger.findings) == ledger.judged == tally.tried
    assert ledger.kinds["loaded"] == 1


def test_two_that_start_at_once(site: Site) -> None:
    for _ in range(3):
        both = [Guardd(site), Guardd(site)]
        ends: list[Guardd] = []
        for guardd in both:
            waiter = threading.Thread(target=guardd.process.wait, daemon=True)
            waiter.start()
            waiter.join(1.5)
            if guardd.process.poll() is not None:
                ends.append(guardd)
        [loser] = ends
        assert loser.process.returncode == 75, loser.said()
        winner = both[1 - both.index(loser)].ready()
        assert site.connect(3).denied == 3
        assert winner.end() == 0


def test_not_as_an_ordinary_user(site: Site) -> None:
    """The interpreter and checkout of a developer may be root's: import it all
    as root, then become nobody."""
    code = (
        "import os, sys; from guard import daemon\n"
        "os.setgid(65534); os.setuid(65534); daemon.main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--pin-dir", str(site.pin_dir)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77  # EX_NOPERM
    assert done.stderr.count("\n") == 1
    assert "must be run as root" in done.stderr
    assert done.stdout == ""
    assert not site.pin_dir.exists()


def test_the_record_names_the_guardd_that_runs(site: Site) -> None:
    guardd = site.start()
    assert kernel.Guard(site.pin_dir).about()["pid"] == guardd.process.pid
    guardd.end()
    assert "pid" not in site.guard.about()
