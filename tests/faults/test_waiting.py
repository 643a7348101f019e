# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd --wait, as its unit runs it, where nothing can be put in force for now.

The control is the same guardd without --wait, which ends: test_notify.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from guard.ownerrules import STATE_DIR
from guard.waiting import pause
from tests.faults.site import CHECKOUT, Guardd, Site, policy

BAD_POLICY = 78


def waiting(site: Site, text: str) -> Guardd:
    site.write_policy(text)
    guardd = Guardd(site, "--wait").ready()
    guardd.until(lambda: guardd.status.startswith("NOT IN FORCE"), "STATUS")
    assert site.connect().passed == 1, "nothing guards"
    return guardd


def refusals(site: Site) -> list[str]:
    return [entry["MESSAGE"] for entry in site.entries("policy-refused")]


def told_file(site: Site) -> Path:
    return STATE_DIR / f"{site.pin_dir.name}.told"


def beats(guardd: Guardd) -> int:
    return sum("WATCHDOG=1" in message for message in guardd.messages)


def test_a_bad_policy_is_told_once_and_the_corrected_one_put_in_force(
    site: Site,
) -> None:
    guardd = waiting(site, "nonsense")
    assert "not TOML" in guardd.status
    was = beats(guardd)
    guardd.until(lambda: beats(guardd) > was + 2, "the watchdog is fed")
    (told,) = refusals(site)
    assert told.startswith("NOT IN FORCE") and "not TOML" in told
    pid = guardd.process.pid
    site.write_policy(policy(site.port))
    guardd.until(lambda: site.connect().denied, "the corrected policy in force")
    guardd.until(lambda: guardd.status.startswith("enforce"), "STATUS")
    assert site.guard.about()["pid"] == pid, "the process that systemd knows"
    guardd.until(lambda: site.entries("policy-loaded"), "the finding")
    guardd.reload()  # its signals are caught again
    assert guardd.end() == 0
    assert "STOPPING=1" not in guardd.messages[:-1], "systemd would kill it"


def test_it_is_told_again_only_when_it_is_another(site: Site) -> None:
    guardd = waiting(site, "nonsense")
    # by hand, in vain: the same, and again the same
    for _ in range(3):
        ready = count(guardd)
        guardd.send(signal.SIGHUP)
        guardd.until(lambda n=ready: count(guardd) > n, "another try")
    # as systemd starts it anew, and as the other unit meets it at the next start
    guardd.end(signal.SIGKILL)
    guardd = waiting(site, "nonsense")
    argv = [sys.executable, "-m", "guard.cli.main", "--pin-dir", str(site.pin_dir)]
    argv += ["load", "--policy", str(site.policy_file)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == BAD_POLICY, done
    assert len(refusals(site)) == 1
    assert told_file(site).exists()
    site.write_policy("mode = 1\n")
    guardd.until(lambda: len(refusals(site)) == 2, "another cause, told")
    site.write_policy(policy(site.port))
    guardd.until(lambda: site.connect().denied, "the policy in force")
    guardd.until(lambda: not told_file(site).exists(), "that it is over")


def count(guardd: Guardd) -> int:
    return sum(message.startswith("READY=1") for message in guardd.messages)


def test_what_is_in_force_stays_while_it_waits(site: Site) -> None:
    """As when another guardd serves it."""
    first = site.start()
    second = Guardd(site, "--wait")
    second.until(lambda: "another guardd serves" in second.status, "STATUS")
    assert second.status.startswith("what is in force stays")
    assert site.connect().denied == 1
    assert refusals(site) == []
    assert first.end() == 0
    second.until(lambda: second.status.startswith("enforce"), "it takes over", 90)
    assert site.connect().denied == 1


def test_what_somebody_loads_meanwhile_is_served(site: Site) -> None:
    guardd = waiting(site, "nonsense")
    good = site.folder / "good.toml"
    good.write_text(policy(site.port))
    argv = [sys.executable, "-m", "guard.cli.main", "--pin-dir", str(site.pin_dir)]
    argv += ["load", "--policy", str(good), "--cgroup", str(site.cgroup)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done
    guardd.until(lambda: guardd.status.startswith("enforce"), "STATUS")
    assert "the old one is in force" in guardd.status
    assert site.connect().denied == 1
    guardd.until(lambda: site.entries("denied"), "the finding")


def test_it_ends_when_it_is_told_to(site: Site) -> None:
    assert waiting(site, "nonsense").end() == 0


def test_it_waits_longer_each_time_and_never_for_ever() -> None:
    pauses = [pause(count) for count in range(30)]
    assert pauses[:3] == [2, 4, 8] and pauses == sorted(pauses)
    assert max(pauses) == 300
