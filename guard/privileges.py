# SPDX-License-Identifier: GPL-2.0-or-later
"""What this process may do: its capabilities in effect, capabilities(7).

guardd runs as a user of its own with the few it needs, or by hand as root; what it
asks is never who it is. units/smtp-guard.service gives the reason for each.
"""

from __future__ import annotations

import enum
from pathlib import Path


class Capability(enum.IntEnum):
    """Those that something of ours needs, include/uapi/linux/capability.h."""

    CAP_DAC_READ_SEARCH = 2
    CAP_NET_ADMIN = 12
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_PERFMON = 38
    CAP_BPF = 39


ACCOUNT = "smtp-guard"  # units/smtp-guard.sysusers

# To load and attach our kernel programs.
KERNEL = (Capability.CAP_BPF, Capability.CAP_PERFMON)
# To have rules in netfilter, and to see in /proc whose a packet is.
SERVICE = (Capability.CAP_NET_ADMIN, Capability.CAP_SYS_PTRACE)
# Linux lets the one stand for these: bpf_capable(), include/linux/capability.h.
_CONTAINED = frozenset(KERNEL)


def missing(*wanted: Capability) -> list[str]:
    """Name those of the wanted capabilities that are not in effect."""
    words = Path("/proc/self/status").read_text().partition("\nCapEff:")[2].split()
    held = int(words[0], 16)  # proc_pid_status(5)

    def has(capability: Capability) -> bool:
        return bool(held >> capability & 1)

    return [
        capability.name
        for capability in wanted
        if not has(capability)
        and not (capability in _CONTAINED and has(Capability.CAP_SYS_ADMIN))
    ]


def may_serve() -> bool:
    """Tell whether this process may put a guard in force, in one design at least."""
    return not missing(*SERVICE)
