# SPDX-License-Identifier: GPL-2.0-or-later
"""The systemd units, as far as they can be judged where systemd is not process 1."""
