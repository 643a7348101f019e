# SPDX-License-Identifier: GPL-2.0-or-later
"""relay_mynetworks and its companions, and what doctor says of a posture."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import pytest

from guard.mail.relaying import Member, changed, with_first, without
from tests.mail.site import Site

RELAY, RECIPIENT = "smtpd_relay_restrictions", "smtpd_recipient_restrictions"
ELEMENT = "permit_mynetworks"
MAIN = "/etc/postfix/main.cf"


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("", "permit_mynetworks", ""),
        ("reject", "permit_mynetworks, reject", "reject"),
        ("permit_mynetworks, reject", "permit_mynetworks, reject", "reject"),
        ("permit_mynetworks reject", "permit_mynetworks reject", "reject"),
        ("permit_mynetworks", "permit_mynetworks", ""),
        (
            "permit_sasl_authenticated, permit_mynetworks, reject",
            "permit_sasl_authenticated, permit_mynetworks, reject",
            "permit_sasl_authenticated, reject",
        ),
        ("reject, permit_mynetworks", "permit_mynetworks, reject", "reject"),
        (
            "check_policy_service { inet:a:1, x=permit_mynetworks }, reject",
            "permit_mynetworks, check_policy_service"
            " { inet:a:1, x=permit_mynetworks }, reject",
            "check_policy_service { inet:a:1, x=permit_mynetworks }, reject",
        ),
        (
            "check_client_access hash:/permit_mynetworks reject",
            "permit_mynetworks, check_client_access hash:/permit_mynetworks reject",
            "check_client_access hash:/permit_mynetworks reject",
        ),
    ],
)
def test_an_element_of_a_list(text: str, inside: str, outside: str) -> None:
    assert with_first(text, ELEMENT) == inside
    assert without(text, ELEMENT) == outside
    for wanted, present in ((inside, True), (outside, False)):
        member = Member(RELAY, ELEMENT, present)
        assert changed(member, text) == wanted
        assert changed(member, wanted) == wanted


@pytest.fixture
def plain(site: Site) -> Iterator[Site]:
    """main.cf is put back after a test that edits it."""
    before = site.lab.path(MAIN).read_text()
    yield site
    site.does("revert")
    site.lab.path(MAIN).write_text(before)
    site.lab.check(["postfix", "reload"])


def lists(site: Site) -> list[str]:
    return [site.postconf("-h", name).strip() for name in (RELAY, RECIPIENT)]


def answer(site: Site) -> int:
    """Have a local process ask to relay; give the answer to RCPT."""
    program = (
        "import smtplib\ns = smtplib.SMTP('127.0.0.1', 25, timeout=60)\n"
        "s.ehlo('here'); s.mail('a@host.example.net')\n"
        "print(s.rcpt('b@elsewhere.example')[0]); s.quit()\n"
    )
    return int(site.lab.check(["python3", "-c", program], timeout=120))


def test_true_lets_local_processes_relay_and_false_does_not(plain: Site) -> None:
    plain.postconf("-e", f"{RELAY}=permit_sasl_authenticated, reject")
    plain.postconf(
        "-e", f"{RECIPIENT}=check_helo_access static:dunno, reject_unlisted_recipient"
    )
    before = lists(plain)
    plain.write_table("relay_mynetworks = true\n")
    plain.does("apply")
    assert lists(plain) == [f"{ELEMENT}, {text}" for text in before]
    assert answer(plain) == 250
    plain.write_table("relay_mynetworks = false\n")
    plain.does("apply")
    assert lists(plain) == before
    assert answer(plain) == 554


def test_false_where_it_stands_by_default(plain: Site) -> None:
    """Stock Postfix has permit_mynetworks in a default that main.cf does not show."""
    assert ELEMENT in lists(plain)[0]
    assert answer(plain) == 250
    plain.write_table("relay_mynetworks = false\n")
    plain.does("apply")
    assert lists(plain) == ["permit_sasl_authenticated, defer_unauth_destination", ""]
    assert answer(plain) == 454
    plain.does("revert")
    assert ELEMENT in lists(plain)[0]


def test_the_admins_own_additions_stay(plain: Site) -> None:
    plain.write_table("relay_mynetworks = true\n")
    plain.postconf("-e", f"{RELAY}=permit_sasl_authenticated, reject")
    plain.does("apply")
    added = (
        f"{ELEMENT}, permit_sasl_authenticated, reject_unknown_client_hostname, reject"
    )
    plain.postconf("-e", f"{RELAY}={added}")
    plain.does("check")
    plain.does("revert")
    assert lists(plain)[0] == added.removeprefix(f"{ELEMENT}, ")


def test_a_list_that_would_refuse_everybody(plain: Site) -> None:
    plain.postconf("-e", f"{RELAY}={ELEMENT}")
    plain.write_table("relay_mynetworks = false\n")
    done = plain.guardctl("apply")
    assert done.returncode == 78
    assert "smtpd would refuse all mail" in done.stderr
    assert lists(plain)[0] == ELEMENT


def test_an_element_that_comes_from_another_parameter(plain: Site) -> None:
    plain.postconf("-e", f"mua_list={ELEMENT}", f"{RELAY}=$mua_list, reject")
    plain.write_table("relay_mynetworks = false\n")
    done = plain.guardctl("apply")
    assert done.returncode == 78
    assert "comes from a parameter" in done.stderr
    plain.write_table("relay_mynetworks = true\n")
    plain.does("apply")
    assert lists(plain)[0] == "$mua_list, reject"


def test_who_may_submit_by_sendmail(site: Site) -> None:
    site.write_table('authorized_submit_users = ["root"]\n')
    site.does("apply")
    site.postfix.submit()
    with pytest.raises(RuntimeError, match="not allowed to submit"):
        site.postfix.submit(user="www-data")


@pytest.mark.parametrize(
    ("user", "file"),
    [
        ("hash:/etc/none", "/etc/none.db"),
        ("!texthash:/etc/none", "/etc/none"),
        ("/etc/none", "/etc/none"),
    ],
)
def test_a_table_of_submitters_that_is_not_there(
    site: Site, user: str, file: str
) -> None:
    site.write_table(f'authorized_submit_users = ["root", "{user}"]\n')
    before = site.config()
    for verb in ("plan", "apply"):
        done = site.guardctl(verb)
        assert done.returncode == 78
        assert f"{file}: no such file" in done.stderr
    assert site.config() == before
    site.postfix.submit()


def test_a_table_of_submitters_that_is_there(site: Site) -> None:
    site.lab.write("/etc/submitters", "root x\n")
    site.write_table('authorized_submit_users = ["texthash:/etc/submitters"]\n')
    site.does("apply")
    site.postfix.submit()


# ---- doctor


def diagnosis(site: Site) -> dict[str, list[dict[str, str]]]:
    done = site.guardctl("doctor", "--json")
    found: dict[str, list[dict[str, str]]] = {}
    for line in done.stdout.splitlines():
        found.setdefault(json.loads(line)["name"], []).append(json.loads(line))
    bad = any(x["state"] == "fail" for checks in found.values() for x in checks)
    assert done.returncode == bad, done
    return found


def states(site: Site, name: str) -> list[str]:
    return [check["state"] for check in diagnosis(site).get(name, [])]


def follow(site: Site, name: str) -> None:
    """Do what doctor says of a name, to the letter."""
    for check in diagnosis(site)[name]:
        if check["state"] != "ok":
            site.lab.check(shlex.split(check["remedy"]))


def test_doctor_names_the_line_that_ends_it(plain: Site) -> None:
    plain.postconf("-e", "smtpd_client_port_logging=no")
    plain.lab.check(["postfix", "reload"])
    assert states(plain, "relaying") == ["fail"]
    assert states(plain, "port") == ["fail"]
    follow(plain, "port")
    assert states(plain, "port") == ["ok"]
    assert states(plain, "relaying") == ["warn"], "it can be found by its port now"
    assert answer(plain) == 250
    follow(plain, "relaying")
    assert states(plain, "relaying") == ["ok"]
    plain.lab.check(["postfix", "reload"])
    assert answer(plain) == 454


@pytest.mark.parametrize(
    ("setting", "name", "state"),
    [
        ("enable_long_queue_ids=no", "queue-id", "warn"),
        ("mynetworks=127.0.0.0/8 0.0.0.0/0", "mynetworks", "fail"),
        ("smtpd_authorized_xclient_hosts=127.0.0.0/8", "claims", "fail"),
    ],
)
def test_doctor_of_main_cf(plain: Site, setting: str, name: str, state: str) -> None:
    plain.postconf("-e", setting)
    assert state in states(plain, name)
    follow(plain, name)
    assert state not in states(plain, name)


def test_doctor_adds_guardd_to_what_is_asked_already(plain: Site) -> None:
    name, quota = (
        "smtpd_end_of_data_restrictions",
        "check_policy_service unix:private/q",
    )
    plain.postconf("-e", f"{name}={quota}")
    assert states(plain, "guardd") == ["warn"]
    follow(plain, "guardd")
    assert states(plain, "guardd") == ["ok"]
    assert quota in plain.postconf("-h", name)


def test_doctor_of_a_service_with_settings_of_its_own(plain: Site) -> None:
    master = plain.lab.path("/etc/postfix/master.cf")
    before = master.read_text()
    master.write_text(
        f"{before}127.0.0.1:2526 inet n - n - - smtpd\n  -o {RELAY}={ELEMENT},reject\n"
    )
    follow(plain, "relaying")
    checks = diagnosis(plain)["relaying"]
    assert [check["state"] for check in checks] == ["ok"]
    master.write_text(before)


def test_doctor_of_a_smart_host(plain: Site) -> None:
    plain.lab.write("/etc/postfix/old-auth", "[a.example] user:secret\n")
    plain.postconf(
        "-e",
        "relayhost=[a.example]",
        "smtp_sasl_auth_enable=yes",
        "smtp_sasl_password_maps=hash:/etc/postfix/old-auth",
        "sender_dependent_relayhost_maps=static:[b.example]",
    )
    assert states(plain, "smart-host") == ["fail", "warn", "fail", "ok"]
    follow(plain, "smart-host")
    assert states(plain, "smart-host") == ["ok"]
    plain.postconf("-P", "smtp/unix/smtp_tls_security_level=may")
    (bad, _) = diagnosis(plain)["smart-host"]
    assert bad["detail"].startswith("smtp/unix: the password for [a.example] may be")
    follow(plain, "smart-host")
    assert states(plain, "smart-host") == ["ok"]
    plain.postconf("-PX", "smtp/unix/smtp_tls_security_level")
    plain.lab.path("/etc/postfix/old-auth").unlink()
