"""What Redis spends on a message to a room with history: ``python -m bench.rooms_told``.

Microseconds of its processor time for each, a thousand in one write, where that many gateways are there, whose clients
are in other rooms: by ``PUBLISH``; by the SDKs' short script, where no room has a history; by the Function, without and
with an id; by the SDKs' script. All take turns on a redis-server of their own; of the rounds the least counts, as
everything else only adds to it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec

from bench.measure import cpu_seconds
from kraftek.contract.history import FUNCTION, LIBRARY
from kraftek.contract.names import BROADCAST, GATEWAY_LEASES, HISTORY_FOLLOWING, HISTORY_RULES, room_topic
from kraftek.contract.settings import RoomPolicy
from kraftek.core.history.rules import Rules
from kraftek.service.commits import TELL, TELL_UNKEPT
from tests.support.redis_server import PrivateRedis

GATEWAYS = (1, 4, 40)
ROOMS = 100
CALLS = 1000
"""Of a command in a round."""

Words = Callable[[int], tuple[Any, ...]]
"""The command for a message, by its number."""


def _message(number: int) -> bytes:
    return msgspec.json.encode(
        {"type": "bench:room:said", "payload": {"roomId": f"r{number % ROOMS}", "text": "x" * 64}}
    )


def _sdk(number: int, id: str) -> tuple[Any, ...]:
    return "EVALSHA", TELL.digest, 0, "", BROADCAST, room_topic(f"r{number % ROOMS}"), _message(number), id


WAYS: dict[str, Words] = {
    "PUBLISH": lambda number: ("PUBLISH", BROADCAST, _message(number)),
    "SDK, no room has a history": lambda number: (
        *("EVALSHA", TELL_UNKEPT.digest, 0, BROADCAST, _message(number), "no:rules"),
    ),
    "Function": lambda number: ("FCALL", FUNCTION, 0, f"r{number % ROOMS}", _message(number)),
    "Function, with an id": lambda number: (
        "FCALL",
        FUNCTION,
        0,
        f"r{number % ROOMS}",
        _message(number),
        f"id{number}",
    ),
    "SDK": lambda number: _sdk(number, ""),
    "SDK, with an id": lambda number: _sdk(number, f"id{number}"),
}


def _cost(redis: Any, pid: int, gateways: int, words: Words) -> float:
    """Microseconds of a message."""
    redis.flushall()
    rules = Rules([RoomPolicy(pattern="r*", history=200)]).text
    redis.hset(HISTORY_RULES, mapping={"rules": rules, "generation": "0123456789abcdef"})
    redis.zadd(GATEWAY_LEASES, {f"gateway {number}": 2**40 for number in range(gateways)})
    redis.zadd(HISTORY_FOLLOWING, {f"gateway {number}": 2**40 for number in range(gateways)})
    redis.execute_command(*words(0))
    before = cpu_seconds([pid])
    with redis.pipeline(transaction=False) as pipeline:
        for number in range(1, 1 + CALLS):
            pipeline.execute_command(*words(number))
        pipeline.execute()
    return (cpu_seconds([pid]) - before) / CALLS * 1e6


def main() -> None:
    """Measure."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=20)
    rounds = arguments.parse_args().rounds
    taken: dict[tuple[str, int], float] = defaultdict(lambda: float("inf"))
    server = PrivateRedis()
    server.start()
    assert server.process is not None
    try:
        with server.client() as redis:
            for script in (TELL, TELL_UNKEPT):
                redis.script_load(script.source)
            redis.function_load(LIBRARY)
            for _ in range(rounds):
                for way, words in WAYS.items():
                    for gateways in GATEWAYS:
                        taken[way, gateways] = min(
                            taken[way, gateways], _cost(redis, server.process.pid, gateways, words)
                        )
    finally:
        server.close()
    for way in WAYS:
        figures = "  ".join(f"{taken[way, gateways]:5.1f}" for gateways in GATEWAYS)
        print(f"{way:28}{figures}  µs with {', '.join(map(str, GATEWAYS))} gateways")


if __name__ == "__main__":
    main()
