# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of pins: where it may be, and whose it is.

The guard of a host is pinned under one folder that belongs to the account guardd
runs as, where there is one (units/smtp-guard.sysusers), and else to root. Whoever
pins something in there, root by hand or guardd, leaves it to the folder's owner, so
that either can go on with what the other made.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
from pathlib import Path

import psutil

from guard import libbpf
from guard.errors import KernelError, NotBpffs
from guard.privileges import ACCOUNT

DEFAULT_PIN_DIR = Path("/sys/fs/bpf/smtp-guard")
FOR_THE_ACCOUNT = (  # what to do when guardd's own user may not reach the pins
    "for guardd's own user: systemd-tmpfiles --create smtp-guard.conf"
)
_BPFFS = Path("/sys/fs/bpf")
_libc = ctypes.CDLL(None, use_errno=True)


def ensure_bpffs(pin_dir: Path) -> None:
    """Make pin_dir, mounting /sys/fs/bpf first where nobody has.

    Raises NotBpffs when the folder is not on a BPF file system (pins made anywhere
    else would not be pins), or another KernelError.
    """
    if (
        _BPFFS in (pin_dir, *pin_dir.parents)
        and not os.path.ismount(_BPFFS)
        and _libc.mount(b"bpf", bytes(_BPFFS), b"bpf", 0, b"mode=0700")
    ):
        raise KernelError(
            f"cannot mount {_BPFFS}",
            ctypes.get_errno(),
            hint=f"as root: mount -t bpf bpf {_BPFFS}",
        )
    kinds = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
    mount = pin_dir.absolute()
    while not os.path.ismount(mount):
        mount = mount.parent
    if kinds.get(str(mount)) != "bpf":
        raise NotBpffs(
            f"{pin_dir} is not on a BPF file system",
            errno.EINVAL,
            hint=f"name a folder below {_BPFFS}",
        )
    try:
        pin_dir.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(pin_dir, *_account(pin_dir))
    except FileExistsError:
        pass
    except OSError as error:
        raise KernelError(
            f"cannot make {pin_dir}",
            error.errno or 0,
            hint=FOR_THE_ACCOUNT,
        ) from None


def _account(pin_dir: Path) -> tuple[int, int]:
    """Give user and group that a folder of pins belongs to."""
    if pin_dir == DEFAULT_PIN_DIR:
        with contextlib.suppress(KeyError):  # not installed by a package
            account = pwd.getpwnam(ACCOUNT)
            return account.pw_uid, account.pw_gid
    return 0, 0


def roots_alone(folder: Path) -> bool:
    """Tell whether what is pinned there, and recorded, is root's and nobody else's."""
    return folder.stat().st_uid == 0


def hand_over(path: Path) -> None:
    """Leave what root has just made to the owner of the folder it is in.

    Not through a link, which that owner could have put in its place.
    """
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid, follow_symlinks=False)


def pin(fd: int, path: Path) -> None:
    """Pin the object behind fd at path, which must not exist. Raises KernelError."""
    libbpf.pin(fd, path)
    hand_over(path)


def pin_anew(fd: int, path: Path) -> None:
    """Pin the object behind fd at path, in place of what may be there.

    Under another name first: a rename has no gap.
    """
    staged = path.with_name(f"{path.name}_new")
    staged.unlink(missing_ok=True)
    pin(fd, staged)
    staged.rename(path)


def open_to_others(folder: Path) -> bool:
    """Tell whether others than root and guardd's account may enter it."""
    status = folder.stat()
    pin_dir = folder.parent if folder.name.startswith("v") else folder
    owners = (0, _account(pin_dir)[0])
    return status.st_uid not in owners or bool(status.st_mode & 0o077)


def close_to_others(folder: Path) -> None:
    """Take back what open_to_others() found, as far as this process may.

    Raises OSError, also for a link, see hand_over().
    """
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.geteuid() == 0:
            pin_dir = folder.parent if folder.name.startswith("v") else folder
            os.fchown(here, *_account(pin_dir))
        os.fchmod(here, 0o700)
    finally:
        os.close(here)
