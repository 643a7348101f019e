# SPDX-License-Identifier: GPL-2.0-or-later
"""A guardd with a cgroup, a pin folder and a real journald of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from guard import abi, kernel
from guard.ownerrules import STATE_DIR
from guard.ringbuf import ring_backlog
from tests.journald import RUNTIME, VOLATILE, Journald, until
from tests.lab.lab import cgroup2_mount, kill_cgroup

CHECKOUT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()

# What becomes of a judged connect(): bpf/guard.h, enum counter.
PARTS = [abi.Counter[name] for name in ("EVENTS", "FOLDED", "QUIET", "HELD")]
PARTS.append(abi.Counter.LOST_RING)
# Kinds of finding that stand for one judged connect().
CONNECTS = ("denied", "would-deny", "redirected", "allowed", "local")
READ_FIELDS: tuple[str, ...] = ("KIND", "CONNECTION", "COUNT", "LOST_RING")
READ_FIELDS += ("LOST_RING_TOTAL", "LOST_JOURNAL_TOTAL", "RULE")
READ_FIELDS += ("TIME_US", "WHAT", "STATE", "REPAIRED", "TIMES", "DETAIL", "BY_US")


def policy(
    port: int, *, allow: str = "", window: str = "0s", mode: str = "enforce"
) -> str:
    """Write a policy for one local port: deny all but what `allow` (lines) names."""
    rule = f'[[local.rule]]\nname = "lawful"\nverdict = "allow"\n{allow}\n'
    return (
        f'mode = "{mode}"\nports = [{port}]\n'
        f'[local]\ndefault = "deny"\n{rule if allow else ""}'
        f'[fold]\nwindow = "{window}"\ndenied = 5\nlocal = 5\n'
    )


def build(folder: Path, name: str) -> Path:
    """Compile one of this folder's programs, as a file that only root can write."""
    program, source = folder / name, Path(__file__).with_name(f"{name}.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", program, source], check=True)
    program.chmod(0o755)
    return program


def build_connects(folder: Path) -> Path:
    """Compile connects.c into folder."""
    return build(folder, "connects")


@dataclass(frozen=True)
class Tally:
    """What connects.c counted."""

    tried: int
    passed: int  # the guard let them pass
    denied: int  # EPERM
    other: int
    errno: int  # of the last other
    ns: int
    first_denied_ns: int  # CLOCK_MONOTONIC; 0: none was

    @classmethod
    def of(cls, load: subprocess.Popen[str]) -> Tally:
        """Wait for a load's end and read its count."""
        out, _ = load.communicate(timeout=120)
        assert load.returncode == 0, load.returncode
        return cls(**json.loads(out))


@dataclass(frozen=True)
class Ledger:
    """What the journal says, beside what the kernel counted."""

    judged: int
    counted: int  # all that the kernel says became of those; see enum counter
    kernel_folded: int
    kernel_lost: int
    unkept: int  # connects in entries that journald dropped, and guardd could not save
    findings: Counter[str]  # connection: how often it stands in the journal
    summaries: Counter[str]  # likewise, by the first connection of each
    folded: int  # sum over summaries, each once
    lost: int  # as the LOST findings say
    kinds: Counter[str]

    @property
    def doubles(self) -> int:
        """Count entries beyond the first of a connection, or of a summary."""
        entries = [*self.findings.values(), *self.summaries.values()]
        return sum(times - 1 for times in entries)

    @property
    def accounted(self) -> int:
        """Count the judged connects that the journal knows of."""
        return len(self.findings) + self.folded + self.lost

    def check(self) -> None:
        """The sums are exact, in the kernel and in the journal."""
        said = summary([self])
        assert self.judged == self.counted, f"counters: {said}"
        assert self.judged == self.accounted, f"journal: {said}"
        assert self.folded == self.kernel_folded, said
        assert self.lost == self.kernel_lost + self.unkept, said


def lacking(capabilities: str) -> list[str]:
    """Give what runs a program without these, as "bpf,perfmon"; setpriv(1)."""
    less = ",".join(f"-{name}" for name in capabilities.split(","))
    how = ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}"]
    return how if capabilities else []


class Guardd:
    """One run of guardd in the foreground, as a process of its own."""

    def __init__(self, site: Site, *options: str, **more: str | bool) -> None:
        """Start it; more: policy, cgroup or pin_dir instead of the site's, netns for
        a network namespace of its own (or a file that leads to one), memory for a
        cgroup of the memory controller, without="bpf" for capabilities it is not to
        have, within="prlimit ...", state for a folder to keep, output="closed pipe".
        """
        number = next(_numbers)
        self.messages: list[str] = []  # of sd_notify(3)
        path = site.folder / f"notify-{number}"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(path))
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.log = site.folder / f"guardd-{number}.log"
        argv = [sys.executable, "-X", "faulthandler", "-m", "guard.daemon"]
        argv = [*lacking(str(more.get("without", ""))), *argv]
        argv = [*str(more.get("within", "")).split(), *argv]
        argv += ["--foreground", *options]
        argv += ["--policy", str(more.get("policy", site.policy_file))]
        argv += ["--cgroup", str(more.get("cgroup", site.cgroup))]
        argv += ["--pin-dir", str(more.get("pin_dir", site.pin_dir))]
        # its own /run/systemd/journal, which guardd writes to, and what it reads
        script = f"mkdir -p {VOLATILE} && "
        script += f'mount --bind "{site.journald.directory}" {VOLATILE}'
        script += f' && mount --bind "$0" {RUNTIME} && exec "$@"'
        if more.get("memory"):  # a folder of the memory controller
            script = f'echo $$ >"{more["memory"]}/cgroup.procs" && {script}'
        spaces = ["--mount", "--propagation", "private"]
        inside: list[str] = []
        if isinstance(netns := more.get("netns"), str):
            inside = ["nsenter", f"--net={netns}"]
        elif netns:
            spaces.append("--net")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*inside, "unshare", *spaces, "sh", "-ec", script]
                + [str(site.journald.runtime), *argv],
                cwd=CHECKOUT,
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": str(path),
                    "STATE_DIRECTORY": str(more.get("state", "")),
                },
                stdout=subprocess.PIPE if "output" in more else log,
                stderr=log,
            )
        if self.process.stdout:
            self.process.stdout.close()
        site.started.append(self)

    def _listen(self) -> None:
        while message := self._notify.recv(65536):
            self.messages.append(message.decode())

    @property
    def status(self) -> str:
        """Give the last STATUS= that it sent."""
        for message in reversed(self.messages):
            for line in message.splitlines():
                if line.startswith("STATUS="):
                    return line.removeprefix("STATUS=")
        return ""

    def said(self) -> str:
        """Give all that it printed."""
        return self.log.read_text(errors="replace")

    def ready(self) -> Guardd:
        """Wait until it says READY."""
        self.until(lambda: "READY=1" in self.messages, "READY=1")
        return self

    def until(self, done: Callable[[], object], what: str, limit: float = 30) -> None:
        """Wait for a condition; guardd must not end meanwhile."""

        def condition() -> bool:
            ended = self.process.poll()
            assert ended is None, f"guardd ended with {ended}:\n{self.said()[-4000:]}"
            return bool(done())

        try:
            until(condition, what, limit)
        except AssertionError as error:
            if self.process.poll() is None:  # what is it doing?
                self.end(signal.SIGABRT)  # faulthandler(3) tells, for each thread
            raise AssertionError(f"{error}\n{self.said()[-4000:]}") from None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it within the block: what happens there is over when it looks."""
        self.send(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
            yield
        finally:
            self.send(signal.SIGCONT)

    def end(self, number: signal.Signals = signal.SIGTERM, limit: float = 20) -> int:
        """Send a signal that ends it, wait, and give the exit status."""
        self.process.send_signal(number)
        return self.process.wait(limit)

    def reload(self) -> None:
        """SIGHUP, and wait until that was done."""
        before = self.messages.count("READY=1")
        self.send(signal.SIGHUP)
        self.until(lambda: self.messages.count("READY=1") > before, "the reload", 90)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        # waited for: it would go on listening at the next socket of this number
        self._notify.shutdown(socket.SHUT_RD)
        self._listener.join()
        self._notify.close()


class Site:
    """All that one test needs; nothing of it outlives the with block."""

    def __init__(self, folder: Path, connects: Path) -> None:
        """Keep all files below folder; connects is the compiled connects.c."""
        self.folder = folder
        self.connects = connects
        name = f"smtp-guard-faults-{os.getpid()}-{next(_numbers)}"
        self.cgroup = cgroup2_mount() / name
        self.pin_dir = Path("/sys/fs/bpf", name)
        self.journald = Journald(folder / "journald")
        self.policy_file = folder / "policy.toml"
        self.started: list[Guardd] = []
        self._read: Counter[str] = Counter()  # findings that were in the journal
        self._counts: dict[str, int] = {}  # likewise summaries
        self._loads: list[subprocess.Popen[str]] = []
        with socket.socket() as probe:  # a port where nobody listens
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def __enter__(self) -> Self:
        self.cgroup.mkdir()
        self.journald.start()
        self.write_policy(policy(self.port))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for load in self._loads:
            load.kill()
            load.wait()
        for guardd in self.started:
            guardd.close()
        (STATE_DIR / f"{self.pin_dir.name}.told").unlink(missing_ok=True)
        # not Guard.unload(): some tests leave no whole guard behind
        shutil.rmtree(self.pin_dir, ignore_errors=True)
        if self.cgroup.exists():
            kill_cgroup(self.cgroup)
        self.journald.stop()

    def write_policy(self, text: str) -> None:
        """Write the policy file; guardd reads it when it is told to."""
        self.policy_file.write_text(text)
        self.policy_file.chmod(0o644)

    def start(self, *options: str, **more: str | bool) -> Guardd:
        """Start guardd and wait until it is in force."""
        return Guardd(self, *options, **more).ready()

    @property
    def guard(self) -> kernel.Guard:
        """Give the guard that is loaded."""
        return kernel.Guard(self.pin_dir)

    def count(self, counter: abi.Counter) -> int:
        """Read one of the kernel's counters."""
        return self.guard.counters()[counter]

    def load(
        self,
        count: int = 0,
        pause_us: int = 0,
        program: Path | None = None,
        *,
        cgroup: Path | str | None = None,
        uid: int = 0,
        port: int | None = None,
        netns: int | None = None,
    ) -> subprocess.Popen[str]:
        """Start connects, count 0: until SIGTERM.

        By default in the guarded cgroup ("-": in none), to the guarded port; netns is
        the pid of a process in the network namespace to be in.
        """
        inside = ["nsenter", "-t", str(netns), "--net"] if netns else []
        load = subprocess.Popen(
            [*inside, str(program or self.connects), str(cgroup or self.cgroup)]
            + [str(uid), str(port or self.port), str(count), str(pause_us)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._loads.append(load)
        return load

    def tally(self, load: subprocess.Popen[str]) -> Tally:
        """End a load and read its count."""
        load.terminate()
        self._loads.remove(load)
        return Tally.of(load)

    def install(self, program: Path, source: Path | None = None) -> None:
        """Put a copy of a program (connects) there as dpkg does: by a rename."""
        program.parent.mkdir(exist_ok=True)
        new = program.with_name(f"{program.name}.dpkg-new")
        shutil.copy2(source or self.connects, new)
        new.rename(program)

    def connect(
        self, count: int = 1, program: Path | None = None, **more: Any
    ) -> Tally:
        """Make so many connects and give what became of them; more: see load()."""
        load = self.load(count, program=program, **more)
        tally = Tally.of(load)
        self._loads.remove(load)
        return tally

    def entries(self, kind: str = "") -> list[dict[str, str]]:
        """Give guardd's entries in the journal, of one kind: fields without prefix."""
        self.journald.sync()
        fields = ["MESSAGE", *(f"SMTPGUARD_{name}" for name in READ_FIELDS)]
        done = subprocess.run(
            ["journalctl", "-q", "--no-pager", "-o", "json", "--all"]
            + ["-D", str(self.journald.directory), "SYSLOG_IDENTIFIER=guardd"]
            + [f"SMTPGUARD_KIND={kind}"] * bool(kind)
            + [f"--output-fields={','.join(fields)}"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return [
            {key.removeprefix("SMTPGUARD_"): value for key, value in entry.items()}
            for entry in map(json.loads, done.stdout.splitlines())
        ]

    def ledger(self) -> Ledger:
        """Read both sides' books."""
        counters = self.guard.counters()
        entries = self.entries()
        kinds = Counter(entry["KIND"] for entry in entries)
        folded = [entry for entry in entries if entry["KIND"] == "summary"]
        # a guardd that is killed in the act leaves the same to the next: such a
        # summary has the same number, and such a loss the total beside it
        counts = {entry["CONNECTION"]: int(entry.get("COUNT", 1)) for entry in folded}
        # what was there once counts: journald deletes old files on a full disk
        self._read |= Counter(
            entry["CONNECTION"] for entry in entries if entry["KIND"] in CONNECTS
        )
        self._counts |= counts
        return Ledger(
            judged=counters[abi.Counter.JUDGED],
            counted=sum(counters[counter] for counter in PARTS),
            kernel_folded=counters[abi.Counter.FOLDED],
            kernel_lost=counters[abi.Counter.LOST_RING],
            unkept=int(self.guard.about().get("unkept", 0)),
            findings=self._read.copy(),
            summaries=Counter(entry["CONNECTION"] for entry in folded),
            folded=sum(self._counts.values()),
            lost=sum(
                max(
                    (int(entry.get(f"{cause}_TOTAL", 0)) for entry in entries),
                    default=0,
                )
                for cause in ("LOST_RING", "LOST_JOURNAL")
            ),
            kinds=kinds,
        )

    def drained(self) -> bool:
        """Tell whether the kernel holds nothing that guardd has yet to write."""
        guard = self.guard
        told = guard.about().get("told", {}).get("LOST_RING", 0)
        return (
            not ring_backlog(guard.map("ring").fd)
            and not any(guard.map("folds").keys())
            and told == self.count(abi.Counter.LOST_RING)
        )

    def settled(self, guardd: Guardd, limit: float = 30) -> Ledger:
        """Give the ledger once the journal accounts for every judged connect."""
        found: list[Ledger] = []
        # first, because reading a large journal over and over takes for ever
        guardd.until(self.drained, "guardd has written all", limit)

        def balanced() -> bool:
            found[:] = [self.ledger()]
            return found[0].accounted >= found[0].judged

        try:
            guardd.until(balanced, "every judged connect in the journal")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{summary(found)}") from None
        return found[0]


def summary(ledgers: list[Ledger]) -> str:
    """Show a ledger without its thousands of connections."""
    return "\n".join(
        f"judged {one.judged}, findings {len(one.findings)} (+{one.doubles} double), "
        f"folded {one.folded} of {one.kernel_folded}, "
        f"lost {one.lost} of {one.kernel_lost}, {dict(one.kinds)}"
        for one in ledgers
    )
