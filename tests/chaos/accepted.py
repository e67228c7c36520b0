"""In which order Redis takes what is for services: another subscriber, and another reader of their streams.

Made by :mod:`tests.chaos.world`. The ledger compares that order with the one in which services commit what they handle.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from redis.exceptions import RedisError

from tests.chaos.ledger import Accepted, Ledger

__all__ = ["CHANNEL", "STREAMS", "Listener"]

CHANNEL = "events:chat"
STREAMS = ("events:desk", *(f"events:board:{number}" for number in range(4)))
AGAIN = 0.1
"""Seconds until it connects again."""
WAIT = 500
"""Milliseconds for which it waits for entries."""


class Listener:
    """``connect`` makes a client of Redis. What comes while Redis is away is missed, and so are entries that services
    have handled before they are read here: of those nothing is known.
    """

    def __init__(self, ledger: Ledger, connect: Callable[[], Any]) -> None:
        self._ledger = ledger
        self._connect = connect
        self._connections = count(1)

    async def listen(self) -> None:
        """Until it is cancelled."""
        await asyncio.gather(*(self._persistently(work) for work in (self._subscribe, self._read)))

    async def _persistently(self, work: Callable[[Any, int], Any]) -> None:
        while True:
            client = self._connect()
            try:
                await work(client, next(self._connections))
            except (RedisError, OSError):
                await asyncio.sleep(AGAIN)
            finally:
                await client.aclose()

    async def _subscribe(self, client: Any, connection: int) -> None:
        numbers = count()
        async with client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(CHANNEL)
            async for message in channel.listen():
                self._note(message["data"], connection, next(numbers))

    async def _read(self, client: Any, connection: int) -> None:
        numbers = count()
        last = dict.fromkeys(STREAMS, "$")
        for stream in STREAMS:
            newest = await client.xrevrange(stream, count=1)
            last[stream] = newest[0][0] if newest else "0"
        while True:
            for stream, entries in await client.xread(last, count=1000, block=WAIT) or ():
                last[stream] = entries[-1][0]
                for _, fields in entries:
                    self._note(fields["event"], connection, next(numbers))

    def _note(self, body: str, connection: int, number: int) -> None:
        event = json.loads(body)
        service, room, key = event["eventType"].partition(":")[0], event.get("roomId"), event.get("payload")
        if room is not None and type(key) is str:
            self._ledger.accepted(service, room, Accepted(key, connection, number, time.monotonic()))
