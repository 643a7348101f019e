# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl's verbs that act on the kernel, and the names that findings get."""
