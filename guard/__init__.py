# SPDX-License-Identifier: GPL-2.0-or-later
"""smtp-guard: denies, attributes and journals SMTP connections of this host.

Read the modules along the data path: abi, libbpf, kernel, ring, origin,
finding, journal, query; beside it stand policy (what is allowed), daemon
(wiring) and cli (one file a verb).
"""

__version__ = "0.1.0"
