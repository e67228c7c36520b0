"""A short run of ``make chaos``, always by the same seed: real processes that are killed, stopped and cut off."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.world import run

SEED = 4
ROOMS = "told who is in a room", "told of changes in a room", "heard", "receipts"
REQUESTS = "chat ok", "desk ok", "board ok", "parts heard", "cancelled"
HISTORIES = "pages in rooms with history", "heard in rooms with history", "answered: recovered True"


def test_no_hole_in_the_ledger(tmp_path: Path) -> None:
    ledger = asyncio.run(run(SEED, 1.0, tmp_path, short=True, until=(*ROOMS, *REQUESTS)))
    assert ledger.holes == [], "\n".join([*ledger.story, *ledger.holes, f"make chaos SEED={SEED} SHORT=1"])
    for what in ("joined", "left", "judged in order", *HISTORIES):
        assert ledger.seen[what], f"nothing happened: {ledger.seen}"
