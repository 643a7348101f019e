# SPDX-License-Identifier: GPL-2.0-or-later
"""Why programs cannot be loaded is told in the kernel's terms, with the remedy.

The kernels themselves are booted by tests/vm/scenarios/lockdown and no-btf.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from guard import needs
from guard.checks import State
from guard.errors import KernelError

ERROR = KernelError("cannot load guard.bpf.o", errno.EINVAL, hint="unknown func")


def test_this_kernel_lacks_nothing() -> None:
    assert {check.state for check in needs.needs()} == {State.GOOD}
    assert needs.explained(ERROR) is ERROR


def test_lockdown_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "lockdown"
    monkeypatch.setattr(needs, "LOCKDOWN", file)
    file.write_text("none [integrity] confidentiality\n")
    assert needs.explained(ERROR) is ERROR, "that refuses nothing of ours"
    file.write_text("none integrity [confidentiality]\n")
    said = needs.explained(ERROR)
    assert str(said).startswith("kernel: this kernel is locked down")
    assert str(said).endswith("cannot load guard.bpf.o: Invalid argument")
    assert "lockdown=integrity" in said.hint and said.errno == errno.EINVAL


def test_all_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(needs, "BTF", tmp_path / "vmlinux")
    monkeypatch.setattr(needs.os, "uname", lambda: type("", (), {"release": "5.10.0"}))
    said = needs.explained(ERROR)
    assert "Linux 5.10.0 is too old; " in str(said)
    assert f"{tmp_path}/vmlinux is missing" in str(said)
    assert "CONFIG_DEBUG_INFO_BTF=y" in said.hint
