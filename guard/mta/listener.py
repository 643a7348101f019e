# SPDX-License-Identifier: GPL-2.0-or-later
"""The socket where Postfix asks, below its queue directory, for it and root alone.

An smtpd in its chroot sees nothing else of the host. The folder of the socket is
made by root (guardd itself, or systemd-tmpfiles where guardd is another user):
set-group-id, so that the socket has Postfix's group whoever makes it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import stat
import struct
from pathlib import Path

from guard.errors import MtaError

MAIL_OWNER = "postfix"  # postconf(5), mail_owner
_FOLDER_MODE = 0o2710
_SOCKET_MODE = 0o660
_BACKLOG = 512  # smtpds that may start at one moment
_PEER = struct.Struct("3i")  # struct ucred, unix(7)


class Listener:
    """A socket at a path, made again whenever it is not there any more."""

    def __init__(self, path: Path) -> None:
        """Say where; nothing is made before renew()."""
        self.path = path
        self.socket: socket.socket | None = None
        self._made: tuple[int, int] | None = None  # device and inode
        self._trusted = {0}

    def renew(self) -> bool:
        """Listen at the path if we do not; True: the socket is a new one.

        Raises MtaError, and then nobody listens.
        """
        if self.socket and self._made == self._there():
            return False
        self.close()
        if not os.path.isdir(self.path.parent.parent):  # nor one that we may look at
            raise MtaError(
                f"{self.path.parent.parent}: no such folder",
                hint="it is Postfix's queue_directory: is Postfix installed?",
            )
        try:
            account = pwd.getpwnam(MAIL_OWNER)
        except KeyError:
            raise MtaError(
                f"no user {MAIL_OWNER}", hint="is Postfix installed?"
            ) from None
        self._trusted = {0, account.pw_uid}
        try:
            self._make_folder(account.pw_gid)
            self._listen(account.pw_gid)
        except OSError as error:
            self.close()
            raise MtaError(
                f"{self.path}: {error.strerror}", hint=self._hint()
            ) from None
        return True

    def accept(self) -> socket.socket | None:
        """Take one connection; None: none waits, or whose it is may not ask."""
        assert self.socket
        try:
            peer, _ = self.socket.accept()
        except OSError:  # gone already, or no descriptor is left
            return None
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if _PEER.unpack(raw)[1] not in self._trusted:
            peer.close()
            return None
        peer.setblocking(False)
        return peer

    def close(self) -> None:
        """Listen no more, and leave nothing behind."""
        if self.socket is None:
            return
        with contextlib.suppress(OSError):
            if self._made == self._there():
                self.path.unlink()
        self.socket.close()
        self.socket = None

    def _there(self) -> tuple[int, int] | None:
        try:
            found = self.path.lstat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _make_folder(self, group: int) -> None:
        folder = self.path.parent
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise MtaError(
                f"{folder} is not a folder of root or of guardd",
                hint="remove it; it is made anew",
            )
        mode = stat.S_IMODE(found.st_mode)
        if (mode, found.st_gid) != (_FOLDER_MODE, group):
            os.chown(folder, -1, group)
            os.chmod(folder, _FOLDER_MODE)

    def _listen(self, group: int) -> None:
        """Make the socket under another name, so that it is never half made."""
        if self._served():
            raise MtaError(
                f"{self.path}: another process listens there",
                hint="two guardds? give one of them another socket in [mta]",
            )
        new = self.path.with_name(f".{self.path.name}.new")
        new.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.bind(str(new))
        if new.stat().st_gid != group:
            os.chown(new, -1, group)
        os.chmod(new, _SOCKET_MODE)
        self.socket.listen(_BACKLOG)
        # of the one that was made, not of what is there a moment later: maybe nothing
        made = new.lstat()
        new.rename(self.path)
        self._made = made.st_dev, made.st_ino

    def _served(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self.path))
            except BlockingIOError:
                return True
            except OSError:
                return False
            return True

    def _hint(self) -> str:
        folder = self.path.parent
        return (
            "guardd is not root, who makes the folder, as a line of tmpfiles.d(5) says:"
            f" d {folder} 2710 smtp-guard {MAIL_OWNER}"
            if os.geteuid()
            else f"look at {folder}"
        )
