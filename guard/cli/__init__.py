# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl, one module a verb: who-connected is in who_connected.py."""
