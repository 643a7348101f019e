# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way around the guard that is known: one small program takes each.

tests/matrix.toml lists them, with what must become of each.
"""
