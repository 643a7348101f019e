# SPDX-License-Identifier: GPL-2.0-or-later
"""Can a program attached at a cgroup below the guard's undo a denial? It cannot.

The kernel runs the programs of a cgroup before those of its parents, and those of
parents whatever flags a child's were attached with, because a link's program is
attached with BPF_F_ALLOW_MULTI (kernel/bpf/cgroup.c, compute_effective_progs()).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.faults.site import Site
from tests.tamper import others as act
from tests.tamper.acts import begin, rounds, told


@pytest.mark.parametrize("name", ["guard_connect4", "take_back"])
@pytest.mark.parametrize("how", ["alone", "override", "multi", "link"])
def test_a_program_of_a_child_undoes_nothing(
    site: Site, others: Path, name: str, how: str
) -> None:
    guardd = begin(site, "report")
    child = site.cgroup / "child"
    child.mkdir()
    assert site.connect(3, cgroup=child).denied == 3
    with act.loaded(others, name) as program, contextlib.ExitStack() as attached:
        if how == "link":
            attached.enter_context(act.linked(program, child))
        else:
            flags = {"alone": act.ALONE, "override": act.OVERRIDE, "multi": act.MULTI}
            assert act.attach(program, child, flags[how]) == 0
        assert site.connect(3, cgroup=child).denied == 3
        assert site.connect(3).denied == 3
        rounds(guardd)
        assert told(site) == []


@pytest.mark.parametrize("flags", [act.ALONE, act.OVERRIDE])
def test_none_is_put_in_the_place_of_the_guard(
    site: Site, others: Path, flags: int
) -> None:
    """At the guard's own cgroup only flags that let both run are taken."""
    begin(site, "report")
    with act.loaded(others, "take_back") as program:
        assert act.attach(program, site.cgroup, flags) == 1  # EPERM
    assert site.connect(3).denied == 3


def test_a_program_of_a_parent_is_told_and_cannot_be_moved(
    site: Site, others: Path
) -> None:
    """The guard is at the root of the host, where there is no parent."""
    top = site.cgroup
    site.cgroup = top / "below"
    site.cgroup.mkdir()
    try:
        guardd = begin(site, "repair")
        with act.loaded(others, "take_back") as program, act.linked(program, top):
            guardd.until(lambda: told(site), "a finding", 40)
            assert site.connect(3).passed == 3
            rounds(guardd)
            assert told(site) == [("order", "changed", "0")]
        guardd.until(lambda: len(told(site)) == 2, "the end", 40)
        assert told(site)[-1] == ("order", "good", "1")
        assert site.connect(3).denied == 3
    finally:
        site.cgroup = top


def test_one_that_comes_before_undoes_nothing(site: Site, others: Path) -> None:
    with act.loaded(others, "take_back") as program, act.linked(program, site.cgroup):
        guardd = begin(site, "repair")
        assert site.connect(3).denied == 3
        rounds(guardd)
        assert told(site) == []
