# SPDX-License-Identifier: GPL-2.0-or-later
"""What our programs need of this kernel, and what to do where it is missing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from guard.checks import Check, State, good
from guard.errors import KernelError

BTF = Path("/sys/kernel/btf/vmlinux")
LOCKDOWN = Path("/sys/kernel/security/lockdown")  # kernel_lockdown(7)
_OLDEST = (5, 19)  # bpf_loop(), bpf_skc_to_mptcp_sock()
_TESTED = (6, 1)
# Of a load that may go well in a while. EAGAIN is also the verifier's, when a signal
# came; EBUSY another's hold of the same hook. All others are this kernel's last word.
_PASSING = frozenset(
    (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM, errno.ENOBUFS)
    + (errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)
)


def needs() -> Iterator[Check]:
    """Ask for each; what is BAD keeps the programs from being loaded."""
    yield _release()
    yield _btf()
    yield from _lockdown()


def explained(error: KernelError) -> KernelError:
    """Give the error of a load as what this kernel lacks, where it lacks something.

    libbpf and the verifier name the first thing that failed, not why.
    """
    lacking = [check for check in needs() if check.state is State.BAD]
    if not lacking:
        return error
    why = "; ".join(check.detail for check in lacking)
    remedy = "\n  ".join(check.remedy for check in lacking)
    return KernelError(f"{why}: {error.args[0]}", error.errno, hint=remedy)


def passes(error: KernelError) -> bool:
    """Tell whether a load that ended in this error may go well in a while."""
    lacks = any(check.state is State.BAD for check in needs())
    return error.errno in _PASSING and not lacks


def _release() -> Check:
    release = os.uname().release
    numbers = tuple(int(n) for n in release.split("-")[0].split(".")[:2])
    remedy = "run Linux 6.1 or later, as Debian 12 has it"
    if numbers < _OLDEST:
        return Check("kernel", State.BAD, f"Linux {release} is too old", remedy)
    if numbers < _TESTED:
        old = f"Linux {release}: older than any the guard was tested on"
        return Check("kernel", State.WARN, old, remedy)
    return good("kernel", f"Linux {release}")


def _btf() -> Check:
    if not BTF.exists():
        return Check(
            "BTF",
            State.BAD,
            f"{BTF} is missing: this kernel does not describe itself",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (Debian's are)",
        )
    return good("BTF", f"{BTF}")


def _lockdown() -> Iterator[Check]:
    try:
        locked = "[confidentiality]" in LOCKDOWN.read_text()
    except OSError:  # built without it, or securityfs is not mounted
        return
    if locked:
        yield Check(
            "lockdown",
            State.BAD,
            "this kernel is locked down for confidentiality: no program may read "
            "its memory, as ours must to tell who connects",
            "boot with lockdown=integrity, which is what Secure Boot asks for",
        )
