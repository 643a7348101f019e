# SPDX-License-Identifier: GPL-2.0-or-later
"""The lists in a journal entry, as JSON and back: arguments, parents, makers.

Reading raises ValueError or TypeError for what guardd cannot have written.
"""

from __future__ import annotations

import json
from functools import lru_cache

from guard.finding import Maker, Process


def parents_json(parents: tuple[Process, ...]) -> str:
    """Write the parents of a process, nearest first."""
    each = ",".join(
        f'{{"pid":{p.pid},"uid":{p.uid},"comm":{json.dumps(p.comm)},'
        f'"start_ns":{p.start_ns}}}'
        for p in parents
    )
    return f"[{each}]"


def makers_json(makers: tuple[Maker, ...]) -> str:
    """Write the processes that a packet can have come from."""
    return json.dumps(
        [
            {
                "pid": m.pid,
                "uid": m.uid,
                "comm": m.comm,
                "exe": m.exe,
                "args": m.args,
                "unit": m.unit,
            }
            for m in makers
        ]
    )


@lru_cache(maxsize=1024)
def read_args(text: str) -> tuple[str, ...]:
    """Read the arguments of a process."""
    return _texts(json.loads(text))


@lru_cache(maxsize=1024)
def read_parents(text: str) -> tuple[Process, ...]:
    """Read what parents_json() wrote."""
    made = tuple(Process(**parent) for parent in json.loads(text))
    for p in made:
        if not all(type(n) is int for n in (p.pid, p.uid, p.start_ns)):
            raise ValueError("not a list of processes")
        _texts([p.comm])
    return made


@lru_cache(maxsize=1024)
def read_makers(text: str) -> tuple[Maker, ...]:
    """Read what makers_json() wrote."""
    made = []
    for one in json.loads(text):
        one["args"] = _texts(one["args"])
        maker = Maker(**one)
        if type(maker.pid) is not int or type(maker.uid) is not int:
            raise ValueError("not a list of processes")
        _texts([maker.comm, maker.exe or "", maker.unit or ""])
        made.append(maker)
    return tuple(made)


def _texts(texts: object) -> tuple[str, ...]:
    """Give texts that bytes decode to: JSON can also say \\ud800."""
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise ValueError("not a list of texts")
    "".join(texts).encode("utf-8", "surrogateescape")
    return tuple(texts)
