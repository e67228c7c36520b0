"""Has real processes go wrong for a while, by a seed: ``make chaos SEED=7 SECONDS=120``.

A run that leaves a hole in the ledger prints it, its seed and what happened when. The same seed brings the same faults
at the same times; what programs do between them is theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.schedule import FAULTS
from tests.chaos.world import run

__all__ = ["main"]


def main() -> int:
    """Run; the exit status is 1 if there is a hole."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="which faults, and when; without it, any")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="at least; rounds of faults are brought to their end"
    )
    parser.add_argument("--only", action="append", default=[], choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--short", action="store_true", help="as the test does it: fewer gateways and clients")
    parser.add_argument("--sentinel", action="store_true", help="two gateways, and a Redis that fails over")
    parser.add_argument("--pages", type=int, default=500, help="clients of rooms with history that lose their sockets")
    parser.add_argument("--watchers", type=int, default=300, help="users who want to know who is in a room")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="kraftek-chaos-"))
    print(f"seed {seed}, in {directory}", flush=True)
    only = frozenset(options.only)
    ledger = asyncio.run(
        run(
            seed,
            options.seconds,
            directory,
            short=options.short,
            sentinel=options.sentinel,
            only=only,
            pages=options.pages,
            watchers=options.watchers,
        )
    )
    print("\n".join(ledger.story))
    print("\n".join(f"{number:6} {what}" for what, number in sorted(ledger.seen.items())))
    if not ledger.holes:
        shutil.rmtree(directory)
        print(f"seed {seed}: no hole")
        return 0
    print("\n".join(f"HOLE {hole}" for hole in ledger.holes))
    again = "".join(f" {name.upper()}=1" for name in ("short", "sentinel") if getattr(options, name))
    print(f"seed {seed}: {len(ledger.holes)} holes; the logs are in {directory}\nagain: make chaos SEED={seed}{again}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
