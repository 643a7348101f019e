# SPDX-License-Identifier: GPL-2.0-or-later
"""The .deb: what lintian says, what is in it, and what its programs import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guard import __version__
from guard.backstop.iptables import DROP_IN
from tests.packages.conftest import CHECKOUT

ANY = (
    r"/usr/(bin/guardctl|sbin/guardd)",
    r"/usr/lib/smtp-guard/guard/.*(\.py|\.bpf\.o)",
    r"/usr/share/smtp-guard/policies/[\w-]+\.toml",
    r"/usr/share/smtp-guard/examples/[\w.-]+",
    r"/lib/systemd/system/smtp-guard[\w-]*\.(service|path)",
    r"/usr/lib/(sysusers|tmpfiles)\.d/smtp-guard(-postfix)?\.conf",
    r"/usr/lib/systemd/catalog/smtp-guard\.catalog",
    r"/usr/share/man/man\d/[\w.-]+\.gz",
    r"/usr/share/(bash-completion|zsh|fish)/.*",
    r"/usr/share/(doc|lintian|python3)/.*",
)


def run(*argv: str | Path) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def tree(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    run("dpkg-deb", "--extract", deb, tree)
    return tree


def contents(tree: Path) -> set[str]:
    return {f"/{p.relative_to(tree)}" for p in tree.rglob("*") if not p.is_dir()}


def pages() -> set[str]:
    """Name what README, programs and policies send a reader to: docs/*.md, and more."""
    return {path.name for path in CHECKOUT.glob("docs/*.md")} | {
        *("README.md", "SECURITY.md", "CHANGELOG.md")
    }


def lintian_errors(deb: Path) -> list[str]:
    """Give what lintian calls an error; of warnings each release knows others."""
    done = subprocess.run(
        ["lintian", "--fail-on", "none", deb], capture_output=True, text=True
    )
    assert done.returncode == 0, f"lintian itself failed: {done}"
    return [line for line in done.stdout.splitlines() if line.startswith("E:")]


def test_lintian_finds_no_error(deb: Path) -> None:
    assert lintian_errors(deb) == []


def test_lintian_finds_an_error_where_there_is_one(tmp_path: Path) -> None:
    """The control: a package that has no maintainer and a file in /usr/local."""
    tree = tmp_path / "tree"
    for folder in ("DEBIAN", "usr/local/bin"):
        (tree / folder).mkdir(parents=True)
    fields = "Package: p\nVersion: 1\nArchitecture: all\nDescription: p\n"
    (tree / "DEBIAN/control").write_text(fields)
    (tree / "usr/local/bin/p").write_text("p\n")
    made = tmp_path / "p_1_all.deb"
    run("dpkg-deb", "--root-owner-group", "--build", tree, made)
    assert any("usr-local" in line for line in lintian_errors(made))


def test_its_maintainer_is_one_and_at_nobodys_domain() -> None:
    """RFC 2606 keeps .example: mail to it reaches no stranger."""
    found = {
        re.findall(rf"(?m)^{field} *(.*?)(?:  .*)?$", (CHECKOUT / name).read_text())[0]
        for name, field in (
            ("debian/control", "Maintainer:"),
            ("debian/changelog", " --"),
            ("debian/copyright", r"Copyright: \d+"),
        )
    }
    (one,) = found
    assert re.fullmatch(r"smtp-guard maintainers <[\w.-]+@[\w.-]+\.example>", one)


def test_everything_of_the_checkout_is_in_it(tree: Path) -> None:
    inside = contents(tree)
    modules = "/usr/lib/smtp-guard"
    wanted = {f"{modules}/guard/{path.stem}.o" for path in CHECKOUT.glob("bpf/*.bpf.c")}
    for pattern, folder in (
        ("guard/**/*.py", modules),
        ("policies/*.toml", "/usr/share/smtp-guard"),
    ):
        found = {f"{folder}/{p.relative_to(CHECKOUT)}" for p in CHECKOUT.glob(pattern)}
        assert found
        wanted |= found
    for kind in ("service", "path"):
        units = CHECKOUT.glob(f"units/*.{kind}")
        wanted |= {f"/lib/systemd/system/{path.name}" for path in units}
    wanted |= {f"/usr/share/doc/smtp-guard/{name}" for name in pages()}
    assert not wanted - {path.removesuffix(".gz") for path in inside}


def test_the_drop_in_is_where_errors_and_the_page_say(tree: Path) -> None:
    assert DROP_IN in contents(tree)
    assert f".Pa {DROP_IN}\n" in (CHECKOUT / "docs/man/smtp-guard.toml.5").read_text()


def test_nothing_else_is_in_it(tree: Path) -> None:
    known = re.compile("|".join(ANY))
    assert not [path for path in contents(tree) if not known.fullmatch(path)]


def test_it_needs_what_make_setup_installs_and_nothing_more(deb: Path) -> None:
    """All of that is Debian 12's: no other package could be installed by it."""
    depends = run("dpkg-deb", "--field", deb, "Depends")
    names = re.findall(r"(?:^|, )([a-z0-9.+-]+)", depends)
    assert {"libbpf1", "python3-systemd"} <= set(names)
    status = run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}\n", *names)
    assert set(map(str.strip, status.splitlines())) == {"ii"}


def test_all_packages_are_of_one_version(deb: Path) -> None:
    assert run("dpkg-deb", "--field", deb, "Version").strip() == __version__
    spec = (CHECKOUT / "smtp-guard.spec").read_text()
    assert re.findall(r"^Version: +(\S+)$", spec, re.MULTILINE) == [__version__]


@pytest.mark.parametrize("program", ["usr/bin/guardctl", "usr/sbin/guardd"])
def test_a_program_imports_nothing_that_a_user_left_about(
    tree: Path, program: str, tmp_path: Path
) -> None:
    for name in ("guard", "systemd"):
        trap = tmp_path / name / "__init__.py"
        trap.parent.mkdir()
        trap.write_text("raise SystemExit('trapped')\n")
    control = subprocess.run(
        [sys.executable, "-c", "import guard"], cwd=tmp_path, capture_output=True
    )
    assert b"trapped" in control.stderr
    moved = tmp_path / "program"
    text = (tree / program).read_text()
    moved.write_text(text.replace("/usr/lib/smtp-guard", f"{tree}/usr/lib/smtp-guard"))
    moved.chmod(0o755)
    done = subprocess.run(
        [moved, "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout
