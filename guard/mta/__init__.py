# SPDX-License-Identifier: GPL-2.0-or-later
"""From a connection to a message: what the host's own mail server tells.

Read delegation.py (how Postfix asks), listener.py (where), limits.py (how much an
origin has sent), admission.py (may it send this?), refusals.py (refused again and
again), origintoken.py (a header that leads back), policy_service.py (who sent this
message, and the answer), owed.py (answered, and not yet told), losses.py (what was not
told), handin.py (who called sendmail(1)), handins.py (how that is learnt),
maillog.py (what its log says of a message), then senders.py (a message's senders, out
of the journal and that log).
"""
