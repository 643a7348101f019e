# SPDX-License-Identifier: GPL-2.0-or-later
"""For scenarios on kernels that take no programs of ours: rules by owner take over."""

from __future__ import annotations

import errno
import json
import subprocess

from tests.lab.lab import wait_until
from tests.vm.booted import ENFORCE, POLICY, mail_exchanger, rogue, shell, start_guardd

RULE = '[[rule]]\nname = "lists"\nuser = "list"\nverdict = "allow"\n'
REFUSED = {errno.EPERM, errno.ECONNREFUSED}


def entries(kind: str) -> list[str]:
    """Give the messages of one kind of finding."""
    match = f"SMTPGUARD_KIND={kind}"
    return shell("journalctl", "-q", "-o", "cat", match).splitlines()


def takes_over(why: str, remedy: str) -> None:
    """See that this host is told what its kernel lacks, and is guarded all the same.

    why and remedy are words of `guardctl doctor`; each act has its control.
    """
    with mail_exchanger():
        doctor = subprocess.run(
            ["guardctl", "doctor", "--json"], capture_output=True, text=True
        )
        assert doctor.returncode, doctor
        checks = map(json.loads, doctor.stdout.splitlines())
        (lacking,) = [check for check in checks if why in check["detail"]]
        print(lacking)
        assert lacking["state"] == "fail" and remedy in lacking["remedy"]

        POLICY.parent.mkdir(exist_ok=True)
        POLICY.write_text(f'require = "bpf"\n{ENFORCE}{RULE}')
        strict = subprocess.run(["guardd"], capture_output=True, text=True)
        print(strict.stderr)
        assert strict.returncode == 69 and why in strict.stderr, strict
        assert rogue("control", user="nobody") == 0, "then nothing is in force"

        start_guardd(ENFORCE + RULE)
        assert rogue("rogue", user="nobody") in REFUSED
        assert rogue("lists", user="list") == 0, "a rule knows its user"
        (met, *_) = wait_until(lambda: entries("denied"), "what the rules met")
        print(met)
        assert "nobody" in met
        assert any(why in text for text in entries("loaded")), entries("loaded")
        status = shell("guardctl", "status")
        print(status)
        assert "in force, enforce, without kernel programs" in status
        text = shell("systemctl", "show", "-P", "StatusText", "smtp-guard.service")
        assert why in text, text
        shell("systemctl", "stop", "smtp-guard.service")
        assert rogue("later", user="nobody") in REFUSED, "the rules outlive guardd"
        shell("guardctl", "unload")
        assert rogue("open", user="nobody") == 0
