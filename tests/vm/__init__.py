# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole guests: Debian 12 under its own kernels, emulated by qemu.

What the machine under the tests cannot show: other kernels, LSM programs, systemd
as process 1. image.py makes the guest's disk once, qemu.py runs one emulator, saved.py
boots a guest and saves it as it stands there, guest.py runs one scenario in it, pool.py
several side by side, inside/ is what runs there, scenarios/ is what is to hold.
"""
