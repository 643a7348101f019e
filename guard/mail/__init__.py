# SPDX-License-Identifier: GPL-2.0-or-later
"""What mail.toml says, in Postfix: planned, applied, checked and taken back.

To be read in this order: password, table (what the admin wrote), guarded (the guard's
part), postfix (its own tools), relaying, transports, nexthop, smarthost (what the table
comes to), wanted (all of it), state (what was left there before), pin (the policy that
goes with a smart host), planning, transaction, applying, checking, doctor.
edit changes the table itself.
"""
