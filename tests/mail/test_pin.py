# SPDX-License-Identifier: GPL-2.0-or-later
"""pin: with a real guard in force, Postfix reaches its smart host and nobody else."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import MX4, wait_until
from tests.lab.dns import NameServer
from tests.lab.guarded import POLICY, Guard, start_journald, start_resolver
from tests.mail.site import PASSWORD, RELAY, RELAY4, TABLE, USER, Site, table

MAIN = "/etc/postfix/main.cf"
WIDE = """\
# of the admin's own
mode = "enforce"
include = ["postfix", "rspamd"]  # what this host needs

[[rule]]
name = "newsletter"
user = "news"
verdict = "allow"
"""
NARROW = WIDE.replace('"postfix"', '"postfix-smart-host"')
PINNED = table(pin="true")
TRANSPORTS = "transport_maps = texthash:/etc/postfix/transport"
DIRECT = "somebody@v4.example.org"  # by the lab's own transport table, to MX4


@pytest.fixture(scope="module")
def guard(whole_site: Site) -> Iterator[Guard]:
    lab = whole_site.lab
    NameServer(lab).set("example.com", f"relay 4 IN A {RELAY4}\n")
    start_journald(lab)
    guard = Guard(lab, WIDE)
    guard.start()
    yield guard
    guard.stop()


@pytest.fixture
def pinned(site: Site, guard: Guard) -> Iterator[Site]:
    """A host with a guard in force, and no other way out of Postfix."""
    main = site.lab.path(MAIN).read_text()
    site.postconf("-X", "transport_maps")
    guard.apply(WIDE)
    yield site
    site.lab.path(MAIN).write_text(main)
    site.lab.check(["postsuper", "-d", "ALL"])


def policy(site: Site) -> str:
    return site.lab.path(POLICY).read_text()


def in_force(guard: Guard, narrow: bool) -> bool:
    """Ask the kernel's guard, not the file."""
    done = guard.ctl("status", "--json")
    assert done.returncode == 0, done
    return bool(json.loads(done.stdout)["smart_host"]) == narrow


def peer(site: Site, recipient: str) -> str:
    """Send a message, and give the address that brought it to the lab's MX."""
    found: Any = site.postfix.delivered(site.postfix.submit(recipient), timeout=60)
    return str(found["peer"][0])


def resolved(site: Site, guard: Guard) -> None:
    """Do what smtp-guard-names.path does, until the address is lawful."""
    start_resolver(site.lab)
    wait_until(
        lambda: RELAY4 in guard.ctl("status", "--json").stdout, "the relay's address"
    )


@contextlib.contextmanager
def direct(site: Site) -> Iterator[None]:
    """Somebody has a transport of his own in main.cf, which leads past the relay."""
    site.postconf("-e", TRANSPORTS)
    site.lab.check(["postfix", "reload"])
    yield
    site.postconf("-X", "transport_maps")
    site.lab.check(["postfix", "reload"])


def refused(site: Site, *words: str, status: int) -> str:
    """Have a verb fail, and nothing be changed by it; give what it said."""
    before = site.config(), policy(site)
    done = site.guardctl(*words)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    assert (site.config(), policy(site)) == before
    assert site.is_running()
    return done.stderr


def test_the_smart_host_and_nothing_else_until_it_is_off(
    pinned: Site, guard: Guard
) -> None:
    site, before = pinned, pinned.config()
    with direct(site):
        assert peer(site, DIRECT) != RELAY4, "the control: unpinned, it goes there"
    site.write_table(PINNED)
    plan = site.guardctl("plan")
    assert plan.returncode == 1
    for line in (
        f"{POLICY}\n",
        '-include = ["postfix", "rspamd"]\n',
        '+include = ["postfix-smart-host", "rspamd"]\n',
        f"pin: Postfix may connect to [{RELAY}]:587 ({RELAY4}), and nowhere else",
        'rule "newsletter"',
    ):
        assert line in plan.stdout
    assert policy(site) == WIDE, "a plan changes nothing"
    site.does("apply")
    assert policy(site) == NARROW
    assert in_force(guard, narrow=True)
    resolved(site, guard)
    site.does("check")
    assert peer(site, "somebody@anywhere.example") == RELAY4
    with direct(site):
        since = len(site.postfix.log())
        site.postfix.submit(DIRECT)
        line = site.log_of(DIRECT, since, "deferred")
        assert "Operation not permitted" in line
        rows = guard.findings("--to", MX4, "--user", "postfix", "--verdict", "deny")
        assert {row["outcome"] for row in rows} == {"denied"}
        argv = ["guardctl", "explain", "--finding", "-"]
        said = " ".join(site.lab.check(argv, json.dumps(rows[0])).split())
        assert f"lets it connect to [{RELAY}]:587 ({RELAY4}) alone" in said
        assert "where mail.toml has pin = true, take that out" in said
        site.does("smart-host", "off")
        assert policy(site) == WIDE
        assert in_force(guard, narrow=False)
        assert "status=sent" in site.log_of(DIRECT, since, "sent"), "what waited"
    assert site.config() == before


def test_what_it_would_deny_is_told_before(pinned: Site, guard: Guard) -> None:
    """One verb does not deny mail that worked; a plan that says so comes first."""
    site = pinned
    site.postconf("-e", TRANSPORTS)
    words = (f"[{RELAY}]:587", f"{USER}@{RELAY}", "--password-file", "-", "--pin")
    before = site.config()
    done = site.guardctl("smart-host", "set", *words, text=f"{PASSWORD}\n")
    assert done.returncode == 75, done
    assert "pin would deny to Postfix what goes by transport_maps" in done.stderr
    assert "guardctl mail plan" in done.stderr
    assert (site.config(), policy(site)) == (before, WIDE)
    assert not site.lab.path(TABLE).exists()

    site.write_table(PINNED)
    assert "pin would deny" in refused(site, "apply", status=75)
    said = site.guardctl("plan").stdout
    assert f"pin: denied is what goes by {TRANSPORTS}" in said
    site.does("apply")
    assert in_force(guard, narrow=True)
    assert "nothing to do" in site.does("apply"), "what was told is not told again"
    with_another = PINNED + '[transports]\n"out.example" = "smtp:[b.example]"\n'
    site.write_table(with_another)
    assert "transports: out.example" in refused(site, "apply", status=75)


def test_set_pins_and_keeps_it(pinned: Site, guard: Guard) -> None:
    site = pinned
    words = (f"[{RELAY}]:587", f"{USER}@{RELAY}", "--password-file", "-")
    told = site.does("smart-host", "set", *words, text=PASSWORD)
    assert 'include = ["postfix-smart-host"] in place of "postfix"' in told
    assert policy(site) == WIDE, "not pinned unless asked for"
    site.lab.path(POLICY).unlink()
    told = site.does("check")
    assert f"there is no policy {POLICY}; guardctl policy init" in " ".join(
        told.split()
    )
    assert "in place of" not in told
    site.lab.write(POLICY, WIDE)
    site.does("smart-host", "set", *words, "--pin", text=PASSWORD)
    assert policy(site) == NARROW
    site.does("smart-host", "set", *words, text="another")
    assert policy(site) == NARROW, "who changes the password does not open the host"
    assert ", pinned" in site.does("smart-host", "show")
    site.does("smart-host", "set", *words, "--no-pin", text=PASSWORD)
    assert policy(site) == WIDE
    assert in_force(guard, narrow=False)


@pytest.mark.parametrize(
    ("text", "host", "said"),
    [
        (
            WIDE + '[[rule]]\nname = "all-mail"\nuser = "postfix"\nverdict = "allow"\n',
            RELAY,
            f'rule "all-mail" ({POLICY}:9) lets Postfix connect anywhere',
        ),
        ('smart_host = "[b.example]:25"\n' + WIDE, RELAY, "which is not [relay."),
        (WIDE, "nowhere.example.com", "has no address in DNS"),
        ("mode = 'enforce\n", RELAY, "guardctl policy check"),
        ("", RELAY, "there is no policy"),
    ],
    ids=["rule", "another", "no-name", "broken", "missing"],
)
def test_what_cannot_be_pinned(pinned: Site, text: str, host: str, said: str) -> None:
    site = pinned
    site.write_table(PINNED.replace(RELAY, host, 1))
    site.lab.write(POLICY, text)
    if not text:
        site.lab.path(POLICY).unlink()
        before = site.config()
        done = site.guardctl("apply")
        assert (done.returncode, site.config()) == (78, before)
        assert said in done.stderr
    else:
        assert said in refused(site, "apply", status=78)
    site.lab.write(POLICY, WIDE)


def test_another_instance_is_not_followed(pinned: Site) -> None:
    site = pinned
    site.lab.check(["cp", "-a", "/etc/postfix-relay", "/etc/postfix-two"])
    site.postconf("-c", "/etc/postfix-two", "-e", "inet_interfaces=loopback-only")
    site.write_table(PINNED)
    done = site.guardctl("plan", "--config-dir", "/etc/postfix-two")
    assert done.returncode == 78
    assert "the guard follows the relayhost of /etc/postfix" in done.stderr


def test_an_include_changed_by_hand(pinned: Site, guard: Guard) -> None:
    site = pinned
    site.write_table(PINNED)
    site.does("apply")
    guard.apply(WIDE)
    done = site.guardctl("check", "--json")
    assert done.returncode == 1
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    (drift,) = (x["detail"] for x in checks if x["name"] == "drift")
    assert '-include = ["postfix", "rspamd"]' in drift
    site.does("apply")
    assert policy(site) == NARROW
    added = NARROW.replace('"rspamd"', '"rspamd", "mailman"')
    guard.apply(added)
    site.does("revert")
    assert policy(site) == added.replace("postfix-smart-host", "postfix")
    assert in_force(guard, narrow=False)


def test_changes_that_are_not_in_force_are_not_put_there(
    pinned: Site, guard: Guard
) -> None:
    """Somebody is writing a policy: pin must not be what makes it hold."""
    site = pinned
    draft = WIDE.replace('user = "news"', 'user = "backup"')
    site.write_table(PINNED)
    site.lab.write(POLICY, draft)
    said = refused(site, "apply", status=78)
    assert "guardctl policy apply, if they are meant" in said
    guard.apply(draft)
    site.does("apply")
    assert policy(site) == draft.replace('"postfix"', '"postfix-smart-host"')


def test_a_policy_changed_between_plan_and_apply(pinned: Site, guard: Guard) -> None:
    site = pinned
    site.write_table(PINNED)
    site.guardctl("plan")
    guard.apply(WIDE + "# by hand\n")
    said = refused(site, "apply", status=75)
    assert f"{POLICY} changed since the plan" in said


def test_killed_around_the_policy(pinned: Site, guard: Guard) -> None:
    """kill -9 at renames: list and journal, two of the password's table, main.cf,
    policy, state.

    tests/mail/test_killed.py goes through all of them without a pin.
    """
    site, before = pinned, pinned.config()
    site.write_table(PINNED)
    for number, there in ((6, WIDE), (7, NARROW)):
        inject = f"inject=rename,renameat,renameat2:signal=SIGKILL:when={number}"
        done = site.lab.run(
            ["strace", "-qq", "-o", "/dev/null", "-e", "trace=/rename", "-e", inject]
            + ["guardctl", "mail", "apply"],
            timeout=180,
        )
        assert done.returncode != 0
        assert "relayhost" in site.lab.path(MAIN).read_text(), "it was late"
        assert policy(site) == there
        done = site.guardctl("check")
        assert "put back, an apply was killed in the midst" in done.stderr
        assert POLICY in done.stderr
        assert (site.config(), policy(site)) == (before, WIDE)
    assert in_force(guard, narrow=False)


def test_a_guardd_that_does_not_answer(pinned: Site, guard: Guard) -> None:
    """It is part of "all or nothing": Postfix is as before, and so is the policy."""
    site = pinned
    site.write_table(PINNED)
    guard.signal(signal.SIGSTOP)
    try:
        said = refused(site, "apply", status=75)
    finally:
        guard.signal(signal.SIGCONT)
    assert "did not answer" in said
    with direct(site):
        assert peer(site, DIRECT) != RELAY4


def test_without_a_guard_it_says_so(pinned: Site, guard: Guard) -> None:
    site = pinned
    guard.stop()
    done = guard.ctl("unload")
    assert done.returncode == 0, done
    try:
        site.write_table(PINNED)
        assert "no guard is in force" in site.does("apply")
        assert policy(site) == NARROW, "it is in force once there is one"
        site.does("revert")
        assert policy(site) == WIDE
    finally:
        guard.start()
