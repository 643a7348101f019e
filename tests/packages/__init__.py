# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make sdist wheel deb rpm` build. Real installs are tests/vm's."""
