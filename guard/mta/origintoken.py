# SPDX-License-Identifier: GPL-2.0-or-later
"""The word in a message's header that leads its reader back to us, and nobody else.

Three parts, in base32: which key (the first bytes of its SHA-256), a number that only
the key's holder can make of connection and message, and a seal on both (RFC 2104,
SHA-256). It says nothing by itself; the journal has it beside the process.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from guard.errors import BadToken, MtaError

HEADER = "X-SMTP-Guard-Origin"
TOKEN_KEYS = Path("/etc/smtp-guard/token.keys")
_KEY_BYTES = 32
# Bytes; 25 in all are 40 letters, with no bits to spare that could be anything.
_NAME, _NUMBER, _SEAL = 4, 10, 11
_MOST_KEYS = 100
_MOST_BYTES = 64 * 1024
_LINE = re.compile(rf"[0-9a-f]{{{2 * _KEY_BYTES}}}")
_HEAD = """\
# Keys of the header {}, one a line; the first makes new ones, all are known.
# `guardctl token-key` puts a new one first. Who has these can forge the header.
"""


def make_token(key: bytes, connection: str, instance: str) -> str:
    """Make the token of a message: its connection and Postfix's name for it."""
    said = f"{connection}\0{instance}".encode("utf-8", "surrogateescape")
    number = _mac(key, b"number", said)[:_NUMBER]
    raw = _name(key) + number
    sealed = raw + _mac(key, b"seal", raw)[:_SEAL]
    return base64.b32encode(sealed).decode().lower()


def check_token(keys: Sequence[bytes], token: str) -> str:
    """Give the token as it was made, in small letters, if one of the keys made it.

    Raises BadToken, which says whether it is none, another host's, or forged.
    """
    plain = token.strip().lower()
    size = _NAME + _NUMBER + _SEAL
    try:
        raw = base64.b32decode(plain.upper())
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != size or not re.fullmatch("[a-z2-7]+", plain):
        raise BadToken("that is no token", hint=f"it is what stands after {HEADER}:")
    name, said, seal = raw[:_NAME], raw[:-_SEAL], raw[-_SEAL:]
    known = [key for key in keys if _name(key) == name]
    if not known:
        raise BadToken(
            "it was made with a key that this host does not have",
            hint="another host made it, or the key was taken out of the file",
        )
    if not any(
        hmac.compare_digest(_mac(k, b"seal", said)[:_SEAL], seal) for k in known
    ):
        raise BadToken(
            "it names our key, and our key did not make it",
            hint="somebody changed or forged it",
        )
    return plain


def read_keys(path: Path) -> list[bytes]:
    """Read a file of keys, the one to make tokens with first. Raises MtaError."""
    remedy = "guardctl token-key makes one"
    try:
        # O_NOFOLLOW: in a folder of root's, but a link may lead anywhere; O_NONBLOCK:
        # to open a FIFO would last for ever
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            is_file = stat.S_ISREG(found.st_mode)
            text = file.read(_MOST_BYTES).decode("ascii", "replace") if is_file else ""
    except OSError as error:
        raise MtaError(f"{path}: {error.strerror}", hint=remedy) from None
    if not is_file or found.st_uid not in (0, os.geteuid()):
        raise MtaError(f"{path} is no file of root's", hint=remedy)
    if stat.S_IMODE(found.st_mode) & 0o037:
        raise MtaError(
            f"{path} can be read by others, or written by its group",
            hint=f"chmod 0640 {path}, and put a new key first: guardctl token-key",
        )
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or not all(map(_LINE.fullmatch, lines)) or len(lines) > _MOST_KEYS:
        raise MtaError(f"{path} holds no keys, or not only keys", hint=remedy)
    return [bytes.fromhex(line) for line in lines]


def add_key(path: Path, keep: int, group: int) -> list[str]:
    """Put a new key first, keep so many in all; give their names.

    The file is root's and of this group (gid), mode 0640. Raises MtaError.
    """
    keys = read_keys(path) if os.path.lexists(path) else []
    keys = [secrets.token_bytes(_KEY_BYTES), *keys][:keep]
    text = _HEAD.format(HEADER) + "".join(f"{key.hex()}\n" for key in keys)
    new = path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        made = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(made, "w") as file:
            file.write(text)
            os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), 0o640)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError as error:
        raise MtaError(f"{path}: {error.strerror}") from None
    return [_name(key).hex() for key in keys]


class Keys:
    """The keys of a file, read again when it is another."""

    def __init__(self) -> None:
        """Begin with no file."""
        self.trouble = ""
        self._path: Path | None = None
        self._seen: tuple[int, ...] | None = None
        self._keys: list[bytes] = []

    def use(self, path: Path | None) -> None:
        """Take the keys from this file from now on; None: from none."""
        if path != self._path:
            self._path, self._seen, self._keys, self.trouble = path, None, [], ""

    def renew(self) -> None:
        """Look whether the file has changed; one that is bad leaves the keys."""
        if self._path is None:
            return
        try:
            found = self._path.lstat()
            seen: tuple[int, ...] = (
                found.st_dev,
                found.st_ino,
                found.st_mtime_ns,
                found.st_ctime_ns,
            )
        except OSError:
            seen = ()
        if seen and seen == self._seen:
            return
        try:
            self._keys = read_keys(self._path)
        except MtaError as error:
            self.trouble = str(error)
        else:
            self._seen, self.trouble = seen, ""

    @property
    def ready(self) -> bool:
        """Tell whether there is a key."""
        return bool(self._keys)

    def token(self, connection: str, instance: str) -> str:
        """Make the token of a message; "" when there is no key."""
        return make_token(self._keys[0], connection, instance) if self._keys else ""


def _name(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_NAME]


def _mac(key: bytes, purpose: bytes, said: bytes) -> bytes:
    return hmac.digest(key, purpose + b"\0" + said, "sha256")
