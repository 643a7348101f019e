# SPDX-License-Identifier: GPL-2.0-or-later
"""What the packages' scripts do to files: a policy at first, and what purging leaves.

The scripts themselves, with the checkout's guardctl and Debian's Postfix, in a mount
namespace: what they change of /etc, /run and /var is forgotten. No unit is started:
no systemd is seen there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packages.conftest import CHECKOUT

POLICY = Path("/etc/smtp-guard/policy.toml")
BEGIN = """\
mount -t tmpfs tmpfs "$SCRATCH"
for top in etc var; do
\tmkdir "$SCRATCH/$top" "$SCRATCH/$top/new" "$SCRATCH/$top/work"
\tmount -t overlay overlay -o "lowerdir=/$top,upperdir=$SCRATCH/$top/new" \\
\t\t-o "workdir=$SCRATCH/$top/work" "/$top"
done
mount -t tmpfs tmpfs /run
rm -rf /etc/smtp-guard /etc/postfix/smtp-guard
echo compatibility_level = 3.6 >/etc/postfix/main.cf
cp /usr/share/postfix/master.cf.dist /etc/postfix/master.cf
"""
LEFT = "[ -e {path} ] && echo there || echo gone\n"
# A setting of main.cf, and a table that Postfix reads.
TABLE = """\
client_port_logging = true
[transports]
"example.org" = "oneshot"
"""


def script(name: str) -> str:
    """Give a script of a package, as a shell function of that name."""
    if name != "post":
        text = (CHECKOUT / "debian" / name).read_text().replace("#DEBHELPER#", "")
    else:
        spec = (CHECKOUT / "smtp-guard.spec").read_text()
        found = re.search(r"^%post\n(.*?)^%preun$", spec, re.MULTILINE | re.DOTALL)
        assert found
        text = found[1].replace("%{_sysconfdir}", "/etc")
        text = "\n".join(one for one in text.splitlines() if not one.startswith("%"))
    return f"{name}() (\nset -e\n{text}\n)\n"


def run(name: str, acts: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run acts, which may call the script by its name."""
    (folder / "scratch").mkdir()
    program = folder / "guardctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m guard.cli.main "$@"\n')
    program.chmod(0o755)
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private"]
        + ["sh", "-c", f"set -e\n{BEGIN}{script(name)}{acts}"],
        env={
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "SCRATCH": str(folder / "scratch"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


# How dpkg (deb-postinst(5)) and rpm call it: at first, and over an older version.
FIRST = {"postinst": 'configure ""', "post": "1"}
AGAIN = {"postinst": "configure 0.0.9", "post": "2"}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_installation_writes_a_policy(name: str, tmp_path: Path) -> None:
    done = run(name, f"{name} {FIRST[name]}\ngrep ^mode {POLICY}", tmp_path)
    assert done.returncode == 0 and '\nmode = "observe" ' in done.stdout, done


@pytest.mark.parametrize("name", FIRST)
def test_one_that_is_there_stays_as_it_is(name: str, tmp_path: Path) -> None:
    acts = f"mkdir {POLICY.parent}\necho mine >{POLICY}\n{name} {FIRST[name]}\n"
    done = run(name, f"{acts}cat {POLICY}", tmp_path)
    assert done.stdout == "mine\n", done


@pytest.mark.parametrize("name", FIRST)
def test_an_upgrade_brings_none_back(name: str, tmp_path: Path) -> None:
    done = run(name, f"{name} {AGAIN[name]}\n{LEFT.format(path=POLICY)}", tmp_path)
    assert done.stdout == "gone\n", done


APPLY = f"""\
mkdir -p {POLICY.parent}
cat >{POLICY.parent}/mail.toml <<'END'
{TABLE}END
guardctl mail plan >/dev/null || [ $? -eq 1 ]
guardctl mail apply >/dev/null
"""
OURS = "/etc/postfix/smtp-guard"
REMAIN = "".join(LEFT.format(path=path) for path in (OURS, POLICY.parent))


def test_purging_leaves_what_postfix_works_by_and_says_so(tmp_path: Path) -> None:
    acts = f"{APPLY}postrm purge\n{REMAIN}postconf -h transport_maps\n"
    acts += "postmap -q example.org $(postconf -h transport_maps)\n"
    done = run("postrm", acts, tmp_path)
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert lines[:2] == ["there", "gone"], done
    assert OURS in lines[2] and lines[3], "Postfix still finds its table"
    assert "guardctl mail revert" in done.stderr


def test_after_a_revert_purging_leaves_nothing(tmp_path: Path) -> None:
    acts = f"{APPLY}guardctl mail revert >/dev/null\npostrm purge\n{REMAIN}"
    done = run("postrm", acts, tmp_path)
    assert (done.stdout, done.stderr) == ("gone\ngone\n", ""), done


def test_what_was_taken_back_after_a_purge_is_as_it_was(tmp_path: Path) -> None:
    """As the words say: installed again, it can be taken back."""
    acts = f"cp /etc/postfix/main.cf $SCRATCH\n{APPLY}postrm purge\n"
    acts += "cmp -s /etc/postfix/main.cf $SCRATCH/main.cf || echo set\n"
    acts += (
        "guardctl mail revert >/dev/null\ncmp /etc/postfix/main.cf $SCRATCH/main.cf\n"
    )
    done = run("postrm", f"{acts}postrm purge\n{REMAIN}", tmp_path)
    assert done.stdout == "set\ngone\ngone\n", done
