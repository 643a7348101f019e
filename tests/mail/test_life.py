# SPDX-License-Identifier: GPL-2.0-or-later
"""plan, apply, check, revert: all or nothing, whatever comes in between."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.mail.site import RELAY, TABLE, WHOLE, Site, table

OURS = "/etc/postfix/smtp-guard"
MAIN, MASTER = "/etc/postfix/main.cf", "/etc/postfix/master.cf"
SMALL_DISK = """\
cp -a /etc/postfix /srv/postfix-copy
mount -t tmpfs -o mode=755,size=1m small /etc/postfix
mv /srv/postfix-copy/* /etc/postfix
rm -rf /srv/postfix-copy
"""
FILL = """\
rm -f /etc/postfix/fill
dd if=/dev/zero of=/etc/postfix/fill bs=4k 2>/dev/null || true
truncate -s -{room}k /etc/postfix/fill
"""


@contextlib.contextmanager
def appended(site: Site, file: str, text: str) -> Iterator[None]:
    """Have a file with a text at its end meanwhile."""
    before = site.lab.path(file).read_text()
    site.append(file, text)
    try:
        yield
    finally:
        site.lab.path(file).write_text(before)


def test_apply_and_revert_leave_every_byte_as_it_was(untidy: Site) -> None:
    before = untidy.config()
    untidy.write_table(WHOLE)
    assert untidy.guardctl("plan").returncode == 1
    assert untidy.config() == before, "plan changes nothing"
    untidy.does("apply")
    assert untidy.config() != before
    assert untidy.is_running()
    untidy.does("check")
    again = untidy.config()
    assert "nothing to do" in untidy.does("apply")
    assert untidy.config() == again
    untidy.does("revert")
    assert untidy.config() == before
    assert untidy.is_running()


def test_plan_is_a_diff(site: Site) -> None:
    site.write_table(WHOLE)
    done = site.guardctl("plan")
    assert done.returncode == 1
    for line in (
        f"+relayhost = [{RELAY}]:587",
        "-smtpd_client_port_logging = yes",
        "+smtpd_client_port_logging = no",
        "+authorized_submit_users = root, www-data",
        "+relaylim_destination_concurrency_limit = 1",
        f"+yahoo.com\trelaylim:[{RELAY}]:587".replace("\t", "\\x09"),
        f"{MASTER.rpartition('/')[2]}",
    ):
        assert line in done.stdout, line
    assert "not a secret" not in done.stdout
    found = json.loads(site.guardctl("plan", "--json").stdout)
    by_item = {change["item"]: change for change in found["changes"]}
    assert by_item["relayhost"]["after"] == f"[{RELAY}]:587"
    assert "not a secret" not in json.dumps(found)


def test_what_nobody_asked_for_is_not_touched(site: Site) -> None:
    site.write_table("client_port_logging = false\n")
    before = site.config()
    site.does("apply")
    after = site.config()
    assert {name for name in after if after[name] != before.get(name)} == {"main.cf"}
    lines = [
        text.decode().splitlines() for text in (before["main.cf"], after["main.cf"])
    ]
    assert [line for line in lines[1] if line not in lines[0]] == [
        "smtpd_client_port_logging = no"
    ]


def test_edits_by_hand_outlive_apply_and_revert(site: Site) -> None:
    site.write_table("client_port_logging = false\n")
    before = site.lab.path(MAIN).read_text()
    site.does("apply")
    site.append(MAIN, "# by hand\nbounce_queue_lifetime = 2d\n")
    site.does("revert")
    assert site.postconf("-h", "bounce_queue_lifetime").strip() == "2d"
    assert site.postconf("-h", "smtpd_client_port_logging").strip() == "yes"
    site.lab.path(MAIN).write_text(before)


def test_drift_is_reported_and_put_right(site: Site) -> None:
    site.write_table(table())
    site.does("apply")
    site.postconf("-e", "relayhost=[other.example]")
    done = site.guardctl("check", "--json")
    assert done.returncode == 1
    (drift,) = (
        x for x in map(json.loads, done.stdout.splitlines()) if x["name"] == "drift"
    )
    assert "-relayhost = [other.example]" in drift["detail"]
    site.does("apply")
    assert site.postconf("-h", "relayhost").strip() == f"[{RELAY}]:587"
    site.does("revert")
    assert site.postconf("-h", "relayhost").strip() == "[other.example]", (
        "his own, kept"
    )
    site.postconf("-X", "relayhost")


def test_what_somebody_changed_is_left_by_revert_and_told(site: Site) -> None:
    site.write_table(table())
    site.does("apply")
    site.postconf("-e", "relayhost=[other.example]")
    assert "relayhost was changed since apply" in site.does("revert")
    assert site.postconf("-h", "relayhost").strip() == "[other.example]"
    site.postconf("-X", "relayhost")


def test_a_table_that_somebody_names_is_left_until_he_does_not(site: Site) -> None:
    """Without it smtp(8) could look up no password at all, not even his own."""
    before = site.config()
    site.write_table(table())
    site.does("apply")
    his = f"hash:{OURS}/smart-host-auth, static:his:own"
    site.postconf("-e", f"smtp_sasl_password_maps={his}")
    said = site.does("revert")
    assert "smtp_sasl_password_maps names it" in said
    assert "customer" in site.lab.check(
        ["postmap", "-q", f"[{RELAY}]:587", f"hash:{OURS}/smart-host-auth"]
    )
    site.postconf("-X", "smtp_sasl_password_maps")
    site.does("revert")
    assert site.config() == before


@pytest.mark.parametrize("harm", ["chmod 644", "rm", "echo other >>"])
def test_a_table_that_is_not_as_it_was_left(site: Site, harm: str) -> None:
    site.write_table(table())
    site.does("apply")
    name = "smart-host-auth" if harm.startswith("echo") else "smart-host-auth.db"
    site.lab.check(["sh", "-c", f"{harm} {OURS}/{name}"])
    assert site.guardctl("check").returncode == 1
    site.does("apply")
    site.does("check")
    assert site.lab.path(f"{OURS}/smart-host-auth.db").stat().st_mode & 0o777 == 0o600


# ---- what comes in between


def refused(site: Site, before: dict[str, bytes], *words: str) -> str:
    """Have a verb fail and change nothing; give what it said."""
    done = site.guardctl(*words)
    assert done.returncode not in (0, 1), done
    assert "Traceback" not in done.stderr
    assert site.config() == before
    assert site.is_running()
    return done.stderr


def test_the_table_edited_between_plan_and_apply(site: Site) -> None:
    site.write_table(table())
    site.guardctl("plan")
    site.write_table('[transports]\n"yahoo.com" = "relaylim"\n')
    assert "something else than in the plan" in refused(site, site.config(), "apply")
    site.guardctl("plan")
    site.does("apply")


def test_main_cf_edited_between_plan_and_apply(site: Site) -> None:
    site.write_table(table())
    site.guardctl("plan")
    original = site.lab.path(MAIN).read_text()
    site.append(MAIN, "# by hand\n")
    said = refused(site, site.config(), "apply")
    assert "main.cf changed since the plan" in said
    assert "guardctl mail plan" in said
    site.guardctl("plan")
    site.does("apply")
    site.does("revert")
    site.lab.path(MAIN).write_text(original)


def test_a_read_only_etc(site: Site) -> None:
    site.write_table(table())
    before = site.config()
    site.lab.check(["mount", "--bind", "/etc/postfix", "/etc/postfix"])
    site.lab.check(["mount", "-o", "remount,bind,ro", "/etc/postfix"])
    try:
        assert site.guardctl("plan").returncode == 1, "a plan only reads"
        assert "Read-only file system" in refused(site, before, "apply")
    finally:
        site.lab.check(["umount", "/etc/postfix"])
    site.does("apply")


def test_a_table_that_cannot_be_written(site: Site) -> None:
    """Postfix could be: it is as before, and so is what is beside both."""
    site.write_table("client_port_logging = true\n")
    site.does("apply")
    site.lab.check(["mount", "--bind", "/etc/smtp-guard", "/etc/smtp-guard"])
    site.lab.check(["mount", "-o", "remount,bind,ro", "/etc/smtp-guard"])
    try:
        words = ("transport", "set", ".ru", "oneshot")
        said = refused(site, site.config(), *words)
        assert f"as before: {TABLE}: Read-only file system" in said
    finally:
        site.lab.check(["umount", "/etc/smtp-guard"])
    site.does("check")
    assert "put back" not in site.guardctl(*words).stderr
    site.does("check")


def test_another_apply_at_the_same_time(site: Site) -> None:
    site.write_table(table())
    site.does("revert")
    lock = f"{OURS}/state/lock"
    holder = site.lab.start(
        ["flock", lock, "sh", "-c", "echo held; exec cat"], stdin=-1
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    assert "another guardctl mail" in refused(site, site.config(), "apply")
    assert "another guardctl mail" in refused(site, site.config(), "revert")
    assert holder.stdin
    holder.stdin.close()
    holder.wait()
    site.does("apply")


def test_four_at_the_same_time(site: Site) -> None:
    """Each has it whole or says that another one works on it; all of it is there."""
    site.write_table(WHOLE)
    argv = ["guardctl", "mail", "apply"]
    started = [site.lab.start(argv) for _ in range(4)]
    ended = [(one.communicate(timeout=180)[1], one.returncode) for one in started]
    statuses = [status for _, status in ended]
    assert 0 in statuses and set(statuses) <= {0, 75}, ended
    assert all("another guardctl mail" in said for said, status in ended if status)
    site.does("check")
    assert site.is_running()


def test_a_full_disk(site: Site) -> None:
    """A file system with no room, then with more and more, until it is enough."""
    site.write_table(WHOLE)
    site.lab.check(["sh", "-euc", SMALL_DISK])
    before: dict[str, bytes] = {}
    try:
        refusals, room = 0, 0
        while refusals < 20:
            site.lab.check(["sh", "-euc", FILL.format(room=room)])
            before = site.config()
            done = site.guardctl("apply")
            if done.returncode == 0:
                break
            refusals += 1
            room += 12
            assert done.returncode in (73, 75, 78), done
            assert "No space left on device" in done.stderr
            assert "/etc/postfix/" in done.stderr, "it says where"
            assert site.config() == before
            assert site.is_running()
        assert 3 < refusals < 20, "at the lock, a table, master.cf, main.cf"
        site.does("check")
        after = site.config()
        site.lab.check(["sh", "-euc", FILL.format(room=0)])
        after = site.config()
        done = site.guardctl("revert")
        if done.returncode:
            assert "No space left on device" in done.stderr
            assert site.config() == after
        site.lab.check(["rm", "/etc/postfix/fill"])
        site.does("revert")
        before.pop("fill")
        assert site.config() == before
    finally:
        site.lab.check(["umount", "-l", "/etc/postfix"])


def test_postfix_check_that_fails_already(site: Site) -> None:
    site.write_table(table())
    with appended(site, MAIN, "mail_owner = nobody-of-this-name\n"):
        said = refused(site, site.config(), "apply")
    assert "postfix check fails already" in said
    assert "put that right first: postfix -c /etc/postfix check" in said


def test_postfix_check_that_fails_of_what_we_did(site: Site) -> None:
    """A stand-in for `postfix check`, which fails once the relay is in main.cf: no
    table of ours can make the real one fail.
    """
    site.write_table(table())
    site.does("revert")
    before = site.config()
    script = site.lab.path("/usr/lib/postfix/sbin/postfix-script")
    original = script.read_bytes()
    script.write_bytes(
        original.replace(
            b"\n",
            b"\n[ $1 != check ] || ! grep -q RELAY $config_directory/main.cf"
            b" || { echo fatal: as asked for >&2; exit 1; }\n".replace(
                b"RELAY", RELAY.encode()
            ),
            1,
        )
    )
    try:
        assert "as asked for" in refused(site, before, "apply")
    finally:
        script.write_bytes(original)
    site.does("apply")


def test_a_broken_master_cf(site: Site) -> None:
    site.write_table(WHOLE)
    with appended(site, MASTER, "broken line\n"):
        assert "bad field count" in refused(site, site.config(), "apply")


def test_a_foreign_table_in_the_way(site: Site) -> None:
    site.write_table(table())
    site.does("revert")
    site.lab.write(f"{OURS}/smart-host-auth", "of somebody else\n")
    said = refused(site, site.config(), "apply")
    assert "guardctl did not write it" in said
    site.lab.path(f"{OURS}/smart-host-auth").unlink()


# ---- others


def test_another_instance_is_left_alone(site: Site) -> None:
    """A second Postfix by --config-dir, and its own table; the first is not touched."""
    site.lab.check(["cp", "-a", "/etc/postfix-relay", "/etc/postfix-out"])
    site.postconf("-c", "/etc/postfix-out", "-e", "inet_interfaces=loopback-only")
    site.lab.write("/etc/smtp-guard/out.toml", "client_port_logging = true\n")
    before = site.config()
    words = ("--config-dir", "/etc/postfix-out", "--table", "/etc/smtp-guard/out.toml")
    assert site.guardctl("plan", *words).returncode == 1
    site.does("apply", *words)
    out = site.postconf("-c", "/etc/postfix-out", "-h", "smtpd_client_port_logging")
    assert out.strip() == "yes"
    site.does("check", *words)
    site.does("revert", *words[:2])
    out = site.postconf("-c", "/etc/postfix-out", "-n")
    assert "smtpd_client_port_logging" not in out
    assert site.config() == before


def test_where_postfix_is_not_configured(site: Site) -> None:
    done = site.guardctl("plan", "--config-dir", "/nonexistent")
    assert done.returncode == 69
    assert "/nonexistent/main.cf: no such file" in done.stderr


def test_where_postfix_is_not_installed(site: Site) -> None:
    site.write_table(table())
    hide = "mount --bind /dev/null /usr/sbin/postconf"
    done = site.lab.run(
        ["unshare", "-m", "sh", "-c", f"{hide} && exec guardctl mail plan"], timeout=180
    )
    assert done.returncode == 69, done
    assert "Postfix is not installed" in done.stderr


def test_without_a_table(site: Site) -> None:
    site.lab.path(TABLE).unlink(missing_ok=True)
    for verb in ("plan", "apply", "check", "show"):
        done = site.guardctl(verb)
        assert done.returncode == 78
        assert f"{TABLE}: error: no such file" in done.stderr
