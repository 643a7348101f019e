# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard follows a smart host whose addresses a real name server changes."""
