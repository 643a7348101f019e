# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to the journal: which findings, of when, one row a connection."""

from guard.query.connections import connections, findings
from guard.query.entries import Journal
from guard.query.filters import Filter
from guard.query.times import parse_time

__all__ = ["Filter", "Journal", "connections", "findings", "parse_time"]
