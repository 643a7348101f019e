# SPDX-License-Identifier: GPL-2.0-or-later
"""Which script PHP was at: Debian's own php-fpm, mod_php and CLI, by their probes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard import requests
from guard.abi import Counter
from guard.finding import Finding
from guard.journal import frame, lines
from guard.kernel import Guard
from guard.message import message
from guard.origin import Naming
from guard.requests import Requests, attached
from guard.usdt import probes
from tests.kernel.phphost import Asking, apache, ask, fpm, fpm_program
from tests.kernel.world import Watch, World
from tests.lab.lab import join_cgroup, wait_until

pytestmark = pytest.mark.usefixtures("local_server")

_CONNECT = 'fclose(stream_socket_client("tcp://127.0.0.1:25")); echo getmypid();'
_SCRIPTS = {
    "mail.php": _CONNECT,
    "other.php": _CONNECT,
    "later.php": f"register_shutdown_function(function () {{ {_CONNECT} }});",
    "finished.php": f"fastcgi_finish_request(); {_CONNECT}",
    "plain.php": "echo getmypid();",
    # what PHP's mail() does: a shell, and a program of its own
    "child.php": "passthru('exec 2>&1; true; python3 connect.py');",
    "background.php": "exec('python3 wait.py >&2 & echo $!', $o); echo $o[0];",
    "stay.php": "touch('stays'); while (true) usleep(10000);",
}
_PYTHON = "import socket\nsocket.create_connection(('127.0.0.1', 25))\n"
_WAIT = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n" + _PYTHON


@pytest.fixture(scope="module")
def site(programs: Path) -> Path:
    """The folder of a web site that its user can write."""
    folder = programs / "site"
    folder.mkdir()
    for name, text in _SCRIPTS.items():
        (folder / name).write_text(f"<?php {text}\n")
    (folder / "connect.py").write_text(_PYTHON)
    (folder / "wait.py").write_text(_WAIT)
    folder.chmod(0o777)
    return folder


@pytest.fixture(params=["bpf", "perf"])
def told(guard: Guard, request: pytest.FixtureRequest) -> Iterator[Requests]:
    """Attached to all of PHP; afterwards to none of it.

    By either way, of which Linux below 6.6 has the second alone.
    """
    made = Requests(guard)
    made._multi = request.param == "bpf"
    made.look()
    assert not made.trouble
    yield made
    silence(guard)
    forget_rows(guard)


def silence(guard: Guard) -> None:
    """Remove all pins; the kernel lets go of what they held in its own time."""
    for pin in guard.home.glob(f"{requests.PIN}*"):
        pin.unlink()


def forget_rows(guard: Guard) -> None:
    for key in list(guard.map("requests").keys()):
        guard.map("requests").delete(key)


@pytest.fixture
def pools(world: World, programs: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder of the sockets of php-fpm's pools."""
    with fpm(tmp_path, world.guarded, fpm_program()):
        yield tmp_path


def found(watch: Watch) -> Finding:
    """Give the one finding since the last."""
    one = Naming().finding(watch.one())
    watch.forget()
    return one


def php(world: World, cwd: Path, *argv: str) -> None:
    subprocess.run(
        ["php", *argv],
        cwd=cwd,
        preexec_fn=lambda: join_cgroup(world.guarded),
        stdout=subprocess.DEVNULL,
        check=True,
    )


def source_of_cli(world: World, watch: Watch, site: Path) -> str | None:
    """Tell from where the script of PHP's command line is known."""
    php(world, site.parent, "site/mail.php")
    return found(watch).script_from


def source_of_fpm(watch: Watch, site: Path, pools: Path) -> str | None:
    """Likewise of php-fpm."""
    ask(pools / "shop.sock", site / "mail.php", b"/mail.php")
    return found(watch).script_from


def is_fpm_silent(guard: Guard, watch: Watch, site: Path, pools: Path) -> bool:
    """Tell whether php-fpm's requests are told no more, after silence().

    The kernel may let go of the probe at a request's end before that at its begin:
    what began between them has a row that nothing but this removes.
    """
    source = source_of_fpm(watch, site, pools)
    forget_rows(guard)
    return source == "cwd"


def rows(guard: Guard) -> int:
    return len(list(guard.map("requests").keys()))


def test_debian_has_the_probes_in_every_php(told: Requests, guard: Guard) -> None:
    places = [Path(fpm_program()), Path(os.path.realpath("/usr/bin/php"))]
    places += Path("/usr/lib/apache2/modules").glob("libphp*.so")
    for place in places:
        with place.open("rb") as file:
            here = {p.name: p for p in probes(file, "php")}
        for name in ("request__startup", "request__shutdown"):
            assert here[name].semaphore, "nobody pays who does not listen"
            assert here[name].cookie()
    assert len(attached(guard.home)) >= len(places)


def test_the_command_line(
    world: World, watch: Watch, site: Path, told: Requests, guard: Guard
) -> None:
    php(world, site.parent, "site/mail.php", "--to", "x")
    one = found(watch)
    assert (one.script, one.script_from) == (str(site / "mail.php"), "request")
    assert (one.request_uri, one.request_method) == (None, None)
    php(world, site, "-r", _CONNECT)
    one = found(watch)
    assert (one.script, one.script_from) == (None, None), "no file: none is made up"
    assert rows(guard) == 0, "no request, no row"


def test_without_the_probe_the_arguments_or_the_folder(
    world: World, watch: Watch, site: Path, pools: Path, guard: Guard
) -> None:
    """The control of all that is here."""
    wait_until(lambda: source_of_cli(world, watch, site) == "args", "no probe")
    wait_until(lambda: is_fpm_silent(guard, watch, site, pools), "no probe")
    php(world, site.parent, "site/mail.php")
    one = found(watch)
    assert (one.script, one.script_from) == (str(site / "mail.php"), "args")
    ask(pools / "shop.sock", site / "mail.php", b"/mail.php")
    one = found(watch)
    assert (one.script, one.script_from, one.pool) == (f"{site}/", "cwd", "shop")
    assert (one.request_uri, one.request_method) == (None, None)


def test_requests_of_two_pools(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path, guard: Guard
) -> None:
    for pool, name, uri, method in (
        ("shop", "mail.php", b"/mail.php/a b", "POST"),
        ("blog", "other.php", b"/a/b", "GET"),
        ("shop", "other.php", b"/again", "PUT"),
        ("shop", "later.php", b"/later", "GET"),
        ("shop", "finished.php", b"/finished", "GET"),
    ):
        pid = ask(pools / f"{pool}.sock", site / name, uri, method)
        wait_until(lambda: len(watch.connects()) == 1, "its connection")
        one = found(watch)
        assert (one.script, one.script_from) == (str(site / name), "request")
        assert (one.request_uri, one.request_method) == (uri.decode(), method)
        assert one.pool == pool
        assert not {"request-cut", "parent-request"} & set(one.incomplete)
        assert not pid or int(pid) == one.pid
    wait_until(lambda: rows(guard) == 0, "the end of each request")


def test_mod_php(
    world: World, watch: Watch, site: Path, told: Requests, tmp_path: Path
) -> None:
    with apache(tmp_path, site, world.guarded):
        address = "http://127.0.0.1:8080/mail.php?x=1"
        with urllib.request.urlopen(address, timeout=30) as answer:
            pid = int(answer.read())
        one = found(watch)
        assert (one.script, one.script_from) == (str(site / "mail.php"), "request")
        assert (one.request_uri, one.request_method) == ("/mail.php", "GET")
        assert (one.pid, one.pool) == (pid, None)


@pytest.mark.parametrize(
    "uri",
    [
        b"/\x1b[2J\r\n0::/\nSMTPGUARD_UID=0",
        b"/\xff\xfe\xe2\x80\xae",
        b"/" + b"u" * 190,
        b"/" + b"u" * 191,
        b"/" + b"\n" * 50_000,
    ],
    ids=["escapes", "bytes", "whole", "one-more", "long"],
)
def test_hostile_requests(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path, uri: bytes
) -> None:
    folder = site / "\x1b]0;x\x07\n\udcff"
    folder.mkdir(exist_ok=True)
    shutil.copy(site / "mail.php", folder)
    ask(pools / "shop.sock", folder / "mail.php", uri, "G\x1b")
    one = found(watch)
    assert one.script == str(folder / "mail.php")
    assert os.fsencode(one.request_uri or "") == uri[:191]
    assert one.request_method == "G\x1b"
    # its last byte is where a text of just this length ends, too
    assert ("request-cut" in one.incomplete) == (len(uri) >= 191)
    assert message(one).isprintable() and "\\x1b" in message(one)
    if b"\n" in uri:  # as journald reads it: a value of so many bytes, and no field
        size = len(uri[:191]).to_bytes(8, "little")
        field = b"\nSMTPGUARD_REQUEST_URI\n" + size + uri[:191] + b"\n"
        assert field in frame(lines(one))


def test_a_path_longer_than_its_limit(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path
) -> None:
    deep = site / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True, exist_ok=True)
    shutil.copy(site / "mail.php", deep)
    ask(pools / "shop.sock", deep / "mail.php", b"/uri", "GET")
    one = found(watch)
    assert one.script == str(deep / "mail.php")[:383]
    assert "request-cut" in one.incomplete
    assert (one.request_uri, one.request_method) == ("/uri", "GET"), "these are whole"


def test_a_program_that_a_request_starts(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path
) -> None:
    ask(pools / "shop.sock", site / "child.php", b"/child", "POST")
    one = found(watch)
    assert (one.script, one.script_from) == (str(site / "child.php"), "request")
    assert (one.request_uri, one.comm) == ("/child", "python3")
    assert "parent-request" in one.incomplete and one.pool is None


def test_a_request_is_not_taken_for_what_an_earlier_one_started(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path
) -> None:
    pid = int(ask(pools / "shop.sock", site / "background.php", b"/background"))
    (site / "stays").unlink(missing_ok=True)
    stays = Asking(pools / "shop.sock", site / "stay.php", b"/innocent")
    wait_until((site / "stays").exists, "the next request of the same worker")
    (site / "go").touch()
    wait_until(lambda: watch.connects(), "the connection from the background")
    one = found(watch)
    (site / "go").unlink()
    assert one.pid == pid
    assert (one.script, one.script_from) == (str(site / "wait.py"), "args")
    assert (one.request_uri, one.request_method) == (None, None)
    stays.socket.close()


def test_a_worker_that_is_killed_leaves_nothing(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path, guard: Guard
) -> None:
    worker = int(ask(pools / "shop.sock", site / "plain.php"))
    (site / "stays").unlink(missing_ok=True)
    killed = Asking(pools / "shop.sock", site / "stay.php", b"/killed")
    wait_until((site / "stays").exists, "a request")
    os.kill(worker, signal.SIGKILL)
    killed.socket.close()
    wait_until(lambda: not os.path.exists(f"/proc/{worker}"), "its end")
    assert rows(guard) == 1, "the control: it had no end"
    told.look()
    assert rows(guard) == 0
    assert int(ask(pools / "shop.sock", site / "mail.php", b"/next")) != worker
    assert found(watch).request_uri == "/next"


def test_a_row_of_an_earlier_process_is_nobodys(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path, guard: Guard
) -> None:
    """The number of a process that was killed in a request comes round again."""
    worker = int(ask(pools / "shop.sock", site / "plain.php"))
    (site / "stays").unlink(missing_ok=True)
    stays = Asking(pools / "blog.sock", site / "stay.php", b"/other")
    wait_until((site / "stays").exists, "a request of another worker")
    table = guard.map("requests")
    (key,) = table.keys()
    row = table.get(key)
    assert row
    silence(guard)  # so that nothing writes over it
    wait_until(lambda: is_fpm_silent(guard, watch, site, pools), "no probe")
    table.put((worker << 32 | worker).to_bytes(8, "little"), row)
    ask(pools / "shop.sock", site / "mail.php", b"/mail")
    one = found(watch)
    assert (one.pid, one.script, one.script_from) == (worker, f"{site}/", "cwd")
    assert one.request_uri is None
    stays.socket.close()


def test_no_room_is_counted(
    world: World, watch: Watch, site: Path, told: Requests, guard: Guard
) -> None:
    table = guard.map("requests")
    for number in range(table.max_entries):
        table.put(number.to_bytes(8, "little"), bytes(table.value_size))
    before = guard.counters()[Counter.NO_REQUEST]
    php(world, site, "mail.php")
    one = found(watch)
    assert (one.script, one.script_from) == (str(site / "mail.php"), "args")
    assert guard.counters()[Counter.NO_REQUEST] >= before + 1
    told.look()
    assert rows(guard) < 1000, "none of those lives, but for the numbers of some"


def test_a_new_php_is_found_and_an_old_one_let_go(
    world: World, watch: Watch, site: Path, guard: Guard, programs: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As a package replaces it: another file gets the name while the first runs."""
    program = programs / "php-fpm9.9"
    monkeypatch.setattr(requests, "_PATHS", (str(program),))
    monkeypatch.setattr(requests, "_RUN", frozenset(("php-fpm9.9",)))
    monkeypatch.setattr(requests, "program_of", lambda path: Path(path).name)
    shutil.copy(fpm_program(), program)
    look = Requests(guard)
    look.look()
    assert (look.trouble, len(attached(guard.home))) == ("", 1)
    with fpm(tmp_path, world.guarded, str(program)):
        ask(tmp_path / "shop.sock", site / "mail.php", b"/old")
        assert found(watch).request_uri == "/old"
        new = program.with_name("new")
        shutil.copy(fpm_program(), new)
        new.rename(program)
        look.look()
        assert len(attached(guard.home)) == 2, (
            "the one that runs, and the one installed"
        )
        ask(tmp_path / "shop.sock", site / "mail.php", b"/old")
        assert found(watch).request_uri == "/old"
    with fpm(tmp_path, world.guarded, str(program)):
        ask(tmp_path / "blog.sock", site / "mail.php", b"/new")
        assert found(watch).request_uri == "/new"
        look.look()
        assert len(attached(guard.home)) == 1, "nothing has the first any more"
    program.unlink()
    look.look()
    assert len(attached(guard.home)) == 0


def test_links_whose_pins_were_removed_are_made_again(
    world: World, watch: Watch, site: Path, told: Requests, guard: Guard
) -> None:
    silence(guard)
    wait_until(lambda: source_of_cli(world, watch, site) == "args", "no probe")
    told.look()
    php(world, site, "mail.php")
    assert found(watch).script_from == "request"


def test_a_php_that_others_can_write_is_not_believed(
    world: World, watch: Watch, site: Path, guard: Guard, programs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    program = programs / "php-of-a-user"
    shutil.copy(fpm_program(), program)
    monkeypatch.setattr(requests, "_PATHS", (str(program),))
    monkeypatch.setattr(requests, "_RUN", frozenset())
    monkeypatch.setattr(requests, "_HOLD", frozenset())
    for owner, mode, count in ((65534, 0o755, 0), (0, 0o775, 0), (0, 0o755, 1)):
        os.chown(program, owner, 0)
        program.chmod(mode)
        look = Requests(guard)
        look.look()
        assert (look.trouble, len(attached(guard.home))) == ("", count)
    program.unlink()
    look.look()


def test_what_is_attached_outlives_who_attached_it(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path, guard: Guard
) -> None:
    """guardd ends in the middle of a request, and the next one begins."""
    (site / "stays").unlink(missing_ok=True)
    stays = Asking(pools / "blog.sock", site / "stay.php", b"/goes-on")
    wait_until((site / "stays").exists, "a request")
    programs_of = told._object
    assert programs_of
    programs_of.close()
    ask(pools / "shop.sock", site / "mail.php", b"/without")
    assert found(watch).request_uri == "/without"
    again = Requests(guard)
    again.look()
    assert not again.trouble and rows(guard) == 1, "what is known is kept"
    ask(pools / "shop.sock", site / "mail.php", b"/again")
    assert found(watch).request_uri == "/again"
    stays.socket.close()


def test_scripts_of_one_worker_are_folded_each_for_itself(
    world: World, watch: Watch, site: Path, told: Requests, pools: Path
) -> None:
    watch.apply('[fold]\nwindow = "1h"\nlocal = 1\n')
    for name in ("mail.php", "other.php", "mail.php", "other.php", "mail.php"):
        ask(pools / "shop.sock", site / name)
    assert [e.script for e in watch.connects()] == [
        str(site / "mail.php"),
        str(site / "other.php"),
    ]
    sums = {repeat.first.script: repeat.folded for repeat in watch.repeats()}
    assert sums == {str(site / "mail.php"): 2, str(site / "other.php"): 1}


_LOOK = """\
from pathlib import Path
from guard.kernel import Guard
from guard.requests import Requests
look = Requests(Guard(Path({pins!r})))
look.look()
print(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0])
print(look.trouble)
"""


def test_what_guardd_may_is_enough(guard: Guard) -> None:
    """Its unit's capabilities; where it takes more, it says what to do."""
    wanted = "-all,+bpf,+perfmon,+net_admin,+sys_ptrace"
    done = subprocess.run(
        ["setpriv", f"--bounding-set={wanted}", f"--inh-caps={wanted}"]
        + ["--no-new-privs", "/usr/bin/python3", "-B", "-c"]
        + [_LOOK.format(pins=str(guard.pin_dir))],
        cwd=Path(requests.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    held, trouble = done.stdout.splitlines()
    assert int(held, 16) == 1 << 12 | 1 << 19 | 1 << 38 | 1 << 39
    release = tuple(int(n) for n in os.uname().release.split(".")[:2])
    if release < (6, 6) and trouble:  # Debian's and Ubuntu's
        assert trouble.endswith("(systemctl restart smtp-guard-load smtp-guard)")
    else:
        assert trouble == "" and len(attached(guard.home)) > 1
    silence(guard)
