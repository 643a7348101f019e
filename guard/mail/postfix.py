# SPDX-License-Identifier: GPL-2.0-or-later
"""Postfix's own tools: what main.cf and master.cf say, and edited copies of them.

By argument vector, never by a shell, with an environment of our own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from guard.errors import MailError, MailNotApplied, MtaError
from guard.mail.guarded import Guarded
from guard.text import printable

DEFAULT_CONFIG_DIR = Path("/etc/postfix")
MAIN, MASTER = "main.cf", "master.cf"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
_SECONDS = 120.0  # `postfix check` takes half a second; a host may be very busy
# postconf(1): it warns of a name that nothing uses, with its value.
_UNUSED = re.compile(r"^postconf: warning: \S+: unused parameter: ([^=]+)=(.*)$", re.M)
# DATABASE_README: what postmap makes beside the text, in order of preference.
SUFFIX = {"lmdb": ".lmdb", "hash": ".db", "btree": ".db", "cdb": ".cdb"}
# DATABASE_README: types that postmap -s cannot list, only look up in.
_NO_SEQUENCE = frozenset(("cdb",))


class Postfix:
    """One instance, by its configuration directory as for postconf -c."""

    def __init__(self, config_dir: Path, guard: Guarded) -> None:
        """Find it; raises MtaError when Postfix or that directory is not there."""
        self.guard = guard
        self.config_dir = Path(os.path.abspath(config_dir))
        if not shutil.which("postconf", path=_PATH):
            raise MtaError(
                "Postfix is not installed here: there is no postconf",
                hint="guardctl mail sets up Postfix and no other mail server",
            )
        for name in (MAIN, MASTER):
            if not (self.config_dir / name).is_file():
                raise MtaError(
                    f"{self.config_dir / name}: no such file",
                    hint="configure Postfix first, or name its directory:"
                    " --config-dir DIR",
                )
        self.ours = self.config_dir / "smtp-guard"
        self._map_kind = ""

    def main_cf(self) -> Path:
        """Give the file itself, where main.cf is a link to it."""
        return (self.config_dir / MAIN).resolve()

    def master_cf(self) -> Path:
        """Give the file itself, where master.cf is a link to it."""
        return (self.config_dir / MASTER).resolve()

    # ---- what it says

    def parameters(self, config_dir: Path | None = None) -> dict[str, str]:
        """Give what main.cf sets, with $names as they stand, unused ones as well."""
        done = self._run("postconf", "-n", config_dir=config_dir)
        found = dict(map(_assignment, done.stdout.splitlines()))
        found |= dict(_UNUSED.findall(done.stderr))
        found.pop("config_directory", None)  # the -c, not a setting
        return found

    def value(self, name: str, *, expand: bool = True) -> str:
        """Give a parameter's value or default; expand: its $names too."""
        return self._run("postconf", "-xh" if expand else "-h", name).stdout.strip()

    def default(self, name: str) -> str:
        """Give what a parameter is when main.cf does not set it, $names filled in.

        A default may ask for other parameters (compatibility_level), as main.cf has
        them: postconf -d alone would fill in the defaults of those.
        """
        return self.expanded(name, self._run("postconf", "-dh", name).stdout.strip())

    def expanded(self, name: str, text: str) -> str:
        """Give what a parameter would be with that text, $names filled in."""
        return self._run("postconf", "-o", f"{name}={text}", "-xh", name).stdout.strip()

    def services(self, config_dir: Path | None = None) -> dict[str, str]:
        """Give the lines of master.cf by name/type, blanks made one."""
        lines = self._run("postconf", "-M", config_dir=config_dir).stdout.splitlines()
        words = [line.split() for line in lines if line.strip()]
        return {f"{line[0]}/{line[1]}": " ".join(line) for line in words}

    def overrides(self) -> dict[str, dict[str, str]]:
        """Give the -o settings of each service of master.cf."""
        found: dict[str, dict[str, str]] = {}
        for line in self._run("postconf", "-P").stdout.splitlines():
            place, value = _assignment(line)
            service, _, name = place.rpartition("/")
            found.setdefault(service, {})[name] = value
        return found

    def map_kind(self) -> str:
        """Give the type of indexed table to make here: hash, lmdb, ...

        Raises MailError where this Postfix has none that postmap(1) makes one file of.
        """
        if not self._map_kind:
            known = self._run("postconf", "-m").stdout.split()
            first = self.value("default_database_type")
            kinds = [kind for kind in (first, *SUFFIX) if kind in SUFFIX]
            usable = [kind for kind in kinds if kind in known]
            if not usable:
                raise MailError(
                    "this Postfix has no hash, btree, lmdb or cdb tables",
                    hint="apt install postfix-lmdb",
                )
            self._map_kind = usable[0]
        return self._map_kind

    def indexed(self, text: Path) -> Path:
        """Give the file that postmap makes of a table's text."""
        return text.with_name(text.name + SUFFIX[self.map_kind()])

    def indexes(self, text: Path) -> list[Path]:
        """Give all indexes of a table that are there, of whatever type."""
        names = sorted({text.name + suffix for suffix in SUFFIX.values()})
        return [path for name in names if (path := text.with_name(name)).exists()]

    def map_text(self, text: Path) -> str:
        """Give what the indexed table holds, sorted lines of key and value.

        Of a type that cannot be listed: of the text's keys alone. Nothing where the
        index is of another type, or torn.
        """
        kind = f"{self.map_kind()}:{text}"
        if self.map_kind() in _NO_SEQUENCE:
            lines = text.read_text("utf-8", "surrogateescape").splitlines()
            words = [line.split(None, 1) for line in lines]
            keys = "".join(f"{word[0].lower()}\n" for word in words if word)
            done = self._call("postmap", "-q", "-", kind, config_dir=None, text=keys)
        else:
            done = self._call("postmap", "-s", kind, config_dir=None)
        return "".join(sorted(done.stdout.splitlines(keepends=True)))

    # ---- edited copies

    def edit_main(self, config_dir: Path, values: Mapping[str, str | None]) -> None:
        """Set or, with None, remove parameters in the main.cf of a directory."""
        new = [f"{name}={value}" for name, value in values.items() if value is not None]
        gone = [name for name, value in values.items() if value is None]
        if new:
            self._run("postconf", "-e", *new, config_dir=config_dir)
        if gone:
            self._run("postconf", "-X", *gone, config_dir=config_dir)

    def edit_master(self, config_dir: Path, lines: Mapping[str, str | None]) -> None:
        """Set or, with None, remove services in the master.cf of a directory."""
        for service, line in lines.items():
            if line is None:
                self._run("postconf", "-MX", service, config_dir=config_dir)
            else:
                self._run("postconf", "-M", f"{service}={line}", config_dir=config_dir)

    def make_map(self, text: Path) -> None:
        """Make the indexed table of a text, of the same mode: postmap(1)."""
        self._run("postmap", f"{self.map_kind()}:{text}")

    # ---- the whole instance

    def examine(self) -> str:
        """Run `postfix check`; give what it complains of when it fails, or ""."""
        done = self._call("postfix", "check", config_dir=None)
        return "" if done.returncode == 0 else _said(done)

    def is_running(self) -> bool:
        """Ask `postfix status`."""
        return self._call("postfix", "status", config_dir=None).returncode == 0

    def reload(self) -> None:
        """Have a running instance read its files again; raises MailNotApplied."""
        if self.is_running():
            done = self._call("postfix", "reload", config_dir=None)
            if done.returncode != 0:
                raise MailNotApplied(f"postfix reload: {_said(done)}")

    def _run(
        self, program: str, *arguments: str, config_dir: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = self._call(program, *arguments, config_dir=config_dir)
        if done.returncode != 0:
            raise MailError(
                f"{program} failed: {_said(done)}",
                hint=f"nothing was changed; postfix -c {self.config_dir} check may"
                " say more",
            )
        return done

    def _call(
        self, program: str, *arguments: str, config_dir: Path | None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Postfix's programs; what it writes goes nowhere else."""
        words = (program, "-c", str(config_dir or self.config_dir), *arguments)
        # whatever the locale: files of Postfix hold any bytes
        argv = [word.encode(errors="surrogateescape") for word in words]
        try:
            return subprocess.run(
                argv,
                input=text,
                capture_output=True,
                encoding="utf-8",
                errors="surrogateescape",
                env={"PATH": _PATH, "LC_ALL": "C"},
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MailError(f"{program} did not end within {_SECONDS:.0f} s") from None
        except OSError as error:
            raise MtaError(f"{program}: {error.strerror}") from None


def _assignment(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name.strip(), value.strip()


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Give the last lines, where the fatal one is, as one line.

    postfix(1) itself writes to standard error only where that is a terminal.
    """
    lines = (done.stderr + done.stdout).strip().splitlines()
    status = f"exit status {done.returncode}, and why in the mail log"
    return printable("; ".join(lines[-3:])) or status
