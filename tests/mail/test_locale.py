# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the locale says: files of Postfix hold any bytes, and mail.toml is UTF-8."""

from __future__ import annotations

import pytest

from tests.mail.site import TABLE, Site

MAIN = "/etc/postfix/main.cf"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
THEIRS = "# für München\nmail_name = Grüße\n".encode() + b"# latin \xe9\n"
TABLE_TEXT = """\
# für alle
relay_mynetworks = false
[transports]
".ru" = "oneshot"
"a.example" = "error:geht nicht, für niemanden"
"""


@pytest.mark.parametrize(
    "locale", [ASCII, {"LC_ALL": "C.UTF-8"}], ids=["ascii", "utf-8"]
)
def test_a_main_cf_and_a_table_that_are_not_ascii(
    site: Site, locale: dict[str, str]
) -> None:
    main = site.lab.path(MAIN)
    original = main.read_bytes()
    main.write_bytes(original + THEIRS)
    site.lab.path(TABLE).write_text(TABLE_TEXT, encoding="utf-8")
    before = site.config()
    try:
        plan = site.guardctl("plan", env=locale)
        assert plan.returncode == 1, plan
        site.does("apply", env=locale)
        site.does("check", env=locale)
        assert THEIRS in main.read_bytes()
        text = site.lab.path("/etc/postfix/smtp-guard/transport").read_bytes()
        assert "error:geht nicht, für niemanden".encode() in text
        site.does("transport", "set", "b.example", "relaylim", env=locale)
        assert "# für alle" in site.lab.path(TABLE).read_text(encoding="utf-8")
        said = site.guardctl("transport", "set", "c.example", "error:Grüße", env=locale)
        assert said.returncode == 0, said
        listed = site.does("transport", "list", "--json", env=locale)
        assert "Gr\\u00fc\\u00dfe" in listed
        assert "c.example" in site.does("transport", "list", env=locale)
        site.does("show", env=locale)
        # a value of theirs that we change, and put back
        site.postconf("-e", "smtpd_relay_restrictions=permit_mynetworks, reject")
        site.does("revert", env=locale)
        site.postconf("-X", "smtpd_relay_restrictions")
        assert site.config() == before
    finally:
        main.write_bytes(original)
