# SPDX-License-Identifier: GPL-2.0-or-later
"""oneshot and relaylim do what they say, measured at the other end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import wait_until
from tests.mail.site import RELAY, TABLE, Site, table

MESSAGES = 30
OURS = "/etc/postfix/smtp-guard"


@pytest.fixture
def empty(site: Site) -> Iterator[Site]:
    """A queue with nothing in it, before and after."""
    site.lab.check(["postsuper", "-d", "ALL"])
    yield site
    site.lab.check(["postsuper", "-d", "ALL"])


def send(site: Site, *recipients: str) -> int:
    """Hand sendmail one message for each; give the place in the log before."""
    since = len(site.postfix.log())
    for recipient in recipients:
        site.lab.check(
            ["sendmail", "-i", "-f", "app@host.example.net", recipient],
            "Subject: x\n\nx\n",
        )
    return since


def most_open(site: Site, domain: str, number: int) -> int:
    """Have messages wait, let them go, and give the most connections at once."""
    site.lab.check(["postfix", "stop"])
    recipients = [f"{n}@{domain}" for n in range(number)]
    send(site, *recipients)
    before = len(site.sink("open"))
    arrived = len(site.sink("message"))
    site.postfix.start()
    wait_until(
        lambda: len(site.sink("message")) >= arrived + number, "all messages", 180
    )
    return int(max(record["open"] for record in site.sink("open")[before:]))


def test_relaylim_has_one_connection_at_a_time(empty: Site) -> None:
    assert most_open(empty, "plain.example.org", MESSAGES) > 1, "control: several"
    empty.does("transport", "set", "yahoo.com", "relaylim")
    assert most_open(empty, "yahoo.com", MESSAGES) == 1


def test_relaylim_has_one_for_all_its_domains(empty: Site) -> None:
    """yahoo.com and a name below it have one server here."""
    empty.does("transport", "set", "yahoo.com", "relaylim")
    empty.does("transport", "set", ".yahoo.com", "relaylim")
    empty.lab.check(["postfix", "stop"])
    send(empty, *(f"{n}@{d}yahoo.com" for n in range(6) for d in ("", "mail.")))
    before, arrived = len(empty.sink("open")), len(empty.sink("message"))
    empty.postfix.start()
    wait_until(lambda: len(empty.sink("message")) >= arrived + 12, "all messages", 180)
    assert max(record["open"] for record in empty.sink("open")[before:]) == 1


@pytest.mark.parametrize(
    "name", ["later@again.ru", "somebody@gone.ru"], ids=["451", "refused"]
)
def test_oneshot_bounces_what_others_would_defer(empty: Site, name: str) -> None:
    since = send(empty, name)
    line = empty.log_of(name, since, "deferred")
    assert "451" in line or "refused" in line
    empty.lab.check(["postsuper", "-d", "ALL"])
    empty.does("transport", "set", ".ru", "oneshot")
    empty.does("transport", "set", "again.ru", "oneshot")
    empty.does("transport", "set", "gone.ru", "oneshot")
    since = send(empty, name)
    line = empty.log_of(name, since, "bounced")
    assert "dsn=5." in line
    assert "451" in line or "refused" in line
    wait_until(lambda: name not in empty.queue(), "it is gone from the queue")
    told = empty.postfix.log()[since:]
    assert f"to=<{name}>, " in told
    assert "sender non-delivery notification" in told
    assert not [x for x in told.splitlines() if f"<{name}>" in x and "deferred" in x]


def test_oneshot_tries_every_message_once(empty: Site) -> None:
    """A destination that fails is not suspended: each message has its own attempt."""
    empty.does("transport", "set", "again.ru", "oneshot")
    empty.does("transport", "set", "gone.ru", "oneshot")
    empty.lab.check(["postfix", "stop"])
    names = [
        f"{who}{n}@{where}.ru"
        for n in range(8)
        for who, where in (("later", "again"), ("one", "gone"))
    ]
    send(empty, *names)
    since = len(empty.postfix.log())
    asked = len(empty.sink("recipient"))
    empty.postfix.start()
    for name in names:
        empty.log_of(name, since, "bounced")
    told = empty.postfix.log()[since:]
    assert "suspended" not in told
    assert "status=deferred" not in told
    assert len(empty.sink("recipient")) == asked + 8


def test_oneshot_delivers(empty: Site) -> None:
    empty.does("transport", "set", "again.ru", "oneshot")
    since = send(empty, "now@again.ru")
    assert "relay=again.ru" in empty.log_of("now@again.ru", since, "sent")


def test_oneshot_also_with_soft_bounce(empty: Site) -> None:
    empty.postconf("-e", "soft_bounce=yes")
    empty.does("transport", "set", "gone.ru", "oneshot")
    since = send(empty, "somebody@gone.ru")
    empty.log_of("somebody@gone.ru", since, "bounced")
    empty.does("revert")
    empty.postconf("-X", "soft_bounce")


def test_error_and_subdomains(empty: Site) -> None:
    empty.does("transport", "set", "example.com", "error:Bad domain!")
    empty.does("transport", "set", ".example.com", "error:Bad domain!")
    for name in ("a@example.com", "a@deep.below.example.com"):
        since = send(empty, name)
        assert "Bad domain!" in empty.log_of(name, since, "bounced")


def test_set_list_unset(empty: Site) -> None:
    before = empty.config()
    empty.write_table('# kept\n[transports]\n"a.example" = "smtp:[b.example]" # why\n')
    empty.does("transport", "set", "Yahoo.COM", "relaylim")
    empty.does("transport", "set", ".ru", "oneshot")
    empty.does("transport", "set", "c.example", "error:see:")
    as_given = {
        "a.example": "smtp:[b.example]",
        "yahoo.com": "relaylim",
        ".ru": "oneshot",
        "c.example": "error:see:",
    }
    assert json.loads(empty.does("transport", "list", "--json")) == as_given
    assert json.loads(empty.does("show", "--json"))["transports"] == as_given
    for out in (empty.does("transport", "list"), empty.does("show")):
        assert "oneshot\n" in out and "error:see:\n" in out
    assert ".ru" in empty.does("transport", "list", ".ru")
    maps = empty.postconf("-h", "transport_maps").strip()
    ours = "hash:/etc/postfix/smtp-guard/transport"
    assert maps == f"{ours}, texthash:/etc/postfix/transport", "somebody's own stays"
    for domain in (".ru", "yahoo.com", "a.example", "c.example"):
        empty.does("transport", "unset", domain)
    text = empty.lab.path(TABLE).read_text()
    assert text.startswith("# kept\n")
    empty.write_table('[transports]\n"Yahoo.COM" = "oneshot" # his own spelling\n')
    empty.does("transport", "set", "yahoo.com", "relaylim")
    assert '"Yahoo.COM" = "relaylim" # his own' in empty.lab.path(TABLE).read_text()
    empty.does("transport", "unset", "yahoo.com")
    assert empty.guardctl("transport", "list").returncode == 1
    assert empty.guardctl("transport", "unset", ".ru").returncode == 1
    assert empty.config() == before


@pytest.mark.parametrize(
    ("domain", "name", "said"),
    [
        ("yahoo.com", "nosuch", "no transport nosuch in master.cf"),
        ("yahoo com", "relaylim", "is not a domain"),
        ("#x@yahoo.com", "relaylim", "is not a domain"),
        ("yahoo.com", "error", "error has no text"),
        ("b\u00fccher.example", "relaylim", "xn--"),
        ("yahoo.com", "relay\nlim", "is not a transport"),
    ],
)
def test_what_is_no_domain_or_no_transport(
    empty: Site, domain: str, name: str, said: str
) -> None:
    before = empty.config()
    done = empty.guardctl("transport", "set", domain, name)
    assert done.returncode in (64, 78), done
    assert said in done.stderr
    assert empty.config() == before
    assert not empty.lab.path(TABLE).exists()


def test_a_transport_table_of_somebody_else_is_not_overwritten(empty: Site) -> None:
    theirs = empty.lab.path("/etc/postfix/transport").read_bytes()
    empty.does("transport", "set", "yahoo.com", "relaylim")
    assert empty.lab.path("/etc/postfix/transport").read_bytes() == theirs
    since = send(empty, "somebody@v4.example.org")
    empty.log_of("somebody@v4.example.org", since, "sent")


@pytest.mark.parametrize(
    ("kind", "suffix"), [("btree", "db"), ("lmdb", "lmdb"), ("cdb", "cdb")]
)
def test_tables_of_another_type(empty: Site, kind: str, suffix: str) -> None:
    """As another distribution's default has it: postmap makes a file of another name.

    btree's is named as hash's is; cdb's can be looked up in and not listed.
    """
    before = empty.config()
    empty.does("transport", "set", "yahoo.com", "relaylim")
    index = empty.lab.path(f"{OURS}/transport.{suffix}")
    empty.lab.write(f"{OURS}/transport.sdbm", "nobody's")
    for other in {"db", "lmdb", "cdb"} - {suffix, "db"}:
        empty.lab.write(f"{OURS}/transport.{other}", "left by another type")
    empty.postconf("-e", f"default_database_type={kind}")
    assert empty.guardctl("check").returncode == 1
    empty.does("apply")
    empty.does("check")
    maps = empty.postconf("-h", "transport_maps").strip()
    assert maps == f"{kind}:{OURS}/transport, texthash:/etc/postfix/transport"
    ours = {path.name for path in index.parent.glob("transport*")}
    assert ours == {"transport", index.name, "transport.sdbm"}
    since = send(empty, "somebody@yahoo.com")
    assert "relaylim/smtp" in empty.log_of("somebody@yahoo.com", since, "sent")
    # another key's index, of the right type and mode
    empty.lab.write(f"{OURS}/other", "a.example\trelaylim:\n")
    empty.lab.check(["postmap", f"{kind}:{OURS}/other"])
    empty.lab.check(["mv", f"{OURS}/other.{suffix}", str(f"{OURS}/{index.name}")])
    assert f"{index.name} was not made of it" in empty.guardctl("plan").stdout
    empty.does("revert")
    assert not index.exists()
    for name in ("other", "transport.sdbm"):
        empty.lab.path(f"{OURS}/{name}").unlink()
    empty.postconf("-X", "default_database_type")
    assert empty.config() == before


def test_with_a_smart_host_transports_go_there_too(empty: Site) -> None:
    """Or "all mail through one relay" would not be true of them."""
    empty.write_table(
        table() + '[transports]\n"yahoo.com" = "relaylim"\n"again.ru" = "oneshot"\n'
        '"out.example" = "smtp:[b.example]"\n'
    )
    assert "mail for out.example does not go through" in empty.guardctl("plan").stdout
    empty.does("apply")
    for name in ("a@yahoo.com", "a@again.ru"):
        since = send(empty, name)
        assert f"relay={RELAY}" in empty.log_of(name, since, "sent")
