# SPDX-License-Identifier: GPL-2.0-or-later
"""guardctl mail against a real Postfix, a real relay with TLS and SASL, and a sink."""
