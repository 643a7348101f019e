# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP connections as the kernel lists them, and their end: sock_diag(7).

The work is done by a short-lived process of its own. It alone imports pyroute2,
which takes 24 MB, and it alone goes into the other network namespaces of the host;
guardd stays small and where it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from guard import child
from guard.errors import SockDiagError
from guard.privileges import Capability, missing
from guard.procfs import holders
from guard.tables import netns_cookie

# include/uapi/linux: sock_diag.h, inet_diag.h, netlink.h, sched.h
_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_INET_DIAG_CGROUP_ID = 21  # since Linux 5.9
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_CLONE_NEWNET = 0x40000000
# include/net/tcp_states.h: those in which its program can still send mail
ESTABLISHED, SYN_SENT, CLOSE_WAIT, _LISTEN = 1, 2, 8, 10
_OPEN = 1 << ESTABLISHED | 1 << SYN_SENT | 1 << CLOSE_WAIT
_SECONDS = 60.0  # for the process; 10,000 connections take it two
T = TypeVar("T")
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection that somebody on this host made, and who holds it now."""

    family: int
    state: int
    src: tuple[str, int]  # as the socket has it: ::ffff:192.0.2.1 if mapped
    dst: tuple[str, int]
    interface: int  # that it is bound to, 0: none
    cookie: int  # the socket's, for as long as the host is up
    uid: int  # of who made the socket
    inode: int
    cgroup: int  # id, of who made the socket
    netns: int  # inode
    netns_cookie: int
    pids: tuple[int, ...]


def is_any_open(ports: Collection[int], elsewhere: bool = False) -> bool:
    """Tell whether it is worth to list: mostly, at boot, it is not.

    elsewhere: only in other network namespaces than this process's.
    """
    peers = "|".join(f"{port:04X}" for port in ports)
    states = "|".join(f"{state:02X}" for state in (ESTABLISHED, SYN_SENT, CLOSE_WAIT))
    row = re.compile(rf":(?:{peers}) (?:{states}) ".encode())  # proc(5), /proc/net/tcp
    here = _own_namespace() if elsewhere else 0
    return any(
        row.search(_tables(pids))
        for netns, pids in _namespaces().items()
        if netns != here
    )


def _tables(pids: list[int]) -> bytes:
    """Read what the first that is still there shows of its network namespace."""
    for pid in pids:
        with contextlib.suppress(OSError):
            net = Path(f"/proc/{pid}/net")
            six = net / "tcp6"  # missing where IPv6 is off
            return (net / "tcp").read_bytes() + (
                six.read_bytes() if six.exists() else b""
            )
    return b""


def connections(ports: Collection[int]) -> list[Connection]:
    """List the open connections to these ports in all network namespaces.

    A namespace counts when a process is in it; without CAP_SYS_ADMIN, which it takes
    to go into another, only this process's own. Connections that were accepted, from
    a peer with such a port, are left out. Raises SockDiagError.
    """
    return list(_ask({"list": sorted(ports)}, _connection))


def destroy(ends: Iterable[Connection]) -> list[int]:
    """End connections with a reset; gives an errno for each, 0 for ended.

    The kernel compares the cookie: ENOENT is one that is not there any more.
    EOPNOTSUPP: the kernel is without INET_DIAG_DESTROY. EPERM: CAP_NET_ADMIN is
    missing. Raises SockDiagError.
    """
    return list(_ask({"end": [asdict(end) for end in ends]}, int))


def _ask(question: dict[str, Any], make: Callable[[Any], T]) -> Iterator[T]:
    """Have the other process answer, a line each: 10,000 take much memory at once."""
    try:
        done = subprocess.run(
            child.command("guard.sockdiag"),
            input=json.dumps(question).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise SockDiagError(last or f"wait status {done.returncode}")
        for line in io.BytesIO(done.stdout):
            yield make(json.loads(line))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SockDiagError(str(error)) from None


def _connection(row: dict[str, Any]) -> Connection:
    known: dict[str, Any] = {
        **row,
        **{name: tuple(row[name]) for name in ("src", "dst", "pids")},
    }
    return Connection(**known)


# ---- what the other process does


def _namespaces() -> dict[int, list[int]]:
    """Give the processes of each network namespace, by the namespace's inode.

    All of them: the first may have ended when it is its turn.
    """
    found: dict[int, list[int]] = {}
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it ended
            found.setdefault(os.stat(f"/proc/{pid}/ns/net").st_ino, []).append(pid)
    return found


def _own_namespace() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def _namespace(netns: int, pids: list[int]) -> int | None:
    """Open a namespace; None: no process is in it any more."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            if os.fstat(there).st_ino == netns:
                return there
            os.close(there)  # another process has got its number
    return None


def _each(netnses: dict[int, list[int]]) -> Iterator[tuple[int, socket.socket]]:
    """Go into one namespace after the other, with sock_diag open; raises OSError.

    There is no way back: this process has nothing else to do.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here, confined = _own_namespace(), missing(Capability.CAP_SYS_ADMIN)
    for netns, pids in netnses.items():
        if confined:
            if netns == here:
                with _sock_diag() as link:
                    yield netns, link
            continue
        there = _namespace(netns, pids)
        if there is None:  # nor any connection
            continue
        try:
            if libc.setns(there, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(there)
        with _sock_diag() as link:
            yield netns, link


def _sock_diag() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
    link.settimeout(_SECONDS)
    link.bind((0, 0))
    return link


def _messages() -> tuple[Any, Any]:
    """Give pyroute2's request and answer; the answer with the cgroup's id.

    Of pyroute2 only these are used: DiagSocket of 0.7 cannot tell an error from
    a connection, both being of "type" 2 where it looks.
    """
    from pyroute2.netlink.diag import inet_diag_msg, inet_diag_req

    names = list(inet_diag_msg.nla_map)[:_INET_DIAG_CGROUP_ID]
    names += [("INET_DIAG_UNNAMED", "hex")] * (_INET_DIAG_CGROUP_ID - len(names))
    names.append(("INET_DIAG_CGROUP_ID", "uint64"))

    class Answer(inet_diag_msg):  # type: ignore[misc]
        nla_map = tuple(names)

    return inet_diag_req, Answer


def _request(request: Any, kind: int, flags: int, **fields: Any) -> bytes:
    message = request()
    for name, value in {"sdiag_protocol": socket.IPPROTO_TCP, **fields}.items():
        message[name] = value
    message["header"]["type"] = kind
    message["header"]["flags"] = _NLM_F_REQUEST | flags
    message["header"]["sequence_number"] = 1
    message.encode()
    return bytes(message.data)


def _answers(link: socket.socket, answer: Any) -> Iterator[Any]:
    """Give the messages of a dump; raises OSError."""
    while True:
        data = link.recv(1 << 17)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                error = _error(data, at)
                if error.errno == errno.ENOENT:
                    error.strerror = "the kernel has no tcp_diag: modprobe tcp_diag"
                raise error
            message = answer(data, offset=at)
            message.decode()
            yield message
            at += length + 3 & ~3


def _error(data: bytes, at: int) -> OSError:
    (number,) = struct.unpack_from("=i", data, at + _HEADER.size)
    return OSError(-number, os.strerror(-number))


def _dump(
    link: socket.socket, messages: tuple[Any, Any], states: int, port: int = 0
) -> Iterator[Any]:
    request, answer = messages
    for family in (socket.AF_INET, socket.AF_INET6):
        link.send(
            _request(
                request,
                _SOCK_DIAG_BY_FAMILY,
                _NLM_F_DUMP,
                sdiag_family=family,
                idiag_states=states,
                idiag_dport=port,
            )
        )
        yield from _answers(link, answer)


def _open(link: socket.socket, messages: Any, ports: Collection[int]) -> list[Any]:
    return [m for port in ports for m in _dump(link, messages, _OPEN, port)]


def _list(ports: list[int]) -> list[Connection]:
    """List, then look who holds what, then leave out what has ended meanwhile."""
    found: list[Connection] = []
    messages = _messages()
    for netns, link in _each(_namespaces()):
        made = _open(link, messages, ports)
        if not made:
            continue
        served = {m["idiag_sport"] for m in _dump(link, messages, 1 << _LISTEN)}
        held = holders({m["idiag_inode"] for m in made})
        still = {m["idiag_cookie"] for m in _open(link, messages, ports)}
        cookie = netns_cookie()
        found += [
            _made(m, netns, cookie, held)
            for m in made
            if m["idiag_sport"] not in served and m["idiag_cookie"] in still
        ]
    return found


def _made(m: Any, netns: int, cookie: int, held: dict[int, Any]) -> Connection:
    return Connection(
        family=m["idiag_family"],
        state=m["idiag_state"],
        src=(m["idiag_src"], m["idiag_sport"]),
        dst=(m["idiag_dst"], m["idiag_dport"]),
        interface=m["idiag_if"],
        cookie=m["idiag_cookie"],
        uid=m["idiag_uid"],
        inode=m["idiag_inode"],
        cgroup=m.get_attr("INET_DIAG_CGROUP_ID") or 0,
        netns=netns,
        netns_cookie=cookie,
        pids=held.get(m["idiag_inode"], ()),
    )


def _end(ends: list[Connection]) -> list[int]:
    messages = _messages()
    numbers = dict.fromkeys(range(len(ends)), errno.ENOENT)
    wanted = {end.netns for end in ends}
    pids = {netns: pids for netns, pids in _namespaces().items() if netns in wanted}
    for netns, link in _each(pids):
        # SOCK_DESTROY would also take one that its program has closed
        there = _open(link, messages, {end.dst[1] for end in ends})
        still = {m["idiag_cookie"] for m in there}
        for index, end in enumerate(ends):
            if end.netns == netns and end.cookie in still:
                link.send(_destroy(messages[0], end))
                numbers[index] = _error(link.recv(1 << 16), 0).errno or 0
    return list(numbers.values())


def _destroy(request: Any, end: Connection) -> bytes:
    def words(address: str) -> tuple[int, ...]:
        packed = socket.inet_pton(end.family, address)
        return struct.unpack(">4I", packed.ljust(16, b"\0"))

    return _request(
        request,
        _SOCK_DESTROY,
        _NLM_F_ACK,
        sdiag_family=end.family,
        idiag_states=0xFFFFFFFF,
        idiag_src=words(end.src[0]),
        idiag_sport=end.src[1],
        idiag_dst=words(end.dst[0]),
        idiag_dport=end.dst[1],
        idiag_if=end.interface,
        idiag_cookie=end.cookie,
    )


_VERBS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "list": lambda ports: [asdict(c) for c in _list(ports)],
    "end": lambda rows: _end([_connection(row) for row in rows]),
}


def main() -> None:
    """Answer the one question on standard input, on standard output."""
    ((verb, argument),) = json.load(sys.stdin).items()
    for answer in _VERBS[verb](argument):
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
