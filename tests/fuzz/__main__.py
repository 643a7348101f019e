# SPDX-License-Identifier: GPL-2.0-or-later
"""`make fuzz`: looks for inputs that break a target, so many seconds for each.

What reaches something new goes into corpus/TARGET/found-*, what breaks a target into
corpus/TARGET/broke-*, where `make test` meets it until the bug is gone.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.keep import keep
from tests.fuzz.targets import CORPUS, TARGETS

CHECKOUT = Path(__file__).resolve().parents[2]
PLACE = CHECKOUT / ".venv-fuzz"
ATHERIS = "atheris==3.0.0"
# One input: far more than any may take, also on a busy machine.
SECONDS, MEGABYTES = 30, 2048


def python() -> Path | None:
    """Give a Python that has atheris; None, and why on standard error."""
    program = PLACE / "bin/python"
    try:
        if not program.exists():
            make = [sys.executable, "-m", "venv", "--system-site-packages", str(PLACE)]
            subprocess.run(make, check=True)
        if subprocess.run([program, "-c", "import atheris"], stderr=-3).returncode:
            install = [str(program), "-m", "pip", "install", "-q", "--no-deps", ATHERIS]
            subprocess.run([*install, "--retries", "1"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"fuzz: no {ATHERIS} to be had: {error}", file=sys.stderr)
        return None
    return program


def hunt(program: Path, name: str, seconds: int) -> bool:
    """Fuzz one target; False when something broke it."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        found, broke = Path(place, "found"), Path(place, "broke")
        found.mkdir()
        broke.mkdir()
        done = subprocess.run(
            [str(program), "-m", "tests.fuzz.guided", name, str(found), str(folder)]
            + [f"-max_total_time={seconds}", f"-timeout={SECONDS}", "-max_len=4096"]
            + [f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={broke}/"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            errors="replace",
        )
        runs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
        for path in broke.iterdir():
            data = path.read_bytes()
            kept = folder / f"broke-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            print(f"{name}: BROKEN by {kept.relative_to(CHECKOUT)}")
        if done.returncode:
            print(done.stderr[-4000:])
            return False
        kept_, reached = keep(TARGETS[name], folder, found.iterdir())
    print(f"{name}: {' '.join(runs)}, {kept_} inputs kept, {reached} steps", flush=True)
    return True


def main() -> int:
    """Fuzz the targets that are named, or all."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {' '.join(unknown)}")
    program = python()
    if program is None:
        return 1
    names = options.targets or list(TARGETS)
    whole = [hunt(program, name, options.seconds) for name in names]
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
