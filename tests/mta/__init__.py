# SPDX-License-Identifier: GPL-2.0-or-later
"""From a connection to a message: the policy service, and who-sent."""
