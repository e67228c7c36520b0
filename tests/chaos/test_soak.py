"""A short soak: of hundreds of connections nothing is left. ``make soak`` has a hundred thousand."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.soak import soak


def test_nothing_is_left(tmp_path: Path) -> None:
    assert asyncio.run(soak(300, tmp_path, expired=False)) == []
