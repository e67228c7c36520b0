"""What a history costs: ``python -m bench.histories``. README.rst says how to read what it prints.

Each case with and without a history of the rooms, in turn, round by round. With one, the service tells rooms by the
Function that numbers and keeps a message; without, it publishes on ``events:broadcast``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.contenders import CONTENDERS, KEEPING
from bench.orders import FanOut, Idle, ManyRooms, Outcome, RoundTrip
from bench.stage import Show, Stage, open_stage
from bench.workloads import connected, missing

PINGS = 25.0
TEXT = 64
CLIENTS = (2, 50)
CROWD = 1000
SMALL = 4
MANY = 400
"""Clients in rooms of four."""
AT_ONCE = 1
"""Rooms with a message under way. With more, a gateway alone would read several at a time, and several gateways fewer
each: what a message costs would grow with their number for that reason.
"""
PROCESSES = (1, 2, 4)
_FIGURES = (("gateways, µs", 1), ("Redis, µs", 1), ("both, µs", 1), ("p50, ms", 2), ("a second", 0))

Case = tuple[str, int]
"""What is measured, and on how many gateway processes."""
Measure = Callable[[Show, bool, float], Iterator[tuple[str, Outcome, int]]]


def trips(show: Show, told: bool, seconds: float) -> Iterator[tuple[str, Outcome, int]]:
    """Each client is alone in its room, and has one message under way that comes back through the service."""
    event, here = "bench:room:tell" if told else "bench:room:say", 0
    for clients in CLIENTS:
        connected(show, clients - here, 1)
        here = clients
        yield f"round trip, {clients} at once", show.do(RoundTrip(1, TEXT, 0.3, seconds, event)), 1


def crowd(show: Show, told: bool, seconds: float) -> Iterator[tuple[str, Outcome, int]]:
    """One event to a room of 1,000; the next when all have it."""
    connected(show, CROWD, CROWD)
    yield f"fan-out to {CROWD:,}, for each", show.do(FanOut(TEXT, 0.3, seconds, told)), 1


def fleet(show: Show, told: bool, seconds: float, *, pause: float = 0.0) -> Iterator[tuple[str, Outcome, int]]:
    """400 clients in rooms of four; and what the processes cost that have nothing to do, which is not the messages'."""
    connected(show, MANY, SMALL)
    idle = show.do(Idle(seconds))
    event = "bench:room:tell" if told else "bench:room:say"
    outcome = show.do(ManyRooms(TEXT, 0.3, seconds, event, AT_ONCE, pause))
    for role, used in idle.cpu.items():
        outcome.cpu[role] -= used / idle.seconds * outcome.seconds
    yield "message to a room of 4", outcome, SMALL


def cases(rounds: int, only: list[str], pause: float) -> Iterator[tuple[Measure, int, bool]]:
    """All of them, round by round, each on so many processes; true: all in a room are connected to the same one."""
    for _ in range(rounds):
        if "trips" in only:
            yield trips, 1, False
        if "crowd" in only:
            yield crowd, 1, False
        if "fleet" in only:
            for processes in PROCESSES:
                yield partial(fleet, pause=pause), processes, True
                if processes > 1:
                    yield partial(fleet, pause=pause), processes, False


def main() -> int:
    """Measure; 1 when a message was lost."""
    parser = argparse.ArgumentParser(prog="python -m bench.histories", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each window")
    parser.add_argument("--pause", type=float, default=0.0, help="of the fleet, after each message, in seconds")
    kinds = "trips", "crowd", "fleet"
    parser.add_argument("--only", action="append", default=[], choices=kinds)
    asked = parser.parse_args()
    found: dict[Case, dict[bool, list[tuple[float, ...]]]] = defaultdict(lambda: {True: [], False: []})
    failures = []
    with tempfile.TemporaryDirectory() as logs, open_stage(Path(logs)) as stage:
        for measure, processes, sticky in cases(asked.rounds, asked.only or [*kinds], asked.pause):
            for told in (False, True):
                for what, outcome, deliveries in _shown(stage, measure, told, processes, sticky, asked.seconds):
                    if failure := missing(outcome):
                        failures.append(f"{what}: {failure}")
                    each = outcome.messages / deliveries
                    gateways = sum(used for role, used in outcome.cpu.items() if role.startswith("gateway"))
                    redis, rate = outcome.cpu["redis"], each / outcome.seconds
                    fleet_cost = (gateways + redis) / each * 1e6
                    cost = gateways / each * 1e6, redis / each * 1e6, fleet_cost, outcome.p50_ms or 0.0, rate
                    case = f"{what}, on one of them" if sticky and processes > 1 else what
                    found[case, processes][told].append(cost)
                    print(f"{case}, {processes}, {told}: {cost}", file=sys.stderr, flush=True)
    for (what, processes), by in found.items():
        for at, (name, digits) in enumerate(_FIGURES):
            without, with_one = ([round_[at] for round_ in by[told]] for told in (False, True))
            ratio = statistics.median(b / a for a, b in zip(without, with_one, strict=True) if a)
            print(
                f"{what:36} {processes} process{'es' if processes > 1 else '  '}  {name:12}  without "
                f"{statistics.median(without):7.{digits}f} ({min(without):.{digits}f}-{max(without):.{digits}f})  with "
                f"{statistics.median(with_one):7.{digits}f} ({min(with_one):.{digits}f}-{max(with_one):.{digits}f})  "
                f"ratio {ratio:.2f}"
            )
    print("\n".join(failures))
    return int(bool(failures))


def _shown(
    stage: Stage,
    measure: Measure,
    told: bool,
    processes: int,
    sticky: bool,
    seconds: float,
) -> Iterator[tuple[str, Outcome, int]]:
    contender = KEEPING if told else next(each for each in CONTENDERS if each.name == "kraftek")
    with stage.show(contender, PINGS, processes=processes, sticky=sticky) as show:
        time.sleep(0.5)  # the first sweep of a start
        yield from measure(show, told, seconds)


if __name__ == "__main__":
    sys.exit(main())
