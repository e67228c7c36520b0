"""Requests across the stop of a gateway: whatever it was answered is stored, and nothing runs twice."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

if TYPE_CHECKING:
    from tests.integration.conftest import Gateway, RedisServer, StartGateway

    Json = dict[str, Any]

CLIENTS = 30
IN_FLIGHT = 10
REQUESTS = 6_000
LONGEST = 0.1
"""Seconds that the service takes for a request at most."""

SERVICES = {"chat": {"channel": "events:chat", "reply": True, "timeout": 10.0, "requests": 1000}}


class Chat:
    """A service that answers as ``docs/services.rst`` says: to all gateways when the request's own is gone."""

    def __init__(self, url: str) -> None:
        self.ran: Counter[str] = Counter()
        self._redis = Redis.from_url(url)
        self._commands = asyncio.Lock()
        self._chance = random.Random(5)
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with self._redis, self._redis.pubsub() as events, asyncio.TaskGroup() as tasks:
            await events.subscribe("events:chat")
            async for message in events.listen():
                if message["type"] == "subscribe":
                    self.ready.set()
                else:
                    tasks.create_task(self._handle(json.loads(message["data"])))

    async def _handle(self, event: Json) -> None:
        self.ran[event["id"]] += 1
        await asyncio.sleep(self._chance.random() * LONGEST)
        answer = {"type": "chat:a:b", "recipients": [event["socketId"]], "inReplyTo": event["id"], "payload": None}
        async with self._commands:
            if await self._redis.publish(event["replyTo"], json.dumps(answer)) == 0:
                await self._redis.publish("events:broadcast", json.dumps({**answer, "userIds": [event["userId"]]}))


class Crowd:
    """Clients that ask, and that ask again on another gateway when theirs has stopped."""

    def __init__(self, urls: list[str]) -> None:
        self.answers: dict[str, list[str]] = {}
        self.answered = 0
        self.repeated = 0
        self._urls = urls
        self._left = iter(range(REQUESTS))

    async def ask(self) -> None:
        """Send all requests, and return when each was answered."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        waiting: dict[str, None] = {}
        urls = self._urls
        while True:
            with suppress(ConnectionClosed, OSError):
                async with connect(
                    f"{urls[0]}?token={number}&roomId=r{number}",
                    subprotocols=[Subprotocol("kraftek.v1.json")],
                    compression=None,
                    proxy=None,
                ) as socket:
                    await self._ask(socket, waiting)
                    return
            urls = [*urls[1:], urls[0]]

    async def _ask(self, socket: Any, waiting: dict[str, None]) -> None:
        while json.loads(await socket.recv())["type"] != "authenticated":
            pass
        for key in waiting:
            await socket.send(json.dumps({"type": "chat:a:b", "id": key}))
        self.repeated += len(waiting)
        while True:
            while len(waiting) < IN_FLIGHT and (number := next(self._left, None)) is not None:
                waiting[str(number)] = None
                await socket.send(json.dumps({"type": "chat:a:b", "id": str(number)}))
            if not waiting:
                return
            message = json.loads(await socket.recv())
            if message["type"] == "drain":
                continue
            word = message["payload"]["code"] if message["type"] == "error" else "answered"
            self.answers.setdefault(message["id"], []).append(word)
            self.answered += 1
            del waiting[message["id"]]


def test_no_answer_is_lost_when_a_gateway_stops(redis_server: RedisServer, gateway: StartGateway) -> None:
    """Two of three are stopped, one after the other, while hundreds of answers are on the way."""
    processes = [gateway(redis_server, services=SERVICES) for _ in range(3)]

    async def stop(process: Gateway, crowd: Crowd, at: int) -> None:
        while crowd.answered < at:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(process.terminate)

    async def test() -> tuple[Chat, Crowd]:
        chat, crowd = Chat(redis_server.url), Crowd([process.url for process in processes])
        serving = asyncio.create_task(chat.run())
        await chat.ready.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.ask())
            for number, process in enumerate(processes[:2], 1):
                tasks.create_task(stop(process, crowd, number * REQUESTS // 3))
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        return chat, crowd

    chat, crowd = asyncio.run(asyncio.wait_for(test(), 60))
    words = Counter(word for answers in crowd.answers.values() for word in answers)
    print(f"{crowd.repeated} sent again, {dict(words)}")
    assert words == {"answered": REQUESTS}
    assert len(crowd.answers) == len(chat.ran) == REQUESTS
    assert set(chat.ran.values()) == {1}
    assert crowd.repeated > CLIENTS
