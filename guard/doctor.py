# SPDX-License-Identifier: GPL-2.0-or-later
"""Is every promise in force on this host right now, and if not, what to do?"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from guard import kernel
from guard.abi import Mode
from guard.checks import Check, State, good
from guard.errors import GuardError, KernelError, NotLoaded
from guard.firewalls import firewalls, run
from guard.force import daemon_pid
from guard.journal import SOCKET
from guard.kernel import Guard
from guard.needs import needs
from guard.ownerrules import examine as without_programs
from guard.ownerrules import read_state
from guard.policy import DEFAULT_PORTS
from guard.requests import survey
from guard.smarthost import describe, in_words
from guard.tables import guarded_ports
from guard.verify import verify


def examine(pin_dir: Path) -> Iterator[Check]:
    """Answer every question, from the kernel up to the mail server."""
    yield from needs()
    yield _libbpf()
    yield _cgroup2()
    yield _jit()
    yield _journald()
    yield from _guard(pin_dir)
    yield from _firewalls(pin_dir)
    yield from _postfix()


def _libbpf() -> Check:
    try:
        library = ctypes.CDLL("libbpf.so.1")
    except OSError:
        return Check(
            "libbpf", State.BAD, "libbpf.so.1 is missing", "apt install libbpf1"
        )
    library.libbpf_version_string.restype = ctypes.c_char_p
    return good("libbpf", library.libbpf_version_string().decode())


def _cgroup2() -> Check:
    try:
        return good("cgroup2", f"mounted at {kernel.find_cgroup2()}")
    except KernelError as error:
        return Check("cgroup2", State.BAD, str(error), error.hint)


def _jit() -> Check:
    path = Path("/proc/sys/net/core/bpf_jit_enable")
    try:
        enabled = path.read_text().strip() != "0"
    except OSError:
        return Check("JIT", State.NOTE, f"{path} cannot be read")
    if not enabled:
        return Check(
            "JIT",
            State.WARN,
            "programs are interpreted, every connect() pays for it",
            "sysctl -w net.core.bpf_jit_enable=1",
        )
    return good("JIT", "on")


def _journald() -> Check:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(SOCKET)
        except OSError:
            return Check(
                "journald",
                State.BAD,
                f"nobody serves {SOCKET}: findings wait in the kernel's ring",
                "systemctl start systemd-journald",
            )
    if not Path("/var/log/journal").is_dir():
        return Check(
            "journald",
            State.WARN,
            "findings are kept in memory and end with the next boot",
            "mkdir /var/log/journal && systemctl restart systemd-journald",
        )
    return good("journald", "takes findings and keeps them over a boot")


def _guard(pin_dir: Path) -> Iterator[Check]:
    try:
        guard = Guard(pin_dir)
        yield from verify(guard)
    except NotLoaded as error:
        if state := read_state(pin_dir):
            yield from without_programs(state, pin_dir)
        else:
            yield Check("guard", State.BAD, str(error), error.hint)
        return
    except GuardError as error:
        yield Check("guard", State.BAD, str(error), error.hint)
        return
    if guard.mode is Mode.OBSERVE:
        yield Check(
            "mode",
            State.NOTE,
            "observe: nothing is denied yet",
            'guardctl plan tells who would be; then mode = "enforce"',
        )
    else:
        yield good("mode", "enforce")
    yield _php(guard)
    pid = daemon_pid(guard)
    if pid is None:
        yield Check(
            "guardd",
            State.WARN,
            "not running: what is denied stays denied, but nobody journals",
            "systemctl start smtp-guard",
        )
    else:
        yield good("guardd", f"pid {pid}")
    yield from _smart_host(guard)


def _smart_host(guard: Guard) -> Iterator[Check]:
    about = describe(guard.about().get("smart_host"))
    if about is None:
        return
    if about["trouble"] or not about["addresses"]:
        yield Check(
            "smart host",
            State.WARN,
            in_words(about),
            "what is known stays in force; systemctl status smtp-guard-names",
        )
    else:
        yield good("smart host", in_words(about))


def _php(guard: Guard) -> Check:
    with_probes, without = survey(guard.home)
    if without:
        return Check(
            "PHP",
            State.NOTE,
            f"{', '.join(map(str, without))}: its scripts are known by arguments or "
            "folder alone, it has no probes, or guardd did not look yet",
            "a PHP that was built with --enable-dtrace, as Debian's is",
        )
    if not with_probes:
        return Check("PHP", State.NOTE, "not installed where distributions have it")
    return good("PHP", f"{with_probes} files tell which script they are at")


def _firewalls(pin_dir: Path) -> Iterator[Check]:
    mark, ports, group = 0, DEFAULT_PORTS, 0
    with contextlib.suppress(GuardError):
        guard = Guard(pin_dir)
        about = guard.about()
        if (about.get("backstop") or {}).get("kind", "off") != "off":
            mark, ports = int(guard.policy().mark), guarded_ports(guard.control())
            group = int(about["backstop"].get("group", 0))
    yield from firewalls(mark, ports, group)


def _postfix() -> Iterator[Check]:
    if shutil.which("postconf") is None:
        yield Check("postfix", State.NOTE, "not installed")
        return
    answer = run(["postconf", "-h", "smtpd_client_port_logging"])
    if answer is None:
        yield Check("postfix", State.NOTE, "installed, not configured")
    elif answer.strip() != "yes":
        yield Check(
            "postfix",
            State.WARN,
            "its log has no client ports: a connection cannot be joined to a queue id",
            "postconf -e smtpd_client_port_logging=yes && postfix reload",
        )
    else:
        yield good("postfix", "logs client ports")
