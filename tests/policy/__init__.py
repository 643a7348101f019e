# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy stage: parsing, trust, rows, evaluation, and its two verbs."""
