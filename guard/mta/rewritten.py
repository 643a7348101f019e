# SPDX-License-Identifier: GPL-2.0-or-later
"""Mail that originated on this host and got an SRS sender all the same.

It needs none, and if it came without From:, cleanup(8) makes one of that sender. What
came in by pickup(8), from an address of the host itself, or from who had logged in
originated here; qmgr(8) names the sender that came of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from guard.mta.maillog import Log, Logged, LogLine, parse_line
from guard.mta.srs import NotSrs, Srs, decode

_QMGR = re.compile(r"([0-9A-Za-z]+): from=<(.*)>, size=[0-9]+, nrcpt=.*", re.DOTALL)
# What a content filter gave back: its first line tells where it came from before.
_RETURNED = re.compile(r", orig_client=[^\[,]*\[([^\]]+)\]")
_WAITING = 65_536  # messages between smtpd(8) and qmgr(8), at most


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A message of this host's own with an SRS sender."""

    queue_id: str
    time_us: int  # CLOCK_REALTIME
    submitted: Logged  # how it came in: uid and sender, or client and login
    sender: str  # as it was rewritten
    srs: Srs


def rewritten(log: Log, own: frozenset[str]) -> Iterator[Rewritten]:
    """Give these messages, in the order of the log; own: the host's addresses.

    Raises what reading the log raises.
    """
    here: OrderedDict[str, Logged] = OrderedDict()
    for line in log():
        logged = parse_line(line)
        if logged and (logged.uid is not None or logged.client):
            here.pop(logged.queue_id, None)  # used anew
            if _originated_here(logged, line, own):
                here[logged.queue_id] = logged
                if len(here) > _WAITING:
                    here.popitem(last=False)
        elif line.program.rpartition("/")[2] == "qmgr":
            found = _QMGR.fullmatch(line.text)
            # a deferred message comes by again: told once
            if found and (submitted := here.pop(found[1], None)):
                try:
                    srs = decode(found[2])
                except NotSrs:
                    continue
                yield Rewritten(found[1], line.time_us, submitted, found[2], srs)


def _originated_here(logged: Logged, line: LogLine, own: frozenset[str]) -> bool:
    if logged.uid is not None or logged.sasl_user:
        return True
    returned = _RETURNED.search(line.text)
    client = returned[1] if returned else logged.client and logged.client[0]
    try:
        address = ipaddress.ip_address(client or "")
    except ValueError:  # unknown
        return False
    return address.is_loopback or str(address) in own
