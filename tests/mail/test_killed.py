# SPDX-License-Identifier: GPL-2.0-or-later
"""Killed in the midst: whoever comes next takes back what was left half."""

from __future__ import annotations

import pytest

from tests.mail.site import RELAY, TABLE, WHOLE, Site, table

OURS = "/etc/postfix/smtp-guard"


def everything(site: Site) -> dict[str, bytes]:
    """Give all files of Postfix and of ours, but what state knows of them."""
    ours = site.lab.path("/etc/smtp-guard")
    left = [x.name for x in site.lab.path(f"{OURS}/state").glob(".*")]
    left += [x.name for x in site.lab.path(f"{OURS}/state").glob("staged*")]
    assert not left
    return site.config() | {f"ours/{x.name}": x.read_bytes() for x in ours.iterdir()}


def test_killed_at_every_step(untidy: Site) -> None:
    """kill -9 at each of the renames, one after the other, until none is left.

    strace(1) kills at the system call itself, before it is done. Of all verbs, set
    writes most: the table and a password, and then all that apply does.
    """
    kept = untidy.lab.path("/etc/smtp-guard/smart-host.password")
    kept.unlink(missing_ok=True)
    untidy.write_table(WHOLE.replace(table(), ""))
    untidy.does("revert")
    before = everything(untidy)
    words = ["smart-host", "set", f"[{RELAY}]:587", "somebody", "--password-file", "-"]
    killed = 0
    for number in range(1, 40):
        inject = f"rename,renameat,renameat2:signal=SIGKILL:when={number}"
        done = untidy.lab.run(
            ["strace", "-qq", "-o", "/dev/null", "-e", "trace=/rename", "-e"]
            + [f"inject={inject}", "guardctl", "mail", *words],
            "not a secret\n",
            timeout=180,
        )
        if done.returncode == 0:
            break
        killed += 1
        assert untidy.is_running()
        found = untidy.guardctl("check", "--json")
        assert found.returncode == 1, found
        assert everything(untidy) == before, f"killed at rename {number}"
    else:
        pytest.fail("it never came to its end")
    assert killed > 11, "table, password, journal, tables, master.cf, main.cf, state"
    untidy.does("check")
    assert kept.read_text() == "not a secret\n"
    untidy.does("smart-host", "off")
    untidy.does("revert")
    kept.unlink()
    untidy.write_table(WHOLE.replace(table(), ""))
    assert everything(untidy) == before


@pytest.mark.parametrize("verb", ["plan", "apply", "check", "revert", "set", "unset"])
def test_the_next_run_takes_back_what_a_killed_one_left(site: Site, verb: str) -> None:
    """Whichever it is: the table too is as it was, before it is read."""
    site.write_table("client_port_logging = true\n")
    site.does("revert")
    before = everything(site)
    inject = "rename,renameat,renameat2:signal=SIGKILL:when=4"  # table, and the next
    argv = ["guardctl", "mail", "transport", "set", ".ru", "oneshot"]
    done = site.lab.run(
        ["strace", "-qq", "-o", "/dev/null", "-e", "trace=/rename", "-e"]
        + [f"inject={inject}", *argv],
        timeout=180,
    )
    assert done.returncode
    assert "oneshot" in site.lab.path(TABLE).read_text(), "the control"
    words = {
        "set": ("transport", "set", "yahoo.com", "relaylim"),
        "unset": ("transport", "unset", ".ru"),
    }
    done = site.guardctl(*words.get(verb, (verb,)))
    assert f"put back, an apply was killed in the midst: {TABLE}" in done.stderr
    assert "oneshot" not in site.lab.path(TABLE).read_text()
    site.write_table("client_port_logging = true\n")
    site.does("revert")
    assert everything(site) == before
