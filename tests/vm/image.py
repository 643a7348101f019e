# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest: a Debian 12 file system, two kernels and what boots them.

Made once by mmdebstrap from the package sources this machine has, and kept in
the user's cache under a name that changes with what it is made of. Nothing of the
project is in it, so a change of the project never makes it anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
# The suite whose linux-image-cloud-amd64 it is. Debian's cloud kernels: the same
# source as its others, with the drivers of virtual machines alone.
KERNELS = {"6.1": SUITE, "6.12": f"{SUITE}-backports"}
PACKAGES = (
    "systemd-sysv", "systemd", "udev", "kmod", "busybox-static", "iproute2",
    "python3", "python3-click", "python3-psutil", "python3-pyroute2",
    "python3-rich", "python3-systemd", "libbpf1", "python3-pytest",
    "python3-nftables", "python3-iptables", "libnetfilter-log1",
    "python3-dnspython", "python3-tomlkit",
    "python3-hypothesis",
    "liburing-dev", "gcc", "libc6-dev", "nftables", "iptables",
    "util-linux", "procps", "bpftool",
)  # fmt: skip
# What mail hosts have beside the guard, and the witness of one scenario.
BESIDE = (
    "postfix", "swaks", "dbus", "firewalld", "conntrack", "ca-certificates",
    "systemd-container", "uidmap", "slirp4netns", "passt", "python3-aiosmtpd",
    "python3-bpfcc", "php-cli", "php-fpm", "dnsmasq-base",
)  # fmt: skip
DRIVERS = ("virtio_pci", "virtio_blk", "ext4")
UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists")
ROOT_SIZE = "4G"  # sparse; the guest's writes go beside it and are forgotten
KEPT_DAYS = 14

BOOT = Path(__file__).with_name("inside") / "boot"
FURNISH = Path(__file__).with_name("furnish")


class CannotMake(Exception):
    """No guest can be made here; says why."""


@dataclass(frozen=True)
class Image:
    """Where the guest's parts are."""

    folder: Path

    @property
    def root(self) -> Path:
        """The root file system, ext4."""
        return self.folder / "root.ext4"

    def kernel(self, version: str) -> Path:
        """The kernel, as qemu loads it."""
        return self.folder / f"vmlinuz-{version}"

    def initrd(self, version: str) -> Path:
        """The drivers of that kernel, and inside/boot."""
        return self.folder / f"initrd-{version}"


def cache() -> Path:
    """Give the folder that keeps images and the lock of guests."""
    top = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = top / "smtp-guard-guests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock: of all checkouts on this machine, one makes or runs a guest."""
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def image() -> Image:
    """Give the guest, making it when it is not there yet.

    Raises CannotMake. The caller holds one_at_a_time().
    """
    for tool in (
        "qemu-system-x86_64", "mmdebstrap", "mke2fs", "chroot", "dpkg-scanpackages"
    ):  # fmt: skip
        if not shutil.which(tool):
            raise CannotMake(f"{tool} is not installed: make setup")
    if platform.machine() != "x86_64":
        raise CannotMake("guests are made for x86_64 alone")
    made_of = (path.read_bytes() for path in (Path(__file__), BOOT, FURNISH))
    folder = cache() / hashlib.sha256(b"".join(made_of)).hexdigest()[:16]
    if not folder.exists():
        _make(folder)
    os.utime(folder)
    return Image(folder)


def _make(folder: Path) -> None:
    for old in cache().iterdir():
        if old.is_dir() and time.time() - old.stat().st_mtime > KEPT_DAYS * 86400:
            shutil.rmtree(old)
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        root = new / "root"
        _install(root)
        for version in KERNELS:
            _add_kernel(new, root, version)
        target = new / "root.ext4"
        _run("mke2fs", "-q", "-t", "ext4", "-d", root, target, ROOT_SIZE)
        shutil.rmtree(root)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    new.rename(folder)


def _run(*argv: str | Path, text: str = "") -> str:
    done = subprocess.run(argv, capture_output=True, text=True, input=text)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-5:])
        raise CannotMake(f"{argv[0]} ended with {done.returncode}:\n{last}")
    return done.stdout


def sources() -> str:
    """Give sources.list lines for the guest, from where this machine installs.

    Backports stand beside the suite itself, wherever that is.
    """
    lines = []
    for uri, suites in _stanzas():
        lines += [
            f"deb {uri} {suite} main" for suite in suites if suite.startswith(SUITE)
        ]
        if SUITE in suites and KERNELS["6.12"] not in suites:
            lines.append(f"deb {uri} {KERNELS['6.12']} main")
    if not lines:
        raise CannotMake(f"no package source of this machine has {SUITE}")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _stanzas() -> Iterator[tuple[str, list[str]]]:
    etc = Path("/etc/apt")
    for path in (etc / "sources.list", *etc.glob("sources.list.d/*.list")):
        if path.exists():
            for line in path.read_text().splitlines():
                found = re.match(
                    r"deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s+.*\bmain\b", line
                )
                if found:
                    yield found[1], [found[2]]
    for path in etc.glob("sources.list.d/*.sources"):
        for stanza in path.read_text().split("\n\n"):
            field = dict(re.findall(r"^([\w-]+):\s*(.*)$", stanza, re.MULTILINE))
            if "deb" in field.get("Types", "").split():
                for uri in field.get("URIs", "").split():
                    yield uri, field.get("Suites", "").split()


def _install(root: Path) -> None:
    """Make the file system, with the packages of both kernels in /boot."""
    answers = "postfix postfix/main_mailer_type select No configuration"
    _run(
        "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root",
        "--aptopt=APT::Install-Recommends false",
        *(f"--dpkgopt=path-exclude=/{path}/*" for path in UNREAD[:3]),
        f"--essential-hook=echo {answers} | chroot \"$1\" debconf-set-selections",
        f"--include={','.join(PACKAGES + BESIDE)}",
        f"--customize-hook={FURNISH} \"$1\" {' '.join(KERNELS.values())}",
        SUITE, root, "-", text=sources(),
    )  # fmt: skip
    for unread in UNREAD:
        shutil.rmtree(root / unread, ignore_errors=True)
    _run("chroot", root, "apt-get", "-q", "update")


def _add_kernel(new: Path, root: Path, version: str) -> None:
    parts = new / "parts"  # not into root: /lib would be no link any more
    for package in (root / "boot").glob(f"linux-*-{version}.*.deb"):
        _run("dpkg-deb", "--extract", package, parts)
        package.unlink()
    (kernel,) = parts.glob("boot/vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    kernel.rename(new / f"vmlinuz-{version}")
    (root / "usr/lib/modules").mkdir(exist_ok=True)
    (parts / "lib/modules" / release).rename(root / "usr/lib/modules" / release)
    shutil.copytree(
        parts / "usr/src", root / "usr/src", symlinks=True, dirs_exist_ok=True
    )
    shutil.rmtree(parts)
    _run("chroot", root, "depmod", release)
    files = {"init": BOOT.read_bytes(), "busybox": (root / "bin/busybox").read_bytes()}
    plan = _run("chroot", root, "modprobe", "-aS", release, "--show-depends", *DRIVERS)
    for path in dict.fromkeys(re.findall(r"^insmod (\S+)", plan, re.MULTILINE)):
        raw = (root / path.lstrip("/")).read_bytes()
        name = f"{len(files):02}-{Path(path).name.removesuffix('.xz')}"
        files[name] = lzma.decompress(raw) if path.endswith(".xz") else raw
    (new / f"initrd-{version}").write_bytes(_archive(files))


def _archive(files: dict[str, bytes]) -> bytes:
    """Lay files into a cpio archive: Documentation/driver-api/early-userspace."""
    archive = b""
    folders = dict.fromkeys(("dev", "proc", "new"), (16877, b""))
    entries = {name: (0o100755, data) for name, data in files.items()}
    last = {"TRAILER!!!": (0, b"")}
    for number, (name, (mode, data)) in enumerate((folders | entries | last).items()):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields)
        for part in (head + name.encode() + b"\0", data):
            archive += part + bytes(-len(part) % 4)
    return archive
