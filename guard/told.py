# SPDX-License-Identifier: GPL-2.0-or-later
"""Which trouble was told already: the same cause once a boot, however often it is met.

guardd and `guardctl load` meet it again with each start. In /run, which a boot empties.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from guard.ownerrules import STATE_DIR, state_file, write_anew


def _place(pin_dir: Path) -> Path:
    return state_file(pin_dir).with_suffix(".told")


def is_news(pin_dir: Path, cause: str) -> bool:
    """Tell whether another cause was the last one, and remember this one.

    Where nothing can be remembered all is news.
    """
    place = _place(pin_dir)
    digest = hashlib.sha256(cause.encode(errors="replace")).hexdigest()
    with contextlib.suppress(OSError, UnicodeError):
        if place.read_text() == digest:
            return False
    with contextlib.suppress(OSError):
        STATE_DIR.mkdir(mode=0o755, exist_ok=True)
        write_anew(place, digest)
    return True


def forget(pin_dir: Path) -> None:
    """The trouble is over: it is news when it comes again."""
    with contextlib.suppress(OSError):
        _place(pin_dir).unlink(missing_ok=True)
