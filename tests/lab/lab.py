# SPDX-License-Identifier: GPL-2.0-or-later
"""A mail host and an internet in namespaces: made, used and gone without trace.

The host has a network namespace, a mount namespace and a part of the cgroup
tree of its own, so that programs run in it at their usual paths with their usual
files, and neither see nor touch this machine's: /etc and /usr/lib/postfix are
copies, /run, /srv, /var/log, /sys/fs/bpf and Postfix's directories start empty.
All of that lives in memory and ends with the last process of the lab.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import pwd
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

# Documentation prefixes, RFC 5737 and RFC 3849: they can be nobody's.
HOST4, HOST6 = "192.0.2.10", "2001:db8:1::10"
ROUTER4, ROUTER6 = "192.0.2.1", "2001:db8:1::1"
MX4, MX6 = "198.51.100.25", "2001:db8:2::25"
SMTP_PORTS = (25, 465, 587)

# Where a program runs. Unguarded is the host too, but in a cgroup beside the one
# a guard is attached to: the control of a denial differs in nothing else.
HOST, UNGUARDED, INTERNET = "host", "unguarded", "internet"
CHECKOUT = Path(__file__).resolve().parents[2]
SCRATCH = "/mnt"  # in the host's mount namespace
PREFIX = "smtp-guard-lab-"
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000  # linux/sched.h
ENVIRONMENT = {
    "PATH": f"{CHECKOUT}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": str(CHECKOUT),
    "PYTHONDONTWRITEBYTECODE": "1",
    "LANG": "C.UTF-8",
}

MOUNTS = f"""\
set -eu
mount -t tmpfs -o mode=755 lab {SCRATCH}
for dir in /etc /usr/lib/postfix; do
    mkdir -p {SCRATCH}$dir
    cp -a $dir/. {SCRATCH}$dir
    mount --bind {SCRATCH}$dir $dir
done
for dir in /run /srv /var/log /var/lib/postfix /var/spool/postfix; do
    mount -t tmpfs -o mode=755 lab $dir
done
mount -t bpf bpf /sys/fs/bpf
printf '%s\\n' >/etc/hosts '127.0.0.1 localhost' '::1 localhost' \
    '{HOST4} host.example.net' '{HOST6} host.example.net' \
    '{MX4} mx.example.org' '{MX6} mx.example.org'
# Nobody answers there, at once: a lab has no name server. Often a link to /run.
rm -f /etc/resolv.conf
echo nameserver 127.0.0.1 >/etc/resolv.conf
"""
HOST_NETWORK = f"""\
link set lo up
link add host0 type veth peer name uplink0 netns {{internet}}
addr add {HOST4}/24 dev host0
addr add {HOST6}/64 dev host0 nodad
link set host0 up
"""
INTERNET_NETWORK = f"""\
link set lo up
addr add {ROUTER4}/24 dev uplink0
addr add {ROUTER6}/64 dev uplink0 nodad
link set uplink0 up
addr add {MX4}/32 dev lo
addr add {MX6}/128 dev lo nodad
"""
HOST_ROUTES = f"route add default via {ROUTER4}\nroute add default via {ROUTER6}\n"

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


# Seconds until a test says that something will not happen: a guest under emulation, on
# a machine that has other work, may well need half of it for what takes a second.
PATIENCE = 60
# How many times as long all may take here: where processors are emulated, which
# tests/vm/inside/run says, nobody is to conclude from slowness that nothing comes.
TIMES = int(os.environ.get("PATIENCE_TIMES", "1"))


def wait_until(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """Give condition() as soon as it is true.

    Raises TimeoutError, which says what was waited for and the last answer,
    after timeout seconds, or TIMES as many.
    """
    deadline = time.monotonic() + timeout * TIMES
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"not within {timeout * TIMES} s: {what} (last: {answer!r})"
            )
        time.sleep(0.01)
    return answer


def cgroup2_mount() -> Path:
    """Find where cgroup v2 is mounted; on a hybrid host that is not the root."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(mount_point)
    raise RuntimeError("no cgroup v2 is mounted: mount -t cgroup2 none DIR")


def kill_cgroup(cgroup: Path) -> None:
    """Kill every process below cgroup, wait for their end, remove it."""
    (cgroup / "cgroup.kill").write_text("1")  # Linux 5.14
    wait_until(
        lambda: "populated 0" in (cgroup / "cgroup.events").read_text(),
        f"the end of all processes in {cgroup}",
    )
    for directory, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(directory)


def sweep() -> None:
    """Remove what labs left whose process was killed before it could."""
    for cgroup in cgroup2_mount().glob(f"{PREFIX}*"):
        maker = cgroup.name.removeprefix(PREFIX).split("-")[0]
        if not Path("/proc", maker).exists():
            try:
                kill_cgroup(cgroup)
            except OSError as error:  # another session sweeps as well
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise


@dataclass
class Done:
    """A program that has ended."""

    pid: int
    returncode: int
    stdout: str
    stderr: str


class Namespaces:
    """Namespaces kept by a cat(1): it ends when we do, however we end."""

    def __init__(self, flags: Sequence[str], cgroup: Path) -> None:
        """Make them with unshare(1)'s flags, and put the keeper into cgroup."""
        self.keeper = subprocess.Popen(
            ["unshare", *flags, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: join_cgroup(cgroup),
        )
        assert self.keeper.stdin and self.keeper.stdout
        self.keeper.stdin.write(b"there?\n")
        self.keeper.stdin.flush()
        if self.keeper.stdout.readline() != b"there?\n":
            raise RuntimeError("unshare: no namespaces (see its message above)")
        self.pid = self.keeper.pid
        self.net = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        self.mnt = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY)

    def close(self) -> None:
        """Let go of the namespaces; the keeper has been killed."""
        os.close(self.net)
        os.close(self.mnt)
        assert self.keeper.stdin and self.keeper.stdout
        self.keeper.stdin.close()
        self.keeper.stdout.close()
        self.keeper.wait()


def join_cgroup(cgroup: Path) -> None:
    """Move the calling process into a cgroup."""
    (cgroup / "cgroup.procs").write_text("0")


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace of type kind that fd is open on."""
    if _libc.setns(fd, kind) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Lab:
    """One mail host (`host`) and one internet with an MX (`internet`)."""

    def __init__(self) -> None:
        """Choose a name that no other lab of this machine has."""
        self.name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        self.base = cgroup2_mount() / self.name
        self.cgroup = self.base / HOST  # where a guard is to be attached
        self._spaces: dict[str, Namespaces] = {}
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        sweep()
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _make(self) -> None:
        self.base.mkdir()
        for place, flags in (
            # slave: what this machine unmounts goes from the lab as well
            (HOST, ["--net", "--mount", "--propagation", "slave"]),
            (INTERNET, ["--net"]),
        ):
            (self.base / place).mkdir()
            self._spaces[place] = Namespaces(flags, self.base / place)
        self._spaces[UNGUARDED] = self._spaces[HOST]
        internet = self._spaces[INTERNET].pid
        self.check(["sh", "-c", MOUNTS])
        self.check(["ip", "-batch", "-"], HOST_NETWORK.format(internet=internet))
        self.check(["ip", "-batch", "-"], INTERNET_NETWORK, where=INTERNET)
        self.check(["ip", "-batch", "-"], HOST_ROUTES)
        # The internet's programs see the host's files: its records are there.
        os.close(self._spaces[INTERNET].mnt)
        self._spaces[INTERNET].mnt = os.dup(self._spaces[HOST].mnt)
        self._start_mx()

    def _start_mx(self) -> None:
        self.check(
            shlex.split(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
                f" -days 2 -subj /CN=mx.example.org -keyout {SCRATCH}/mx.pem"
                f" -out {SCRATCH}/mx.pem"
            )
        )
        mx = self.start(
            [sys.executable, "-m", "tests.lab.mx", f"{SCRATCH}/mx.pem", MX4, MX6],
            where=INTERNET,
            unit="mx.service",
            output=f"{SCRATCH}/mx.log",
        )
        self._mx_log = self.path(f"{SCRATCH}/mx.log")
        wait_until(
            lambda: mx.poll() is not None or self.mx_saw("ready"), "the internet's MX"
        )
        if mx.poll() is not None:
            raise RuntimeError(f"the MX ended: {self._mx_log.read_text()}")

    def close(self) -> None:
        """Kill all that runs in the lab and remove it."""
        if self.base.exists():
            kill_cgroup(self.base)
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        for spaces in set(self._spaces.values()):
            spaces.close()
        self._spaces.clear()

    # ---- what runs in it

    def path(self, inside: str | Path) -> Path:
        """Give the name outside of a file of the host."""
        return Path(f"/proc/{self._spaces[HOST].pid}/root{inside}")

    def unit(self, unit: str) -> str:
        """Give a unit's path as the kernel sees it, below the root of all cgroups."""
        return f"/{self.name}/{HOST}/{unit}"

    def start(
        self,
        argv: Sequence[str],
        *,
        unit: str = "",
        user: str = "root",
        cwd: str = "/",
        where: str = HOST,
        env: Mapping[str, str] | None = None,
        output: str | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """Start a program in the lab.

        where is HOST, UNGUARDED or INTERNET; unit is a cgroup below that one's,
        made when it is missing; cwd and output (a file for what it prints, else
        pipes) are paths in the lab. Killed at the lab's end, if not ended before.
        """
        cgroup = self.base / where / unit
        cgroup.mkdir(parents=True, exist_ok=True)
        spaces = self._spaces[where]
        account = pwd.getpwnam(user)

        def enter() -> None:
            join_cgroup(cgroup)
            setns(spaces.net, CLONE_NEWNET)
            setns(spaces.mnt, CLONE_NEWNS)
            if output:
                log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                os.dup2(log, 1)
                os.dup2(log, 2)
            os.initgroups(user, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            os.chdir(cwd)
            os.umask(0o022)

        pipe = subprocess.DEVNULL if output else subprocess.PIPE
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=pipe,
            stderr=pipe,
            env={**ENVIRONMENT, "HOME": account.pw_dir, "USER": user, **(env or {})},
            preexec_fn=enter,
            text=True,
        )
        self._started.append(process)
        return process

    def run(
        self,
        argv: Sequence[str],
        text: str | None = None,
        *,
        timeout: float = 30,
        **options: Any,
    ) -> Done:
        """Run a program in the lab to its end; text is its input.

        options are those of start(). Raises subprocess.TimeoutExpired after
        timeout seconds; the program is then dead.
        """
        if text is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(argv, **options)
        try:
            out, err = process.communicate(text, timeout=timeout)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
        self._started.remove(process)
        return Done(process.pid, process.returncode, out, err)

    def check(
        self, argv: Sequence[str], text: str | None = None, **options: Any
    ) -> str:
        """Like run(), for what must work: give what it printed.

        Raises RuntimeError with all its output when it exits non-zero.
        """
        done = self.run(argv, text, **options)
        if done.returncode != 0:
            said = done.stdout + done.stderr
            raise RuntimeError(f"{shlex.join(argv)}: exit {done.returncode}\n{said}")
        return done.stdout

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the host, and the directories above it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    # ---- what the internet saw

    def mx_saw(self, kind: str, **wanted: object) -> list[dict[str, Any]]:
        """Give the MX's records of a kind: ready, connect or message.

        Each of wanted must equal the record's value, or be in it when that is a
        list or a text (subject="x", recipients="a@example.org", port=25).
        """
        if not self._mx_log.exists():
            return []
        records = [
            json.loads(line)
            for line in self._mx_log.read_text().splitlines(keepends=True)
            if line.startswith("{") and line.endswith("\n")
        ]
        return [
            record
            for record in records
            if record["kind"] == kind
            and all(_matches(record[name], value) for name, value in wanted.items())
        ]


def _matches(value: object, wanted: object) -> bool:
    if isinstance(value, list | str):
        return wanted in value
    return value == wanted
