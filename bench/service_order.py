"""The order of rooms in services with the SDKs, and what it costs: ``python -m bench.service_order``.

README.rst says how to read what it prints.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import hiredis
import redis

from kraftek.bus.resp import command
from tests.service.instances import Instances
from tests.service.ordering import Ordering
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import wait_until

WAYS: dict[str, dict[str, Any]] = {
    "Pub/Sub": {},
    "a stream": {"transport": "stream"},
    "four partitions": {"transport": "stream", "partitions": 4},
}
GROUPS = ("asyncio asyncio", "twisted twisted", "node node", "asyncio node")
BACKENDS = ("asyncio", "twisted", "node")
HANDLERS = {"answers at once": "sample:say:back", "waits 10 ms": "sample:say:later"}

CONCURRENCY = 64
"""Events in hand at most, and rooms."""
IN_FLIGHT = 4
"""Events of a room that wait or are in hand, all the time."""
WARM = 1.0
SECONDS = 2.0
ANSWER = re.compile(rb'"inReplyTo":(\d+)')
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def a_redis() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.start()
    try:
        yield server
    finally:
        server.close()


def order(groups: list[str], ways: list[str], events: int) -> None:
    """Fails if an event is lost, done twice or out of order."""
    print(f"{events:,} events of 50 rooms; one of two instances killed, one frozen:")
    for way in ways:
        settings = WAYS[way]
        for group in groups:
            first, second = group.split()
            began = time.monotonic()
            with a_redis() as server:
                ordering = Ordering(server.url, (first, second), {**settings, "timeout": 60}, rooms=50, events=events)
                with closing(ordering):
                    ordering.play()
                    shares = sorted(ordering.done().values(), reverse=True)
            took = time.monotonic() - began
            print(f"  {way:15}  {group:15}  in order; {took:4.0f} s; done by each: {shares}", flush=True)


class Load:
    """Requests of so many rooms, of each of which a few are in flight."""

    def __init__(self, server: PrivateRedis, settings: dict[str, Any], event: str) -> None:
        self._settings = settings
        self._event = event
        self._answers = self._connect(server, "SUBSCRIBE", "replies")
        self._events = self._connect(server, "CLIENT", "REPLY", "OFF")
        self._reader = hiredis.Reader()

    def close(self) -> None:
        self._answers.close()
        self._events.close()

    def begin(self) -> None:
        self._send(number for number in range(CONCURRENCY * IN_FLIGHT))

    def run(self, seconds: float) -> int:
        """How many were answered."""
        until, answered = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            self._reader.feed(self._answers.recv(1 << 20))
            bodies: list[bytes] = []
            while message := self._reader.gets():
                if message[0] == b"message":
                    bodies.append(message[2])
            numbers = [int(found[1]) for body in bodies if (found := ANSWER.search(body))]
            self._send(number + CONCURRENCY * IN_FLIGHT for number in numbers)
            answered += len(numbers)
        return answered

    def _send(self, numbers: Iterator[int]) -> None:
        """The room of each is the rest of its number."""
        partitions, commands = self._settings.get("partitions", 0), []
        for number in numbers:
            room = number % CONCURRENCY
            body = (
                f'{{"eventType":"{self._event}","userId":"user{room}","socketId":"g.{room}","roomId":"room{room}",'
                f'"id":{number},"replyTo":"replies","timestamp":1,"payload":{{"text":"Hello"}}}}'
            )
            if "transport" in self._settings:
                # Their names' sums would do as well; what counts is that a room stays in its partition.
                stream = f"events:sample:{room % partitions}" if partitions else "events:sample"
                commands.append(command("XADD", stream, "*", "event", body))
            else:
                commands.append(command("PUBLISH", "events:sample", body))
        self._events.sendall(b"".join(commands))

    @staticmethod
    def _connect(server: PrivateRedis, *words: str) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.connect(server.path)
        link.settimeout(30.0)
        link.sendall(command(*words))
        return link


def rate(backend: str, settings: dict[str, Any], event: str) -> tuple[float, float]:
    """Events a second, and what each costs the service: microseconds of processor time."""
    instances = Instances()
    with a_redis() as server, closing(Load(server, settings, event)) as load:
        process = instances.start(backend, server.url, concurrency=CONCURRENCY, **settings)
        try:
            with redis.Redis(unix_socket_path=server.path) as client:
                wait_until(lambda: client.pubsub_channels("events:reply:*"), "the service", 30.0)
                if not settings.get("transport"):
                    wait_until(lambda: client.pubsub_numsub("events:sample")[0][1], "its subscription", 30.0)
            load.begin()
            load.run(WARM)
            began, before = time.monotonic(), processor_time(process.pid)
            answered = load.run(SECONDS)
            took, used = time.monotonic() - began, processor_time(process.pid) - before
        finally:
            instances.stop()
    return answered / took, used / answered * 1e6


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rates(backends: list[str], ways: list[str], rounds: int) -> None:
    print(f"{CONCURRENCY} rooms, {IN_FLIGHT} requests of each in flight, concurrency={CONCURRENCY}:")
    print("  handler          over             kit      events/s  unordered  ratio  least–most    µs  unordered  ratio")
    for handler, event in HANDLERS.items():
        for way in ways:
            settings = WAYS[way]
            for backend in backends:
                measured = [
                    (rate(backend, settings, event), rate(backend, {**settings, "unordered": True}, event))
                    for _ in range(rounds)
                ]
                ratios = sorted(ordered[0] / unordered[0] for ordered, unordered in measured)
                (events, cost), (before, cost_before) = (
                    tuple(median(run[kind][what] for run in measured) for what in (0, 1)) for kind in (0, 1)
                )
                print(
                    f"  {handler:15}  {way:15}  {backend:7}  {events:8,.0f}  {before:9,.0f}  {median(ratios):5.2f}  "
                    f"{ratios[0]:.2f}–{ratios[-1]:.2f}  {cost:6.0f}  {cost_before:9.0f}  {cost_before / cost:5.2f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("order", "rates"))
    parser.add_argument("--kit", choices=BACKENDS, action="append", help="may be repeated; left out it is all of them")
    parser.add_argument("--over", choices=WAYS, action="append", help="likewise")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    kits, ways = arguments.kit or [*BACKENDS], arguments.over or [*WAYS]
    if arguments.only != "rates":
        order([group for group in GROUPS if set(group.split()) <= set(kits)], ways, arguments.events)
    if arguments.only != "order":
        rates(kits, ways, arguments.rounds)


if __name__ == "__main__":
    main()
