# SPDX-License-Identifier: GPL-2.0-or-later
"""The RPM, as far as Debian's rpmbuild can say: no system of that kind is here."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.packages.conftest import CHECKOUT


def run(*argv: str | Path) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_the_spec_is_read_with_the_macros_of_its_own_distributions() -> None:
    """%systemd_post and its kin are not Debian's: stood for by what they would do."""
    names = ("systemd_post", "systemd_preun", "systemd_postun_with_restart")
    defined = [f"--define={name}() true {name} %*" for name in names]
    parsed = run("rpmspec", "--parse", *defined, CHECKOUT / "smtp-guard.spec")
    for name in names:
        units = "smtp-guard-load.service smtp-guard.service smtp-guard-names.path"
        assert f"true {name} {units}" in parsed


def test_it_has_the_modules_objects_and_programs(rpm: Path) -> None:
    inside = set(run("rpm", "--query", "--list", "--package", rpm).splitlines())
    modules = "/usr/lib/smtp-guard"
    wanted = {
        f"{modules}/{p.relative_to(CHECKOUT)}" for p in CHECKOUT.glob("guard/**/*.py")
    }
    wanted |= {
        f"{modules}/guard/{path.stem}.o" for path in CHECKOUT.glob("bpf/*.bpf.c")
    }
    wanted |= {"/usr/bin/guardctl", "/usr/sbin/guardd"}
    assert not wanted - inside
    shown = {path.rpartition("/")[2] for path in inside if "/share/doc/" in path}
    assert not {path.name for path in CHECKOUT.glob("docs/*.md")} - shown


def test_an_upgrade_does_not_open_the_host(rpm: Path) -> None:
    scripts = run("rpm", "--query", "--scripts", "--package", rpm)
    assert '[ "$1" -eq 0 ]' in scripts.partition("guardctl unload")[0]
