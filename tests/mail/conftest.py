# SPDX-License-Identifier: GPL-2.0-or-later
"""A site for each test file, and Postfix as it was before after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.mail.site import PASSWORD, TABLE, Site

MAIN = "/etc/postfix/main.cf"
UNTIDY = """
# of the admin's own
smtpd_recipient_restrictions =
    permit_sasl_authenticated,
    # in the midst of it
    reject_unauth_destination
"""


@pytest.fixture(scope="module")
def whole_site() -> Iterator[Site]:
    with Lab() as lab:
        yield Site(lab)


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    """A host where nothing is applied, and the table is not there."""
    yield whole_site
    whole_site.does("revert")
    whole_site.lab.path(TABLE).unlink(missing_ok=True)
    whole_site.write_secret(PASSWORD)


@pytest.fixture
def untidy(site: Site) -> Iterator[Site]:
    """A main.cf with a value of several lines and a comment in it."""
    before = site.lab.path(MAIN).read_text()
    site.append(MAIN, UNTIDY)
    yield site
    site.does("revert")
    site.lab.path(MAIN).write_text(before)
