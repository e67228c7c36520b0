"""What Redis spends on a message to a room with history: ``python -m bench.rooms_told``.

Microseconds of its processor time for each, a thousand in one write and one at a time, where that many gateways listen,
of which one has somebody in the room: by ``PUBLISH``; by the SDKs' short script, where no room has a history; by the
Function, without and with an id; by the SDKs' script. All take turns on a redis-server of their own; of the rounds the
least counts, as everything else only adds to it.
"""

from __future__ import annotations

import argparse
import selectors
import socket
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from threading import Thread
from typing import Any

import msgspec

from bench.measure import cpu_seconds
from kraftek.contract.history import FUNCTION, LIBRARY
from kraftek.contract.names import (
    BROADCAST,
    GATEWAY_LEASES,
    HISTORY_FOLLOWING,
    HISTORY_RULES,
    room_topic,
    topic_channel,
)
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


class Gateways:
    """So many that listen, of which the first one has somebody in each room."""

    def __init__(self, path: str, gateways: int) -> None:
        self._sockets = [socket.socket(socket.AF_UNIX) for _ in range(gateways)]
        self._ready = selectors.DefaultSelector()
        rooms = [topic_channel(room_topic(f"r{number}")) for number in range(ROOMS)]
        for number, each in enumerate(self._sockets):
            each.connect(path)
            channels = [BROADCAST] if number else [BROADCAST, *rooms]
            each.sendall(" ".join(["SUBSCRIBE", *channels, "\r\n"]).encode())
            each.recv(100_000)
            self._ready.register(each, selectors.EVENT_READ, each)
        self._open = True
        self._reading = Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        while self._open:
            for key, _ in self._ready.select(0.1):
                key.data.recv(1_000_000)

    def close(self) -> None:
        self._open = False
        self._reading.join()
        for each in self._sockets:
            each.close()


def _cost(redis: Any, pid: int, gateways: int, words: Words, at_once: int) -> float:
    """Microseconds of a message."""
    redis.flushall()
    rules = Rules([RoomPolicy(pattern="r*", history=200)]).text
    redis.hset(HISTORY_RULES, mapping={"rules": rules, "generation": "0123456789abcdef"})
    redis.zadd(GATEWAY_LEASES, {f"gateway {number}": 2**40 for number in range(gateways)})
    redis.zadd(HISTORY_FOLLOWING, {f"gateway {number}": 2**40 for number in range(gateways)})
    redis.execute_command(*words(0))
    before = cpu_seconds([pid])
    calls = CALLS if at_once > 1 else CALLS // 5
    for first in range(1, 1 + calls, at_once):
        with redis.pipeline(transaction=False) as pipeline:
            for number in range(first, first + at_once):
                pipeline.execute_command(*words(number))
            pipeline.execute()
    return (cpu_seconds([pid]) - before) / calls * 1e6


def main() -> None:
    """Measure."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=20)
    rounds = arguments.parse_args().rounds
    taken: dict[tuple[str, int, int], float] = defaultdict(lambda: float("inf"))
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
                        with closing(Gateways(server.path, gateways)):
                            for at_once in (CALLS, 1):
                                found = _cost(redis, server.process.pid, gateways, words, at_once)
                                case = way, gateways, at_once
                                taken[case] = min(taken[case], found)
    finally:
        server.close()
    for at_once in (CALLS, 1):
        print(f"{at_once} at a time, µs with {', '.join(map(str, GATEWAYS))} gateways")
        for way in WAYS:
            print(f"{way:28}" + "  ".join(f"{taken[way, gateways, at_once]:5.1f}" for gateways in GATEWAYS))


if __name__ == "__main__":
    main()
