# SPDX-License-Identifier: GPL-2.0-or-later
"""SPF records in a real name server, judged by us and by a real checker."""
