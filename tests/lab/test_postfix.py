# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Postfix under an enforcing guard: mail flows, everything else is denied.

Each denial has its control: the same act at the same moment from a cgroup beside
the guarded one, which reaches the MX.
"""

from __future__ import annotations

import pwd
import re
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.lab import MX4, MX6, UNGUARDED, Lab, Postfix, wait_until
from tests.lab.guarded import Guard, start_journald
from tests.lab.postfix import DAEMONS
from tests.lab.rogue import FOLDER, ROGUES, Rogue

WITHOUT_POSTFIX = """\
mode = "enforce"

[local]
audit = true
default = "allow"
"""
ENFORCE = 'include = ["postfix"]\n' + WITHOUT_POSTFIX
EPERM = "Operation not permitted"
SMTP = f"{DAEMONS}/smtp"
WWW_DATA = pwd.getpwnam("www-data").pw_uid
# Until /run/enough exists: one mail after the other, marked $0 and numbered; then
# how many they were.
LOAD = """\
n=0
while [ ! -e /run/enough ]; do
    n=$((n + 1))
    printf 'Subject: %s %d.\\n\\nhello\\n' $0 $n |
        sendmail -i -f app@host.example.net somebody@example.org || exit
done
echo $n
"""

ROGUES_BY_NAME = [pytest.param(rogue, id=rogue.name) for rogue in ROGUES]


@pytest.fixture(scope="module")
def guard(lab: Lab, postfix: Postfix) -> Iterator[Guard]:
    """An enforcing guard, put in force while Postfix runs."""
    start_journald(lab)
    guard = Guard(lab, ENFORCE)
    guard.start()
    yield guard
    guard.stop()


def connects(lab: Lab) -> int:
    """Count the connections that any port of the MX has accepted."""
    return len(lab.mx_saw("connect"))


@pytest.mark.parametrize("address", [MX4, MX6], ids=["v4", "v6"])
@pytest.mark.parametrize("port", [25, 587])
@pytest.mark.parametrize("rogue", ROGUES_BY_NAME)
def test_a_rogue_is_denied_the_mx(
    lab: Lab, guard: Guard, rogue: Rogue, port: int, address: str
) -> None:
    if address == MX6 and not rogue.ipv6:
        address = MX4
    before = connects(lab)
    denied = rogue.run(lab, address, port)
    assert denied.returncode != 0
    assert EPERM in denied.stdout + denied.stderr
    assert connects(lab) == before, "it was denied, and the MX saw it all the same"

    control = rogue.run(lab, address, port, where=UNGUARDED)
    assert control.returncode == 0, control
    wait_until(lambda: connects(lab) > before, "the unguarded control at the MX")

    [row] = guard.findings("--pid", str(denied.pid))
    assert (row["verdict"], row["direction"]) == ("deny", "outbound")
    assert row["outcome"] == "denied"
    assert row["dst"] == {"addr": address, "port": port}
    assert (row["uid"], row["user"]) == (WWW_DATA, "www-data")
    assert row["cwd"] == FOLDER
    assert row["unit"] == "apache2.service"
    assert row["exe"].startswith("/usr/bin/")
    assert rogue.argv[0] in " ".join(row["args"][:2])
    assert not guard.findings("--pid", str(control.pid), at_least=0)


@pytest.mark.parametrize("rogue", ROGUES_BY_NAME)
def test_a_rogue_at_the_local_postfix_is_recorded(
    lab: Lab, guard: Guard, postfix: Postfix, rogue: Rogue
) -> None:
    done = rogue.run(lab, "127.0.0.1")
    assert done.returncode == 0, done
    [row] = guard.findings("--pid", str(done.pid))
    assert (row["verdict"], row["direction"]) == ("allow", "local")
    assert (row["uid"], row["cwd"]) == (WWW_DATA, FOLDER)
    # The port is what joins the process to what Postfix did for it.
    port = row["src"]["port"]
    assert f"connect from localhost[127.0.0.1]:{port}\n" in postfix.log()


def test_postfix_delivers_over_ipv4_and_ipv6(guard: Guard, postfix: Postfix) -> None:
    v4 = postfix.delivered(postfix.submit("somebody@v4.example.org", "www-data"))
    v6 = postfix.delivered(postfix.submit("somebody@v6.example.org", "www-data"))
    assert ":" not in str(v4["peer"])
    assert ":" in str(v6["peer"])


def test_without_its_rule_postfix_is_denied(guard: Guard, postfix: Postfix) -> None:
    """What makes the tests above and below ones that can fail."""
    guard.apply(WITHOUT_POSTFIX)
    try:
        log_before = len(postfix.log())
        mark = postfix.submit()
        wait_until(lambda: EPERM in postfix.log()[log_before:], "smtp(8) being denied")
        row = guard.findings("--exe", SMTP, "--verdict", "deny")[0]
        assert row["user"] == "postfix"
    finally:
        guard.apply(ENFORCE)
    postfix.delivered(mark)  # deferred, and sent as soon as it may be


def test_a_rule_can_demand_the_unit(guard: Guard, postfix: Postfix) -> None:
    """The strict policy: the right file and user in another unit are not enough."""
    unit = postfix.lab.unit("system.slice/system-postfix.slice/postfix@*.service")
    rule = f"""
[[rule]]
name = "postfix in its unit"
exe = "{SMTP}"
user = "postfix"
unit = "{unit}"
verdict = "allow"
"""
    guard.apply(WITHOUT_POSTFIX + rule)
    try:
        postfix.delivered(postfix.submit())
        postfix.stop()
        postfix.start(unit="user.slice")
        log_before = len(postfix.log())
        mark = postfix.submit()
        wait_until(lambda: EPERM in postfix.log()[log_before:], "smtp(8) being denied")
        postfix.stop()
        postfix.start()
        postfix.delivered(mark)
    finally:
        guard.apply(ENFORCE)


def under_load(postfix: Postfix, act: Callable[[], None]) -> int:
    """Act while mails are submitted; every one of them must arrive, none be denied.

    Gives how many they were.
    """
    lab, log_before, mark = postfix.lab, len(postfix.log()), f"load-{uuid.uuid4()}"
    lab.path("/run/enough").unlink(missing_ok=True)
    lab.path("/mnt/load").unlink(missing_ok=True)
    load = lab.start(["sh", "-c", LOAD, mark], user="www-data", output="/mnt/load")
    try:
        act()
    finally:
        lab.path("/run/enough").touch()
    assert load.wait(20) == 0
    sent = int(lab.path("/mnt/load").read_text().split()[-1])

    def missing() -> set[int]:
        arrived = {
            int(re.findall(rf"{mark} (\d+)\.", record["content"])[0])
            for record in lab.mx_saw("message", content=mark)
        }
        return set(range(1, sent + 1)) - arrived

    wait_until(lambda: not missing(), f"{sent} mails under load", timeout=60)
    assert EPERM not in postfix.log()[log_before:]
    return sent


def test_replacing_the_binaries_denies_no_mail(guard: Guard, postfix: Postfix) -> None:
    """dpkg's way: some smtp(8) run from the old, deleted file, some from the new."""
    before = postfix.lab.check(["stat", "-c", "%i", SMTP])

    def upgrade() -> None:
        for _ in range(20):
            postfix.replace_binaries()

    assert under_load(postfix, upgrade) > 50
    assert postfix.lab.check(["stat", "-c", "%i", SMTP]) != before


def test_restarting_postfix_denies_no_mail(guard: Guard, postfix: Postfix) -> None:
    def restart() -> None:
        for _ in range(3):
            postfix.stop()
            postfix.replace_binaries()
            postfix.start()

    under_load(postfix, restart)
