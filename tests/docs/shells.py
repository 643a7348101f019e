# SPDX-License-Identifier: GPL-2.0-or-later
"""Real shells that complete a command line, each by its own means.

bash and zsh complete only where somebody types, so they get a terminal: the line,
the key that inserts all candidates, and one that writes the line into a file.
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
COMPLETION = CHECKOUT / "docs/completion"
PROGRAMS = Path(sys.executable).parent  # has guardctl and guardd
_SECONDS = 60.0

_BASH = """\
PS1=READY; unset HISTFILE
bind 'set enable-bracketed-paste off'
bind -x '"\\C-o": printf "%s\\n" "$READLINE_LINE" >line.new; mv line.new line'
bind '"\\C-t": insert-completions'
source {completion}/guardctl.bash
source {completion}/guardd.bash
"""
_ZSH = """\
PS1=READY; unsetopt zle_bracketed_paste beep; zstyle ':completion:*' menu no
bindkey -e
fpath=({completion} $fpath)
autoload -Uz compinit && compinit -u -D
zle -C all complete-word _generic
zstyle ':completion:all:*' completer _all_matches _complete
zstyle ':completion:all:*' insert yes
bindkey '^T' all
dump() {{ print -r -- "$BUFFER" >line.new; mv line.new line }}
zle -N dump
bindkey '^O' dump
"""


def environment(home: Path) -> dict[str, str]:
    """Give what a shell with no settings of the user's runs in."""
    return {
        "PATH": f"{PROGRAMS}:/usr/bin:/bin",
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "XDG_CONFIG_HOME": str(home),
        "XDG_DATA_HOME": str(home),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
    }


def candidates(shell: str, line: str, home: Path) -> list[str]:
    """Give what a shell offers for the last word of a line, in its order."""
    if shell == "fish":
        return _fish(line, home)
    rc, argv = {
        "bash": (_BASH, ["bash", "--rcfile", "rc", "-i"]),
        "zsh": (_ZSH, ["zsh", "-i"]),
    }[shell]
    text = rc.format(completion=COMPLETION)
    (home / ("rc" if shell == "bash" else ".zshrc")).write_text(text)
    before = line.rpartition(" ")[0]
    typed = _typed(argv, line, home)
    assert typed.startswith(before), typed
    return typed.removeprefix(before).split()


def _fish(line: str, home: Path) -> list[str]:
    folder = home / "fish/completions"
    folder.mkdir(parents=True, exist_ok=True)
    for path in COMPLETION.glob("*.fish"):
        shutil.copy(path, folder)
    done = subprocess.run(
        ["fish", "--private", "-c", 'complete -C "$argv[1]"', line],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return [text.partition("\t")[0] for text in done.stdout.splitlines()]


def _typed(argv: list[str], line: str, home: Path) -> str:
    """Type a line, ^T and ^O into a shell; give what the line became."""
    path = shutil.which(argv[0], path="/usr/bin:/bin")
    assert path
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execve(path, argv, environment(home))
    try:
        screen = _wait(terminal, lambda seen: b"READY" in seen, b"")
        os.write(terminal, line.encode() + b"\x14\x0f")
        result = home / "line"
        _wait(terminal, lambda seen: result.exists(), screen)
        text = result.read_text().rstrip("\n")
        result.unlink()
        return text
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def _wait(terminal: int, seen: object, screen: bytes) -> bytes:
    """Read the screen until what is waited for is there."""
    assert callable(seen)
    end = time.monotonic() + _SECONDS
    while not seen(screen):
        assert time.monotonic() < end, f"the shell hangs:\n{screen!r}"
        if select.select([terminal], [], [], 0.05)[0]:
            screen += os.read(terminal, 65536)
    return screen
