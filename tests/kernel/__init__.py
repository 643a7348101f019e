# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard on the real kernel: every way to connect, and what is told of it."""
