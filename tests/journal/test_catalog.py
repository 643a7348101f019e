# SPDX-License-Identifier: GPL-2.0-or-later
"""journalctl -x explains every kind of entry, by systemd's own reading."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guard.finding import MAIL, Kind, Notice
from guard.journal import MESSAGE_IDS, NOTICES, lines
from tests.journal.conftest import CHECKOUT
from tests.journal.findings import finding, mail

CATALOG = CHECKOUT / "units" / "smtp-guard.catalog"
# Values that no process chooses; journalctl -x prints them as they are.
HARMLESS = {
    *("PID", "UID", "DST_ADDR", "DST_PORT", "SRC_PORT", "RULE", "OUTCOME"),
    *("VERDICT", "COUNT", "BYTES_SENT", "BYTES_RECEIVED"),
    *("SIZE", "RECIPIENTS"),
}


def journalctl(root: Path, *argv: str) -> str:
    done = subprocess.run(
        ["journalctl", f"--root={root}", *argv], capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a root directory with our catalog installed."""
    installed = tmp_path / "usr/lib/systemd/catalog"
    installed.mkdir(parents=True)
    shutil.copy(CATALOG, installed)
    journalctl(tmp_path, "--update-catalog")
    return tmp_path


def test_every_message_id_has_a_text_and_no_other(root: Path) -> None:
    listed = journalctl(root, "--list-catalog").splitlines()
    assert {line.split()[0] for line in listed} == set(MESSAGE_IDS.values())
    assert all(line.split()[1] == "smtp-guard:" for line in listed)


@pytest.mark.parametrize("kind", Kind)
def test_the_text_says_what_to_do_with_fields_that_exist(
    root: Path, kind: Kind
) -> None:
    text = journalctl(root, "--dump-catalog", MESSAGE_IDS[kind])
    assert re.search(r"guardctl |Nothing needs to be done|kill @", text)
    used = set(re.findall(r"@([A-Z_]+)@", text))
    assert used <= {f"SMTPGUARD_{name}" for name in HARMLESS}
    if kind in NOTICES:
        assert not used
        entry = lines(Notice(kind, 1, "x"))
    elif kind in MAIL:
        entry = lines(mail(finding(Kind.LOCAL), kind=kind))
    else:
        entry = lines(finding(kind, rule="r", count=2))
    if kind is not Kind.DENIED:
        assert used <= {line.partition("=")[0] for line in entry}
