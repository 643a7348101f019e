# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd's two threads read the same maps: neither gets the other's answer."""

from __future__ import annotations

import threading

from guard import abi
from guard.kernel import Guard


def test_two_threads_read_their_own_answers(guard: Guard) -> None:
    table = guard.map("rules")
    keys = [index.to_bytes(4, "little") for index in (0, abi.MAX_ROWS)]
    before = {key: table.get(key) for key in keys}
    done = threading.Event()
    wrong: list[bytes] = []

    def read(key: bytes, wanted: bytes) -> None:
        while not done.is_set():
            if table.get(key) != wanted:
                wrong.append(key)

    threads = []
    for number, key in enumerate(keys):
        value = bytes(abi.Rule(number=number))
        table.put(key, value)
        threads.append(threading.Thread(target=read, args=(key, value)))
    for thread in threads:
        thread.start()
    done.wait(1)
    done.set()
    for thread in threads:
        thread.join()
    for key, value in before.items():
        table.put(key, value or b"")
    assert not wrong
