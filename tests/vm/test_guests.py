# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario, under every kernel it is for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue

import pytest

from tests.vm import guest, pool
from tests.vm.guest import End, Guest
from tests.vm.image import CannotMake, image, one_at_a_time

ALL = [
    (scenario.name, kernel)
    for scenario in sorted(guest.SCENARIOS.iterdir())
    for kernel in guest.head(scenario).kernels
]


Ends = dict[tuple[str, str], Future[End]]


@pytest.fixture(scope="module")
def lines() -> SimpleQueue[str]:
    """What a running test is to print of guests that have ended."""
    return SimpleQueue()


@pytest.fixture(scope="module")
def ends(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    lines: SimpleQueue[str],
) -> Iterator[Ends]:
    with one_at_a_time():
        try:
            made = image()
        except CannotMake as error:
            pytest.skip(str(error))
    disk = guest.checkout_disk(tmp_path_factory.mktemp("disk"))
    guests = []
    for item in request.session.items:
        if isinstance(item, pytest.Function) and "ends" in item.fixturenames:
            name, kernel = (
                str(item.callspec.params[key]) for key in ("name", "kernel")
            )
            folder = tmp_path_factory.mktemp(f"{name}-{kernel}-")
            guests.append(Guest.of(made, disk, guest.SCENARIOS / name, kernel, folder))
    with pool.running(guests, lines.put) as running:
        yield running


@pytest.mark.parametrize(("name", "kernel"), ALL)
def test_guest(
    ends: Ends,
    lines: SimpleQueue[str],
    capfd: pytest.CaptureFixture[str],
    name: str,
    kernel: str,
) -> None:
    future = ends[name, kernel]
    while not (future.done() and lines.empty()):
        with contextlib.suppress(Empty):
            line = lines.get(timeout=1)
            with capfd.disabled():
                print(f"\n{line}", end="", flush=True)
    end = future.result()
    print(end)
    if end.status == guest.NOT_TRIED:
        pytest.skip(end.report.strip())
    assert end.status == guest.PASSED, end
