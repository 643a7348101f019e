# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of what docs/ holds for others to read: man pages, completion."""
