# SPDX-License-Identifier: GPL-2.0-or-later
"""Beside other people's rules: theirs stay, and neither undoes the other."""

from __future__ import annotations

import errno
import socket

import pytest

from guard.backstop.keeper import table_name
from tests.backstop.container import connect, container
from tests.backstop.ground import MARK, Ground, host_of, iptables, nft, policy, saved
from tests.backstop.ground import tables as theirs
from tests.kernel.world import HOST4, HOST6, MX4, MX6, SMTP

ADMIN = """
table inet firewalld {
  set banned { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 } }
  chain filter_OUTPUT { type filter hook output priority 10; policy accept;
    ct state established,related accept
    ip daddr @banned counter drop
    tcp dport 25 accept
  }
  chain forward { type filter hook forward priority 300; policy accept;
    tcp dport 25 counter accept
  }
}
table ip nat {
  chain post { type nat hook postrouting priority 100;
    ip saddr 10.0.0.0/8 masquerade
  }
}
table netdev mine {
  chain out { type filter hook egress device "host0" priority 0; policy accept;
    tcp dport 25 counter accept
  }
}
"""
LEGACY = [
    "-N DOCKER-USER",
    "-N DOCKER",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -o docker0 -j DOCKER",
    "-A DOCKER-USER -p tcp --dport 25 -j ACCEPT",
    "-A DOCKER-USER -j RETURN",
    "-A OUTPUT -m mark --mark 0x5 -j RETURN",
    "-A OUTPUT -p tcp -m tcp --dport 25 -j ACCEPT",
    "-A INPUT ! -i lo -p tcp -m multiport --dports 22,80 -j ACCEPT",
]


def chain(name: str, kind: str, rule: str) -> None:
    """Have a table with one chain of one rule."""
    base = f"type {kind}; policy accept;"
    text = f"table inet {name} {{\nchain out {{\n{base}\n{rule}\n}}\n}}\n"
    nft("-f", "-", text=text)


def admin(ground: Ground) -> None:
    nft("-f", "-", text=ADMIN)
    for to in (MX4, MX6):
        for line in LEGACY:
            iptables(line, to)
    assert ground.free(lambda: connect(MX4)).errno == 0  # none of it refuses that


def all_theirs(ground: Ground) -> tuple[str, ...]:
    ours = table_name(ground.site.pin_dir)
    legacy = (
        "\n".join(
            line
            for line in saved(version).splitlines()
            if ours.upper()[:20] not in line
        )
        for version in ("", "6")
    )
    return (theirs(ours), *legacy)


def test_other_rules_stay_as_they_are(ground: Ground) -> None:
    admin(ground)
    before = all_theirs(ground)
    ground.start()
    assert all_theirs(ground) == before
    for text in (
        policy(ground.kind, more="ports = [25]"),
        policy("iptables" if ground.kind == "nftables" else "nftables"),
        policy(ground.kind, mode="observe"),
        policy("off"),
        policy(ground.kind, backstop='forward = ["198.51.100.0/24"]\n'),
    ):
        ground.apply(text)
        assert all_theirs(ground) == before
    ground.guardd.end()
    assert ground.ctl("unload").returncode == 0
    assert all_theirs(ground) == before


def test_their_accept_lets_nothing_pass_that_we_refuse(ground: Ground, mx: str) -> None:
    admin(ground)
    ground.start()
    assert ground.free(lambda: connect(mx)).errno == errno.ECONNREFUSED
    with container(ground.world) as box:
        assert box.connect(mx).errno == errno.ECONNREFUSED
    # nor of what comes later, before or after ours
    for name, priority in (("early", -300), ("late", 400)):
        chain(name, f"filter hook output priority {priority}", "tcp dport 25 accept")
    assert ground.free(lambda: connect(mx)).errno == errno.ECONNREFUSED
    assert ground.guarded(lambda: connect(mx)).errno == 0


def test_their_drop_still_drops_what_we_let_pass(ground: Ground, mx: str) -> None:
    ground.start()
    assert ground.guarded(lambda: connect(mx)).errno == 0
    for priority in (0, 300):
        chain(
            "theirs",
            f"filter hook output priority {priority}",
            "tcp dport 25 reject with icmpx admin-prohibited",
        )
        assert ground.guarded(lambda: connect(mx)).errno not in (0, errno.EPERM)
        nft("delete", "table", "inet", "theirs")
    rule = "OUTPUT -p tcp --dport 25 -j REJECT --reject-with tcp-reset"
    iptables(f"-A {rule}", mx)
    assert ground.guarded(lambda: connect(mx)).errno == errno.ECONNREFUSED
    iptables(f"-D {rule}", mx)
    assert ground.guarded(lambda: connect(mx)).errno == 0


def test_a_firewall_that_is_loaded_anew_is_no_finding(ground: Ground) -> None:
    """As firewalld does, again and again: its own table goes and comes."""
    admin(ground)
    ground.start()
    for _ in range(20):
        nft(
            "-f",
            "-",
            text=f"delete table inet firewalld\ndelete table ip nat\n"
            f"delete table netdev mine\n{ADMIN}",
        )
    assert ground.free(lambda: connect(MX6)).errno == errno.ECONNREFUSED
    assert not ground.site.entries("tampered")


def test_policy_routing_by_a_mark_goes_on(ground: Ground) -> None:
    """A rule with a mask of its own does not see our bit, a socket keeps theirs."""
    ground.start()
    chain(
        "vpn",
        "route hook output priority -150",
        "meta mark & 0xffff == 0x5a01 counter",
    )

    def marked() -> int:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, 36, 0x5A01)
            sock.connect((MX4, SMTP))
            return sock.getsockopt(socket.SOL_SOCKET, 36)

    assert ground.guarded(marked).value == 0x5A01 | MARK
    assert "counter packets 0" not in nft("list", "table", "inet", "vpn")


def test_what_was_open_before_goes_on_and_what_comes_in_too(
    ground: Ground, mx: str
) -> None:
    family = socket.AF_INET6 if ":" in mx else socket.AF_INET
    server = ground.world.listen(ground.world.mx, mx, 465)
    with server, socket.socket(family) as sock:
        sock.settimeout(5)
        sock.connect((mx, 465))
        there, _ = server.accept()
        ground.start()
        assert ground.free(lambda: connect(mx, 465)).errno == errno.ECONNREFUSED
        with there:
            there.settimeout(5)
            for end, other in ((sock, there), (there, sock)):
                end.sendall(b"x" * 1000)
                assert len(other.recv(1000, socket.MSG_WAITALL)) == 1000
    with (
        ground.world.serve(ground.world.host, HOST4, HOST6),
        ground.world.inside(ground.world.mx),
    ):
        done = ground.world.control(lambda: connect(host_of(mx)))
    assert done.errno == 0


@pytest.mark.parametrize("ground", ["nftables"], indirect=True)
def test_two_guards_do_not_meet(ground: Ground) -> None:
    """Each has tables of its own name; unloading one leaves the other's."""
    ground.start()
    nft("add", "table", "inet", "smtp_guard")
    ground.guardd.end()
    ground.ctl("unload")
    assert nft("list", "tables").split() == ["table", "inet", "smtp_guard"]
