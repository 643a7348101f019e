# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the smart host's password comes from: a file of root's, or systemd.

Never the command line, which every process of the host can read.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from guard.errors import MailError

_LONGEST = 1024
# systemd.exec(5), LoadCredential=: a file name, at most 255 characters.
CREDENTIAL = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class Password:
    """A file, or the name of a systemd credential; one of the two.

    given: what that file is to hold and does not yet.
    """

    file: Path | None = None
    credential: str | None = None
    given: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return str(self.file) if self.file else f"systemd credential {self.credential}"

    def read(self) -> str:
        """Give the password; raises MailError with what is wrong with its place."""
        if self.given is not None:
            return self.given
        if self.credential is not None:
            return _read(self._credential(self.credential), secret=False)
        assert self.file
        return _read(self.file, secret=True)

    def _credential(self, name: str) -> Path:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise MailError(
                f"no systemd credential {name} here",
                hint=f"run it in a unit that has it: systemd-run --pipe --wait"
                f" -p LoadCredential={name}:FILE guardctl mail ...",
            )
        return Path(folder) / name


def _read(path: Path, *, secret: bool) -> str:
    """Read a password; secret: nobody but root may be able to.

    Of a credential systemd itself sets owner and mode, systemd.exec(5).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as stream:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise MailError(f"{path}: not a regular file")
            raw = stream.read(_LONGEST + 2)
    except OSError as error:
        raise MailError(
            f"{path}: {error.strerror}", hint="write the password into that file"
        ) from None
    if secret and (status.st_uid != os.geteuid() or status.st_mode & 0o077):
        raise MailError(
            f"{path}: others than root can read or change the password",
            hint=f"chown root: {path} && chmod 600 {path}",
        )
    return usable(raw, str(path))


def usable(raw: bytes, place: str) -> str:
    """Give a password without its newline; raises MailError if no table can hold it.

    A table of Postfix ends a value at the line's end and trims it, postmap(1).
    """
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise MailError(f"{place}: the password is not UTF-8") from None
    if not text:
        raise MailError(f"{place}: the password is empty")
    if len(raw) > _LONGEST:
        raise MailError(f"{place}: the password is longer than {_LONGEST} bytes")
    if text.strip() != text or not text.isprintable():
        raise MailError(
            f"{place}: the password has more than one line, blanks at an end or"
            " control characters",
            hint="a table of Postfix cannot hold it: have another one made",
        )
    return text
