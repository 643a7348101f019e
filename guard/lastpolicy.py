# SPDX-License-Identifier: GPL-2.0-or-later
"""The last policy that was put in force, for a boot that finds a bad file.

At a boot nothing is pinned yet, so a file that cannot be loaded would leave the host
open until somebody corrects it. The units name the folder that it is kept in
(StateDirectory=, systemd.exec(5)); what is run by hand keeps nothing.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from guard.errors import PolicyError
from guard.policy import Policy, load, rebuild

_NAME = "policy.json"
_OTHERS_WRITE = 0o022


def _place() -> Path | None:
    folder = os.environ.get("STATE_DIRECTORY")
    return Path(folder.partition(":")[0], _NAME) if folder else None


def keep(policy: Policy) -> None:
    """Keep a policy that is in force; a disk that is full is only told of."""
    place = _place()
    if place is None:
        return
    text = json.dumps({"texts": policy.texts})
    new = place.with_suffix(".new")
    try:
        if place.exists() and place.read_text() == text:
            return
        with new.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(place)
    except (OSError, UnicodeError) as error:
        sys.stderr.write(f"guardd: the policy is not kept for the next boot: {error}\n")


def kept() -> Policy | None:
    """Give the policy that was kept, as this host is now; None: there is none."""
    place = _place()
    try:
        if place is None or not _is_ours(place):
            return None
        texts = json.loads(place.read_text())["texts"]
        pairs = tuple((str(name), str(text)) for name, text in texts)
        # an account that was removed is what makes a good policy bad, unedited
        policy = rebuild(pairs, lenient=True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    except (RecursionError, PolicyError):
        return None
    return replace(policy, files=tuple(Path(name) for name, _ in policy.texts))


def _is_ours(place: Path) -> bool:
    status = place.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & _OTHERS_WRITE


def load_or_kept(file: Path) -> tuple[Policy, PolicyError | None]:
    """Load a policy file, else give the one that was kept, and what is wrong.

    Raises PolicyError where none was kept.
    """
    try:
        return load(file), None
    except PolicyError as error:
        if policy := kept():
            return policy, error
        raise
