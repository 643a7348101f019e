# SPDX-License-Identifier: GPL-2.0-or-later
"""What guardd and its admin do themselves is no tampering, also under load."""

from __future__ import annotations

import signal
import subprocess

from tests.faults.site import Site
from tests.tamper.acts import OPEN, SHUT, all_good, begin, rounds, text, told
from tests.verbs.conftest import run


def test_no_false_alarm(site: Site) -> None:
    begin(site, "repair").end()
    site.folder.chmod(0o755)
    program = site.folder / "bin/connects"
    site.install(program)
    rule = f'[[local.rule]]\nname = "exe"\nexe = "{program}"\nverdict = "allow"\n'
    site.write_policy(text(site, SHUT + rule, "repair"))
    guardd = site.start(netns=True)  # adopts what is there
    load = site.load(pause_us=200, cgroup=site.cgroup)

    for number in range(6):  # reload
        rest = SHUT + rule if number % 2 else OPEN
        site.write_policy(text(site, rest, "repair"))
        guardd.reload()
    new = site.folder / "new.toml"  # and by guardctl
    for rest in (OPEN, SHUT + rule):
        new.write_text(text(site, rest, "repair"))
        new.chmod(0o644)
        answer = run("--pin-dir", str(site.pin_dir), "policy", "apply", str(new))
        assert answer.status == 0, answer.text

    for number in range(20):  # addresses come and go, binaries are replaced
        for how in ("add", "del"):
            subprocess.run(
                ["nsenter", "-t", str(guardd.process.pid), "--net"]
                + ["ip", "addr", how, f"203.0.113.{number + 1}/32", "dev", "lo"],
                check=True,
            )
        site.install(program)
    rounds(guardd, 7)  # all rows are compared meanwhile

    answer = run("--pin-dir", str(site.pin_dir), "unload")
    assert answer.status == 75 and "another guardd" in answer.text
    answer = run(
        "--pin-dir", str(site.pin_dir), "load", "--policy", str(site.policy_file)
    )
    assert answer.status == 75
    rounds(guardd)

    guardd.end(signal.SIGKILL)
    guardd = site.start()
    rounds(guardd, 7)
    assert all_good(site)
    assert guardd.end() == 0
    assert site.tally(load).denied
    assert told(site) == []
    assert all("Traceback" not in one.said() for one in site.started)
