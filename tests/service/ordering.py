"""The order of rooms while instances of the sample service are killed and frozen: for a test, and for a benchmark.

Each event waits in its handler for a time that is drawn. What handlers begin and commit is noted in Redis, in a list of
each room, as ``begun MARK PID`` and ``done MARK PID``.
"""

from __future__ import annotations

import json
import signal
import zlib
from collections import Counter
from random import Random
from subprocess import Popen
from typing import Any

import redis

from tests.service.instances import Instances, stopped
from tests.support.waiting import wait_until

__all__ = ["WAITS", "Ordering"]

WAITS = (0, 0, 0.005, 0.01, 0.03)
"""Seconds that a handler waits: one of these."""

PATIENCE = 120.0


class Ordering:
    """Two instances of the service with these ``settings``, over the first of the ``backends`` and over the second.
    Whichever is killed is started again.

    ``play`` sends the events, kills an instance that is at work, and freezes another one until the others have gone on.
    """

    def __init__(self, url: str, backends: tuple[str, str], settings: dict[str, Any], rooms: int, events: int) -> None:
        self._url = url
        self._backends = backends
        self._settings = settings
        self._rooms = [f"room{number}" for number in range(rooms)]
        self._marks = events // rooms
        self._random = Random(7)  # the same waits each time
        self._redis: Any = redis.Redis.from_url(url, decode_responses=True)
        self._redis.flushall()
        self._instances = Instances()
        self._running: dict[int, tuple[Popen[bytes], str]] = {}
        self._stream = "transport" in settings
        self._first = self._sent = 0
        self._frozen: set[int] = set()

    def close(self) -> None:
        self._instances.stop()
        self._redis.close()

    def play(self) -> None:
        for backend in self._backends:
            self._start(backend)
        survivor = [*self._running][1]
        self._send(1 / 2)
        self._wait_done(1 / 8, survivor)

        killed = self._at_work() if self._stream else next(iter(self._running))
        process, backend = self._running.pop(killed)
        process.kill()
        wait_until(lambda: not self._replies(killed), "that Redis notices", PATIENCE)
        self._start(backend)
        self._wait_done(3 / 8, survivor)

        frozen = self._at_work() if self._stream else [*self._running][1]
        self._frozen.add(frozen)
        self._running[frozen][0].send_signal(signal.SIGSTOP)
        self._send(3 / 4)
        self._wait_done(5 / 8, survivor)
        self._running[frozen][0].send_signal(signal.SIGCONT)

        self._send(1)
        self._wait_done(1, survivor)
        for process, _ in self._running.values():
            assert "Traceback" not in stopped(process)
        for room in self._rooms:
            steps = [step.split() for step in self._redis.lrange(f"steps:{room}", 0, -1)]
            told = [(what, int(mark), int(pid)) for what, mark, pid in steps]
            if self._stream:
                self._check_stream(told)
            else:
                self._check_channel(told, survivor)

    def done(self) -> dict[int, int]:
        """How many events each instance has committed."""
        return {int(pid): int(number) for pid, number in self._redis.hgetall("by").items()}

    # What must hold

    def _check_stream(self, told: list[tuple[str, int, int]]) -> None:
        """Each event was committed once, in order, and begun when all before it were."""
        done = 0
        for what, mark, pid in told:
            if what == "done":
                assert mark == done, told
                done += 1
            elif pid in self._frozen:
                assert mark <= done, told  # it may begin late what another one has finished since
            else:
                assert mark == done, told
        assert done == self._marks

    def _check_channel(self, told: list[tuple[str, int, int]], survivor: int) -> None:
        """Each instance has begun its events one by one, in order; the one that was always there, all of them."""
        for instance in {pid for _, _, pid in told}:
            steps = [(what, mark) for what, mark, pid in told if pid == instance]
            marks = [mark for what, mark in steps if what == "begun"]
            assert marks == sorted(set(marks)), told
            wanted = [(what, mark) for mark in marks for what in ("begun", "done")]
            assert steps == wanted[: len(steps)], told
            assert instance != survivor or marks == [*range(self._marks)]

    # Within

    def _start(self, backend: str) -> None:
        process = self._instances.start(backend, self._url, **self._settings)
        self._running[process.pid] = process, backend
        wait_until(lambda: self._replies(process.pid), "an instance", PATIENCE)
        if not self._stream:
            wait_until(
                lambda: self._redis.pubsub_numsub("events:sample")[0][1] == len(self._running),
                "its subscription",
                PATIENCE,
            )

    def _replies(self, pid: int) -> bool:
        """Whether this instance listens, as Redis knows."""
        return bool(self._redis.pubsub_channels(f"events:reply:*.{pid}.*"))

    def _at_work(self) -> int:
        """One that holds a lease: that of the most partitions."""
        partitions = self._settings.get("partitions", 0)
        streams = [f"events:sample:{number}" for number in range(partitions)] or ["events:sample"]

        def held() -> Counter[int]:
            names = self._redis.mget([f"{stream}:lease:sample" for stream in streams])
            pids = [int(name.partition(" ")[0].removesuffix(".ordered").split(".")[-2]) for name in names if name]
            return Counter(pid for pid in pids if pid in self._running)

        return wait_until(held, "a lease", PATIENCE).most_common(1)[0][0]

    def _send(self, part: float) -> None:
        """The events up to this part of all."""
        until = round(self._marks * part)
        with self._redis.pipeline(transaction=False) as pipeline:
            for mark in range(self._sent, until):
                for room in self._rooms:
                    payload = {"seconds": self._random.choice(WAITS), "mark": mark}
                    event = {"eventType": "sample:do:step", "userId": f"user {mark % 3}", "socketId": "g.1"}
                    body = json.dumps({**event, "roomId": room, "payload": payload, "timestamp": 1})
                    if not self._stream:
                        pipeline.publish("events:sample", body)
                    elif partitions := self._settings.get("partitions", 0):
                        number = zlib.crc32(room.encode()) % partitions
                        pipeline.xadd(f"events:sample:{number}", {"event": body})
                    else:
                        pipeline.xadd("events:sample", {"event": body})
            pipeline.execute()
        self._sent = until

    def _wait_done(self, part: float, survivor: int) -> None:
        wanted = round(self._marks * len(self._rooms) * part)

        def reached() -> bool:
            done = self.done()
            return (sum(done.values()) if self._stream else done.get(survivor, 0)) >= wanted

        wait_until(reached, lambda: f"{wanted} done of {self.done()}", PATIENCE)
