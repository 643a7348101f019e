# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread of guardd's fails: guardd says so and ends, and the next one takes over.

The incident: the thread that answers Postfix died of a bug, guardd went on for days,
and only its status line knew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.errors import EX_SOFTWARE
from tests.faults.site import Site

# Found by Python before anything of ours, as it looks for that name by itself; has a
# method of a thread raise once the file is there.
SITE = """\
import importlib, os
def _break(module, kind, method, trigger):
    kind = getattr(importlib.import_module(module), kind)
    whole = getattr(kind, method)
    def broken(*arguments, **options):
        if os.path.exists(trigger):
            raise RuntimeError("broken by a test")
        return whole(*arguments, **options)
    setattr(kind, method, broken)
_break({module!r}, {kind!r}, {method!r}, {trigger!r})
"""


@pytest.mark.parametrize(
    ("module", "kind", "method", "task"),
    [
        ("guard.scribe", "Clerk", "_write_notices", "writes the journal"),
        ("guard.mta.policy_service", "PolicyService", "_follow", "answers Postfix"),
        ("guard.mta.handins", "Handins", "_look", "follows sendmail(1)"),
        ("guard.requests", "Requests", "look", "follows PHP"),
        ("guard.preexisting", "Before", "begin", "tells of connections that are older"),
    ],
    ids=["scribe", "policy-service", "handins", "requests", "before"],
)
def test_a_thread_that_fails_ends_guardd(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    kind: str,
    method: str,
    task: str,
) -> None:
    trigger = tmp_path / "now"
    folder = tmp_path / "python"
    folder.mkdir()
    text = SITE.format(module=module, kind=kind, method=method, trigger=str(trigger))
    (folder / "sitecustomize.py").write_text(text)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        if method == "begin":  # it is done at once
            trigger.touch()
        guardd = site.start()
        if not trigger.exists():
            assert guardd.process.poll() is None, "the control: whole, it goes on"
            trigger.touch()
        assert guardd.process.wait(60) == EX_SOFTWARE
    said = guardd.said()
    assert f"the thread that {task}" in said and "broken by a test" in said
    [failed] = site.entries("failed")
    assert task in failed["MESSAGE"] and "RuntimeError" in failed["MESSAGE"]
    assert site.connect(3).denied == 3, "nothing opens"
    site.start()
    ledger = site.settled(site.started[-1])
    assert len(ledger.findings) == ledger.judged == 3
