# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy server that only says DUNNO, as short as one can be: the yardstick."""

from __future__ import annotations

import socket
import sys

with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("listens", flush=True)
    while True:
        client, _ = listener.accept()
        while words := client.recv(65536):
            if words.endswith(b"\n\n"):
                client.send(b"action=DUNNO\n\n")
        client.close()
