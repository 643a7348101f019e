# SPDX-License-Identifier: GPL-2.0-or-later
"""guardd without kernel programs: the policy as owner rules of netfilter."""
