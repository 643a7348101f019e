# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario, under every kernel it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.image import CannotMake, Image, image, one_at_a_time


@pytest.fixture(scope="module")
def the_image() -> Image:
    with one_at_a_time():
        try:
            made = image()
        except CannotMake as error:
            pytest.skip(str(error))
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest.checkout_disk(tmp_path_factory.mktemp("disk"))


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        (scenario.name, kernel)
        for scenario in sorted(guest.SCENARIOS.iterdir())
        for kernel in guest.head(scenario).kernels
    ],
)
def test_guest(
    the_image: Image, checkout: Path, name: str, kernel: str, tmp_path: Path
) -> None:
    scenario = guest.SCENARIOS / name
    with one_at_a_time():
        end = guest.run(the_image, kernel, scenario, checkout, tmp_path)
    print(end)
    if end.status == guest.NOT_TRIED:
        pytest.skip(end.report.strip())
    assert end.status == guest.PASSED, end
