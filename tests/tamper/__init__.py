# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody with root changes the guard in the kernel while guardd runs.

Each change is first shown to open the guard when nobody puts it back (tamper =
"report"), then to be found, told once and put back.
"""
