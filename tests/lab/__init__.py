# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory: a mail host and the internet, on this machine, throw-away.

lab.py makes the two network namespaces and runs programs in them, mx.py is the
internet's mail server, postfix.py the host's real Postfix, guarded.py the guard
on that host, rogue.py the programs that should not be sending mail.
"""

from tests.lab.lab import INTERNET, MX4, MX6, UNGUARDED, Lab, wait_until
from tests.lab.postfix import Postfix

__all__ = ["INTERNET", "MX4", "MX6", "UNGUARDED", "Lab", "Postfix", "wait_until"]
