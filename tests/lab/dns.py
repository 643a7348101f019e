# SPDX-License-Identifier: GPL-2.0-or-later
"""The internet's name server: BIND 9, with zones that a test changes at will."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time

from tests.lab.lab import INTERNET, ROUTER4, SCRATCH, Lab, wait_until

NAMED_CONF = f"""\
options {{
    directory "{SCRATCH}";
    listen-on port 53 {{ {ROUTER4}; }};
    listen-on-v6 {{ none; }};
    pid-file none;
    session-keyfile none;
    recursion no;
    notify no;
    minimal-responses yes;
    max-records-per-type 0;
}};
controls {{ }};
"""
# What a resolver sees: serial numbers of zones, by dnspython.
SERIAL = f"""\
import dns.resolver, sys
ask = dns.resolver.Resolver(configure=False)
ask.nameservers = ["{ROUTER4}"]
print(ask.resolve(sys.argv[1], "SOA", lifetime=5)[0].serial)
"""
_serials = itertools.count(1)


class NameServer:
    """named(8) in the lab's internet, asked by the lab's host."""

    def __init__(self, lab: Lab) -> None:
        """Start with no zone, and have the host ask it."""
        self.lab = lab
        self._zones: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        lab.write("/etc/resolv.conf", f"nameserver {ROUTER4}\noptions attempts:1\n")

    def start(self) -> None:
        """Start it; set() waits until it serves."""
        self._process = self.lab.start(
            ["named", "-g", "-n", "1", "-c", f"{SCRATCH}/named.conf"],
            where=INTERNET,
            unit="named.service",
            output=f"{SCRATCH}/named.log",
        )

    def stop(self) -> None:
        """End it: nobody answers then."""
        if self._process:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def set(self, zone: str, records: str) -> None:
        """Serve these records (master file lines) as zone, and wait until it does."""
        serial = next(_serials)
        text = (
            f"$ORIGIN {zone}.\n$TTL 60\n"
            f"@ 60 IN SOA ns hostmaster {serial} 60 60 60 1\n"
            f"@ 60 IN NS ns\nns 60 IN A {ROUTER4}\n{records}\n"
        )
        self.lab.write(f"{SCRATCH}/{zone}.zone", text)
        # named compares times in whole seconds, and would take this for the old file
        at = time.time() + 2 * serial
        os.utime(self.lab.path(f"{SCRATCH}/{zone}.zone"), (at, at))
        self.lab.check(["named-checkzone", zone, f"{SCRATCH}/{zone}.zone"])
        self._zones[zone] = f'zone "{zone}" {{ type primary; file "{zone}.zone"; }};'
        self.lab.write(
            f"{SCRATCH}/named.conf", NAMED_CONF + "\n".join(self._zones.values())
        )
        if self._process is None:
            self.start()
        else:  # it answers, so it has its handlers
            self._process.send_signal(signal.SIGHUP)
        try:
            wait_until(lambda: self._serial(zone) == str(serial), f"{zone} {serial}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self._log()}") from None

    def _serial(self, zone: str) -> str:
        assert self._process
        if self._process.poll() is not None:
            raise RuntimeError(f"named ended: {self._log()}")
        done = self.lab.run(["python3", "-c", SERIAL, zone])
        return done.stdout.strip() if done.returncode == 0 else ""

    def _log(self) -> str:
        return self.lab.path(f"{SCRATCH}/named.log").read_text()[-3000:]
