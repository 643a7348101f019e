# SPDX-License-Identifier: GPL-2.0-or-later
"""The second lock, in the real netfilter of network namespaces of the tests' own."""
