# SPDX-License-Identifier: GPL-2.0-or-later
"""make run: guardd on this host in observe mode, findings as they come.

Under a pin folder of its own and unloaded at the end, so that a guard which is
in force here stays alone. Where no journald runs (a container) it starts one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.journald import shared

CHECKOUT = Path(__file__).resolve().parents[1]
GUARDD, GUARDCTL = (
    str(Path(sys.executable).parent / p) for p in ("guardd", "guardctl")
)
PINS = "/sys/fs/bpf/smtp-guard-run"


def main(options: list[str]) -> int:
    """Watch until SIGINT or SIGTERM; options are guardd's own."""
    # both reach guardd as well, which ends first
    signal.signal(signal.SIGTERM, lambda *_: guardd.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    policy = str(CHECKOUT / "policies/default.toml")
    with shared():
        print("Watching this host, denying nothing. Ctrl-C ends it and unloads.")
        print("In another terminal: guardctl who-connected", flush=True)
        guardd = subprocess.Popen(
            [GUARDD, "--policy", policy, "--pin-dir", PINS, "--foreground"] + options,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        status = guardd.wait()
        unload = [GUARDCTL, "--pin-dir", PINS, "unload"]
        if Path(PINS).exists():
            subprocess.run(unload, check=False)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
