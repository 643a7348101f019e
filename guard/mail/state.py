# SPDX-License-Identifier: GPL-2.0-or-later
"""What apply left in a Postfix, and what stood there before: kept beside it.

In Postfix's own directory, where only root can write: what is read here is put back
into main.cf. A folder of guardd's user would not do.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from guard.errors import MailError
from guard.mail.postfix import Postfix

_VERSION = 1
_MOST = 1 << 24  # bytes of a state: main.cf and master.cf are kept in it, twice
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept:
    """A parameter or a service: what stood there, what was put there; None: nothing."""

    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class KeptMember:
    """Likewise a list with one element put in or taken out."""

    element: str
    present: bool
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class KeptPolicy:
    """Likewise include of the guard's policy file; None: it had none."""

    path: str
    before: list[str] | None
    after: list[str] | None


@dataclass(slots=True)
class State:
    """Everything of ours in one Postfix; empty where nothing was applied."""

    parameters: dict[str, Kept] = field(default_factory=dict)
    members: dict[str, KeptMember] = field(default_factory=dict)
    services: dict[str, Kept] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # name: sha256 of the text
    pinned: KeptPolicy | None = None
    # What pin denies, and somebody has seen in a plan.
    denied: list[str] = field(default_factory=list)
    # main.cf, master.cf and the policy as they were before the first apply, while
    # nobody else has edited them since, and the sha256 of what apply left.
    original: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def is_empty(self) -> bool:
        """Tell whether nothing of ours is there."""
        ours = self.parameters or self.members or self.services or self.files
        return not (ours or self.pinned)


def state_dir(postfix: Postfix) -> Path:
    """Give the folder of state, lock and what is under way."""
    return postfix.ours / "state"


def state_file(postfix: Postfix) -> Path:
    """Give the file of the state itself."""
    return state_dir(postfix) / "state.json"


def sha256(raw: bytes) -> str:
    """Give the digest of a file's bytes, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def read_state(postfix: Postfix) -> State:
    """Read it; raises MailError when it is not root's, or makes no sense."""
    path = state_file(postfix)
    raw = read_private(path)
    if raw is None:
        return State()
    try:
        return _state(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MailError(
            f"{path}: makes no sense",
            hint="what apply replaced cannot be told: put main.cf right by hand, then"
            f" rm {path}",
        ) from None


def read_private(path: Path) -> bytes | None:
    """Read a file that only root may have written; None when it is not there.

    Raises MailError when another may have, or it cannot be read.
    """
    try:
        with open(path, "rb", opener=_no_link) as stream:
            for status in (os.fstat(stream.fileno()), os.lstat(path.parent)):
                if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                    raise MailError(
                        f"{path}: others than root can write it",
                        hint=f"see who did: ls -la {path.parent}",
                    )
            return stream.read(_MOST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MailError(f"{path}: {error.strerror}") from None


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _state(data: Any) -> State:
    if data["version"] != _VERSION:
        raise ValueError(data["version"])

    def kept(name: str, kind: type[T]) -> dict[str, T]:
        return {str(key): kind(**value) for key, value in data[name].items()}

    return State(
        kept("parameters", Kept),
        kept("members", KeptMember),
        kept("services", Kept),
        dict(data["files"]),
        KeptPolicy(**data["pinned"]) if data.get("pinned") else None,
        list(data.get("denied", ())),
        dict(data["original"]),
        dict(data["left"]),
    )


def state_bytes(state: State) -> bytes:
    """Write it as JSON."""
    return json.dumps({"version": _VERSION, **asdict(state)}, indent=1).encode()
