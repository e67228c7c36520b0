"""A short soak: of hundreds of connections nothing is left. ``make soak`` has a hundred thousand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.soak import GROWN, grew, soak


def test_nothing_is_left(tmp_path: Path) -> None:
    assert asyncio.run(soak(300, tmp_path, short=True)) == []


@pytest.mark.parametrize(
    ("looks", "by"),
    [((0.0, 0.0, 0.0, 0.0, 0.0), 0.0), ((0.0, 1.0, 2.0, 3.0, 4.0), 4.0), ((0.0, 2.0, 0.0, 2.0, 0.0), 0.0)],
)
def test_memory_grows_by_the_line_through_all_looks(looks: tuple[float, ...], by: float) -> None:
    assert grew([GROWN * look for look in looks]) == pytest.approx(GROWN * by)
