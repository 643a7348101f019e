# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to a real guardd when the world around it breaks.

site.py is a guardd with a cgroup, pins and a journald of its own; connects.c makes
the connects that it judges; each test file breaks one thing.
"""
