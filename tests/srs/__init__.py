# SPDX-License-Identifier: GPL-2.0-or-later
"""Rewritten senders: Debian's postsrsd makes them and judges what we judge."""
