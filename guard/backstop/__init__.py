# SPDX-License-Identifier: GPL-2.0-or-later
"""The second lock: the same policy once more, as rules of netfilter.

Two designs. Beside our kernel programs a socket that they judged and let pass
carries a mark, and a SYN without it did not come by a connect() that they saw.
Where they cannot be loaded the policy itself becomes owner and cgroup rules.

Reading order: lock (what it is to be), owner (rules of the policy in netfilter's
terms), uplinks, nftables and iptables (two ways to have it), keeper (in force,
and put back); then packet, nflog and witness (what it refused, as findings).
"""
