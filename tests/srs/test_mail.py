# SPDX-License-Identifier: GPL-2.0-or-later
"""Forwarded mail, end to end: real Postfix, postsrsd, name server and SPF checker."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Lab, wait_until
from tests.lab.dns import NameServer
from tests.lab.lab import INTERNET, MX4, PATIENCE
from tests.srs.forwarders import (
    ADDRESSES,
    EVERYTHING,
    ORIGIN,
    SRS_MAIN,
    Forwarder,
    instances,
    policyd_spf,
    zones,
)

SEND = """\
import smtplib, sys
host, source, sender, to, text = sys.argv[1:]
with smtplib.SMTP(host, 25, "mail.origin.example", 30, (source, 0)) as mail:
    mail.sendmail(sender, [to], text)
"""
LONG = 3 * PATIENCE  # four hops, each with a queue


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        lab.check(["ip", "addr", "add", ORIGIN, "dev", "lo"], where=INTERNET)
        instances(lab, ADDRESSES)
        zones(NameServer(lab))
        yield lab


@pytest.fixture(scope="module")
def chain(lab: Lab) -> dict[str, Forwarder]:
    """fwd@f1 -> fwd@f2 -> fwd@f3 -> bob@final, and lost@ likewise to nobody there."""
    made = {}
    names = list(ADDRESSES)
    for name, following in zip(names, names[1:], strict=False):
        end = "bob" if following == "final.example" else "fwd"
        aliases = (
            f"virtual_alias_domains = {name}\nvirtual_alias_maps = inline:{{\n"
            f"  {{ fwd@{name} = {end}@{following} }}\n"
            f"  {{ lost@{name} = lost@{following} }} }}\n"
        )
        made[name] = Forwarder(lab, name, aliases, SRS_MAIN)
        made[name].only_what_comes_from_elsewhere()
        made[name].start()
    final = (
        "relay_domains = final.example\n"
        "relay_recipient_maps = inline:{ { bob@final.example = x } }\n"
        f"transport_maps = inline:{{ {{ final.example = smtp:[{MX4}] }} }}\n"
        "smtpd_recipient_restrictions = reject_unauth_destination,\n"
        "  reject_unlisted_recipient, check_policy_service unix:private/policyd-spf\n"
    )
    made["final.example"] = Forwarder(lab, "final.example", final)
    policyd_spf(made["final.example"])
    made["final.example"].start()
    return made


def send(lab: Lab, to: str, sender: str = "alice@origin.example") -> str:
    """Send from where origin.example's SPF record says; gives what marks it."""
    mark = f"mark {uuid.uuid4()}"
    text = f"From: Alice <{sender}>\nTo: {to}\nSubject: {mark}\n\nhello\n"
    argv = [sys.executable, "-c", SEND, ADDRESSES["f1.example"], ORIGIN]
    lab.check([*argv, sender, to, text], where=INTERNET, timeout=60)
    return mark


def arrived(lab: Lab, logs: dict[str, Forwarder], **wanted: str) -> dict[str, Any]:
    try:
        return wait_until(
            lambda: lab.mx_saw("message", **wanted), f"mail with {wanted}", LONG
        )[0]
    except TimeoutError as error:
        said = "\n".join(one.log()[-1500:] for one in logs.values())
        raise TimeoutError(f"{error}\n{said}") from None


def guardctl(lab: Lab, *argv: str) -> str:
    return lab.check(["guardctl", "srs", *argv], timeout=60)


def test_three_forwards_pass_spf_at_the_last_hop(
    lab: Lab, chain: dict[str, Forwarder]
) -> None:
    mark = send(lab, "fwd@f1.example")
    got = arrived(lab, chain, content=mark)
    assert got["recipients"] == ["bob@final.example"]
    assert re.search(
        r"Received-SPF: Pass .*client-ip=192\.0\.2\.13", got["content"], re.S
    )
    assert "From: Alice <alice@origin.example>" in got["content"], (
        "not a header's matter"
    )

    srs = json.loads(guardctl(lab, "decode", "--json", got["sender"]))
    assert (srs["kind"], srs["original"]) == ("SRS1", "alice@origin.example")
    assert (srs["first_forwarder"], srs["forwarder"]) == ("f1.example", "f3.example")
    secret = ["--secrets", chain["f3.example"].secret, "--hash-length", "8"]
    assert "good" in guardctl(lab, "check", *secret, got["sender"])
    secret = ["--secrets", chain["f1.example"].secret, "--hash-length", "8"]
    assert "good" in guardctl(lab, "check", *secret, srs["bounce_to"])


def test_a_bounce_comes_home(lab: Lab, chain: dict[str, Forwarder]) -> None:
    """final refuses the recipient; what f3 sends then goes by f1 to who it was."""
    mark = send(lab, "lost@f1.example")
    home = arrived(lab, chain, recipients="alice@origin.example", content=mark)
    assert home["sender"] in ("", "<>")
    assert home["peer"][0] == ADDRESSES["f1.example"]
    assert "lost@final.example" in home["content"]
    assert "550" in home["content"]


def test_a_forged_bounce_address_is_refused(
    lab: Lab, chain: dict[str, Forwarder]
) -> None:
    before = len(lab.mx_saw("message"))
    forged = "SRS0=AAAAAAAA=AA=origin.example=alice@f1.example"
    with pytest.raises(RuntimeError, match="550"):
        send(lab, forged, sender="spam@origin.example")
    assert len(lab.mx_saw("message")) == before


def test_without_srs_the_last_hop_refuses(
    lab: Lab, chain: dict[str, Forwarder]
) -> None:
    """The control: the same way, the same checker, and nobody rewrites."""
    names = ("f1.example", "f2.example", "f3.example")
    for name in names:
        chain[name].postconf("-P", "smtp/inet/cleanup_service_name=cleanup")
        chain[name].do("reload")
    mark = send(lab, "fwd@f1.example")
    home = arrived(lab, chain, recipients="alice@origin.example", content=mark)
    assert "SPF fail" in home["content"]
    assert not lab.mx_saw("message", recipients="bob@final.example", content=mark)
    for name in names:
        chain[name].only_what_comes_from_elsewhere()
        chain[name].do("reload")


WITHOUT_FROM = "To: bob@final.example\nSubject: {}\n\nhello\n"
SCRIPT = "shop@hosted.example"  # a domain of this host that postsrsd does not know of


def test_what_originates_here_is_not_rewritten(
    lab: Lab, chain: dict[str, Forwarder]
) -> None:
    """And a From: that is missing is filled with the real local sender."""
    mark = str(uuid.uuid4())
    f1 = chain["f1.example"]
    f1.sendmail(WITHOUT_FROM.format(mark), "-f", SCRIPT, "bob@final.example")
    got = arrived(lab, chain, content=mark)
    assert got["sender"] == SCRIPT
    assert re.search(rf"^From: (.*<)?{re.escape(SCRIPT)}>?", got["content"], re.M)
    done = lab.run(["guardctl", "srs", "local", "--log", f1.log_file])
    assert done.returncode == 1 and not done.stdout, "nothing to tell"


def test_the_case_of_the_seed_and_its_sign(
    lab: Lab, chain: dict[str, Forwarder]
) -> None:
    """All that cleanup(8) takes rewritten, as the usual setup does: From: is SRS's."""
    f2 = chain["f2.example"]
    f2.postconf("-e", *EVERYTHING.format(**f2.ports).splitlines())
    f2.do("reload")
    mark = str(uuid.uuid4())
    f2.sendmail(WITHOUT_FROM.format(mark), "-f", SCRIPT, "bob@final.example")
    got = arrived(lab, chain, content=mark)
    assert re.search(r"^From: .*SRS0=", got["content"], re.M | re.I)
    rows = guardctl(lab, "local", "--log", f2.log_file, "--json").splitlines()
    # the forwarders before it are at addresses of this same host
    [found] = [row for row in map(json.loads, rows) if row["uid"] is not None]
    assert (found["sender"], found["user"]) == (SCRIPT, "www-data")
    assert found["rewritten"] == got["sender"]

    f2.postconf("-X", "sender_canonical_maps", "sender_canonical_classes")
    f2.do("reload")
    again = str(uuid.uuid4())
    f2.sendmail(WITHOUT_FROM.format(again), "-f", SCRIPT, "bob@final.example")
    cured = arrived(lab, chain, content=again)
    assert cured["sender"] == SCRIPT
    assert re.search(rf"^From: (.*<)?{re.escape(SCRIPT)}>?", cured["content"], re.M)
