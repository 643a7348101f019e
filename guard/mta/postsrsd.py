# SPDX-License-Identifier: GPL-2.0-or-later
"""How this host's postsrsd signs: its configuration and its secrets.

/etc/default/postsrsd is what version 1 (Debian 12) is started with, by a shell;
/etc/postsrsd.conf is version 2's. Secrets are read and never shown.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guard.errors import SrsError
from guard.mta.srs import HASH_LENGTH, Settings

DEFAULTS = Path("/etc/default/postsrsd")
CONF = Path("/etc/postsrsd.conf")
SECRETS = Path("/etc/postsrsd.secret")
_MAX_BYTES = 1 << 16
_OTHERS_READ, _OTHERS_WRITE = 0o044, 0o022
_V1 = {"SRS_SECRET": "secrets", "SRS_HASHLENGTH": "length", "SRS_HASHMIN": "min"}
_V2 = {"secrets-file": "secrets", "hash-length": "length", "hash-minimum": "min"}
# libconfuse's syntax, as far as these need it
_ASSIGNED = re.compile(r"\s*([a-z-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s#\"']+))")


@dataclass(frozen=True, slots=True)
class Forwarder:
    """What is known of this host's postsrsd."""

    settings: Settings
    secrets: Path  # the file they are in
    configured: Path | None  # where that was said; None: nowhere
    warnings: tuple[str, ...]


def forwarder(
    secrets: Path | None = None,
    hash_length: int | None = None,
    hash_min: int | None = None,
    max_age: int | None = None,
) -> Forwarder:
    """Read how postsrsd is set up; what is given here is taken instead.

    max_age: days. Raises SrsError where the secrets cannot be had.
    """
    said, configured = _configured()
    place = secrets or Path(said.get("secrets") or SECRETS)
    length = hash_length or _number(said, "length", configured)
    least = hash_min or min(_number(said, "min", configured), length)
    found, warnings = _read_secrets(place)
    plain = Settings(found)
    age = plain.max_age if max_age is None else max_age
    return Forwarder(
        Settings(found, length, least, age), place, configured, tuple(warnings)
    )


def _configured() -> tuple[Mapping[str, str], Path | None]:
    for path, read in ((CONF, _conf), (DEFAULTS, _defaults)):
        with contextlib.suppress(FileNotFoundError):
            try:
                return read(path.read_text(errors="replace")[:_MAX_BYTES]), path
            except FileNotFoundError:
                raise
            except OSError as error:
                raise SrsError(f"{path}: {error.strerror}") from None
    return {}, None


def _defaults(text: str) -> dict[str, str]:
    """Read assignments of a shell's; nothing is run."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and name in _V1:
            with contextlib.suppress(ValueError):  # a quote that is not closed
                words = shlex.split(value, comments=True)
                found[_V1[name]] = words[0] if words else ""
    return found


def _conf(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        match = _ASSIGNED.match(line)
        if match and match[1] in _V2:
            found[_V2[match[1]]] = match[2] or match[3] or match[4] or ""
    return found


def _number(said: Mapping[str, str], key: str, path: Path | None) -> int:
    text = said.get(key) or str(HASH_LENGTH)
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= 28:
        raise SrsError(
            f"{path}: the hash's {key} {text[:20]!a} is not 1 to 28",
            hint="correct it, or give --hash-length and --hash-min",
        )
    return int(text)


def _read_secrets(path: Path) -> tuple[tuple[bytes, ...], list[str]]:
    hint = "--secrets FILE names another; postsrsd's is SRS_SECRET"
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            raw = stream.read(_MAX_BYTES)
    except OSError as error:
        raise SrsError(f"{path}: {error.strerror}", hint=hint) from None
    found = tuple(line for line in re.split(rb"[\r\n]+", raw) if line)
    if not found:
        raise SrsError(f"{path} holds no secret", hint=hint)
    warnings = []
    if status.st_mode & (_OTHERS_READ | _OTHERS_WRITE):
        warnings.append(
            f"{path} can be read or written by others than its owner: whoever has a"
            f" secret can have this host forward mail; chmod 600 {path}, and have"
            " another secret made"
        )
    if any(len(secret) < 8 for secret in found):
        warnings.append(f"a secret in {path} is shorter than 8 bytes: easy to guess")
    return found, warnings
