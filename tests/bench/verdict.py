# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict with 256 rules beside the verdict with one.

In each case the last rule is the one that matches, and denies; the 255 before it
differ in one dimension. The caller runs in a cgroup that looks like a unit's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median

from guard import abi, libbpf
from tests.bench.figure import Figure, Meter, bpf_stats
from tests.faults.site import Site

ROUNDS, CONNECTS, QUESTIONS, RULES = 9, 3000, 2000, 256


def _dimensions(site: Site, programs: list[Path]) -> dict[str, Callable[[int], str]]:
    """Give the line of rule n in each dimension; the last is true of the caller."""
    last = RULES - 1
    unit = "/".join(site.cgroup.parts[-2:])

    def exe(n: int) -> str:
        return f'exe = "{site.connects if n == last else programs[n]}"'

    return {
        "users": lambda n: f"user = {0 if n == last else 100_000 + n}",
        "programs": exe,
        "prefixes": lambda n: (
            'to = "127.0.0.0/8"' if n == last else f'to = "127.{n // 16 + 16}.{n}.0/24"'
        ),
        "units": lambda n: (
            f'unit = "/{unit}"' if n == last else f'unit = "site-{n:03}.service"'
        ),
    }


def _policy(site: Site, lines: list[str]) -> str:
    rules = "".join(
        f'[[local.rule]]\nname = "r{n}"\nverdict = "deny"\n{line}\n'
        for n, line in enumerate(lines)
    )
    return (
        f'mode = "enforce"\nports = [{site.port}]\n[local]\ndefault = "allow"\n'
        f'[fold]\nwindow = "1h"\n{rules}'
    )


def _question(site: Site) -> abi.Question:
    """Ask for what connects.c does."""
    seen = site.guard.identify(site.connects)
    parts = site.cgroup.parts[-2:]
    question = abi.Question(
        slot=site.guard.slot,
        direction=abi.Direction.LOCAL,
        depth=len(parts),
        port=site.port,
        trusted=1,
    )
    for key, field in ((seen.inode, question.inode), (seen.name, question.name)):
        for name in ("inode", "device", "generation", "name"):
            setattr(field, name, getattr(key, name))
        field.slot = site.guard.slot
    question.address[:] = abi.pack_address("127.0.0.1")
    for index, part in enumerate(parts):
        question.component[index].value = part.encode()
    return question


def measure(site: Site) -> list[Figure]:
    """Alternate between policies of one and of 256 rules."""
    programs = []
    for n in range(RULES):
        program = site.folder / "programs" / f"p{n}"
        program.parent.mkdir(exist_ok=True)
        shutil.copy2("/bin/true", program)
        programs.append(program)
    guardd = site.start()
    figures = []
    connect4 = Meter(libbpf.get_pinned(site.guard.home / "guard_connect4"))
    judge = Meter(libbpf.get_pinned(site.guard.home / "judge"))
    for name, line in _dimensions(site, programs).items():
        policies = {
            1: _policy(site, [line(RULES - 1)]),
            RULES: _policy(site, [line(n) for n in range(RULES)]),
        }
        laps: dict[tuple[str, int], list[float]] = {}
        for _ in range(ROUNDS):
            for rules, text in policies.items():
                site.write_policy(text)
                guardd.reload()
                assert "refused" not in site.guard.about(), site.guard.about()
                with bpf_stats():
                    connect4.lap()
                    assert site.connect(CONNECTS).denied == CONNECTS
                    laps.setdefault(("connect4", rules), []).append(connect4.lap())
                    question = site.guard.map("question")
                    question.put(bytes(4), bytes(_question(site)))
                    judge.lap()
                    for _ in range(QUESTIONS):
                        libbpf.run(judge.program)
                    laps.setdefault(("judge", rules), []).append(judge.lap())
                answer = abi.Question.from_buffer_copy(question.get(bytes(4)) or b"")
                assert answer.rule == rules - 1, (name, rules, answer.rule)
        ns = {key: median(values) for key, values in laps.items()}
        for asked in ("connect4", "judge"):
            one, many = ns[asked, 1], ns[asked, RULES]
            figures.append(
                Figure.at_most(
                    f"the verdict, {RULES} rules of different {name} / one, {asked}",
                    1.3,
                    many / one,
                    "x",
                    f"{many:.0f} ns a run / {one:.0f} ns",
                )
            )
    return figures
