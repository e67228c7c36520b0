"""10,000 requests from clients through real gateways to a service whose instances are killed all the time.

Instances of both backends serve side by side. What is counted are answers: exactly one to each request, whatever dies.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.service.instances import Instances
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import ExitStack

    from websockets.asyncio.client import ClientConnection

    from tests.integration.conftest import Connect, RedisServer, StartGateway

REQUESTS = 10_000
CLIENTS = 20
BACKENDS = "asyncio", "twisted"
IN_FLIGHT = 25
"""Of each client."""


async def received(socket: ClientConnection) -> Any:
    """The next message."""
    try:
        async with asyncio.timeout(30):
            return json.loads(await socket.recv())
    except TimeoutError:
        raise AssertionError("nothing came within 30 s") from None


class Crowd:
    """Clients that ask, and all answers by the number of the request: a word for each answer that came."""

    def __init__(self, urls: list[str]) -> None:
        self.answers: dict[int, list[str]] = {number: [] for number in range(REQUESTS)}
        self._urls = urls
        self.answered = 0
        self._left = deque(range(REQUESTS))

    async def ask(self) -> None:
        """Send all requests, and return when each has an answer and nobody was told anything more."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(self._client(number, self._urls[number % len(self._urls)]))

    async def _client(self, number: int, url: str) -> None:
        async with connect(url, subprotocols=[Subprotocol("kraftek.v1.json")], compression=None, proxy=None) as socket:
            payload = {"token": str(number), "roomId": f"room{number}"}
            await socket.send(json.dumps({"type": "authenticate", "payload": payload}))
            while (await received(socket))["type"] != "authenticated":
                pass
            waiting = 0
            while waiting or self._left:
                while self._left and waiting < IN_FLIGHT:
                    mark = self._left.popleft()
                    event = {"type": "sample:do:sleep", "payload": {"seconds": 0, "mark": mark}, "id": mark}
                    await socket.send(json.dumps(event))
                    waiting += 1
                waiting -= 1
                if self._heard(await received(socket)) == "SERVICE_UNAVAILABLE":
                    await asyncio.sleep(0.2)  # who hurries now is through before anybody listens again
            # Everything the gateway had for this client comes before the answer to this.
            await socket.send('{"type": "barrier::", "id": "last"}')
            while (message := await received(socket))["id"] != "last":
                self._heard(message)

    def _heard(self, message: Any) -> str:
        word: str = message["payload"]["code"] if message["type"] == "error" else "answered"
        self.answers[message["id"]].append(word)
        self.answered += 1
        return word


class Service:
    """Its instances, one through each backend: not before :meth:`start`."""

    def __init__(self, server: RedisServer, stage: ExitStack, **settings: Any) -> None:
        self._instances = Instances()
        stage.callback(self._instances.stop)
        self._server = server
        self._redis = server.client()
        self._settings = settings
        self._processes: dict[str, Any] = {}

    def start(self, *backends: str) -> None:
        for backend in backends:
            self._processes[backend] = self._instances.start(backend, self._server.url, **self._settings)

    def kill(self, *backends: str) -> None:
        for backend in backends:
            self._processes.pop(backend).kill()

    def listens(self) -> bool:
        """Whether all do that there are, over Pub/Sub."""
        return bool(self._redis.pubsub_numsub("events:sample")[0][1] == len(self._processes))


async def ask_while_killing(crowd: Crowd, times: int, kill: Callable[[], Awaitable[None]]) -> None:
    """Kill at random moments between the first and the last answer."""
    chance = random.Random(5)

    async def killing() -> None:
        for moment in sorted(chance.sample(range(REQUESTS * 9 // 10), times)):
            while crowd.answered < moment:
                await asyncio.sleep(0.01)
            await kill()

    async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
        tasks.create_task(killing())
        tasks.create_task(crowd.ask())


def test_over_a_stream(redis_server: RedisServer, gateway: StartGateway, stage: ExitStack) -> None:
    service = {"channel": "events:sample", "transport": "stream", "reply": True, "timeout": 60}
    urls = [gateway(redis_server, services={"sample": service}).url for _ in range(2)]
    sample = Service(redis_server, stage, transport="stream", claim_after=0.5, attempts=10)
    sample.start(*BACKENDS)
    crowd, redis = Crowd(urls), redis_server.client()
    began = time.monotonic()

    async def kill() -> None:
        one = random.choice(BACKENDS)
        sample.kill(one)
        sample.start(one)

    asyncio.run(ask_while_killing(crowd, 15, kill))

    took = time.monotonic() - began
    words = Counter(word for answers in crowd.answers.values() for word in answers)
    assert [number for number, answers in crowd.answers.items() if len(answers) != 1] == []
    begun = [int(mark) for key in redis.keys("begun:*") for mark in redis.lrange(key, 0, -1)]
    done = [int(mark) for key in redis.keys("done:*") for mark in redis.lrange(key, 0, -1)]
    assert set(begun) == set(range(REQUESTS))
    # What was answered was committed once, however often it was handled.
    assert sorted(done) == sorted(number for number, answers in crowd.answers.items() if answers == ["answered"])
    assert set(words) <= {"answered", "EVENT_PROCESSING_ERROR"}
    assert words["EVENT_PROCESSING_ERROR"] == redis.xlen("events:sample:dead")
    wait_until(lambda: redis.xlen("events:sample") == 0, "an empty stream")
    print(f"{took:.1f} s, {len(begun) - REQUESTS} handled twice, {dict(words)}")


def test_over_pubsub(redis_server: RedisServer, gateway: StartGateway, connect: Connect, stage: ExitStack) -> None:
    service = {"channel": "events:sample", "reply": True, "timeout": 3}
    gateways = [gateway(redis_server, services={"sample": service}) for _ in range(2)]
    sample = Service(redis_server, stage)
    crowd, redis = Crowd([each.url for each in gateways]), redis_server.client()
    late = connect(gateways[0], token="late", room="late")
    sample.start(*BACKENDS)
    wait_until(sample.listens, "the service", 30)
    began = time.monotonic()

    def kill_all() -> None:
        sample.kill(*BACKENDS)
        wait_until(sample.listens, "nobody", 30)
        late.send("sample:do:sleep", payload={"seconds": 0})
        assert late.expect("error")["payload"]["code"] == "SERVICE_UNAVAILABLE"
        sample.start(*BACKENDS)
        wait_until(sample.listens, "both instances", 30)

    async def kill() -> None:
        await asyncio.to_thread(kill_all)

    asyncio.run(ask_while_killing(crowd, 5, kill))

    took = time.monotonic() - began
    words = Counter(word for answers in crowd.answers.values() for word in answers)
    assert [number for number, answers in crowd.answers.items() if len(answers) != 1] == []
    begun = {int(mark) for key in redis.keys("begun:*") for mark in redis.lrange(key, 0, -1)}
    for number, (word,) in crowd.answers.items():
        assert word in {"answered", "SERVICE_UNAVAILABLE", "TIMEOUT"}
        if word != "TIMEOUT":  # that one may have died of it, or before it
            assert (number in begun) == (word == "answered")
    assert words["answered"]
    print(f"{took:.1f} s, {dict(words)}")


@pytest.mark.parametrize("backend", ["asyncio", "twisted", "node"])
def test_what_was_done_while_no_gateway_was_there_is_answered(
    backend: str, redis_server: RedisServer, gateway: StartGateway, connect: Connect, stage: ExitStack
) -> None:
    services = {"sample": {"channel": "events:sample", "reply": True}}
    instances = Instances()
    stage.callback(instances.stop)
    instances.start(backend, redis_server.url)
    redis = redis_server.client()
    wait_until(lambda: redis.pubsub_numsub("events:sample")[0][1] == 1, "the service", 30)
    request = {"id": "long", "payload": {"seconds": 1, "mark": 5}}
    only = gateway(redis_server, services=services)
    connect(only, token="ada", room="r1").send("sample:do:sleep", **request)
    wait_until(lambda: redis.lrange("begun:r1", 0, -1) == ["5"], "the handler")
    only.kill()
    wait_until(lambda: redis.llen("done:r1") == 1, "what it does")

    again = connect(gateway(redis_server, services=services), token="ada", room="r1")
    again.send("sample:do:sleep", **request)
    answer = again.receive()
    assert (answer["id"], answer["payload"]["mark"]) == ("long", 5)
    assert redis.llen("begun:r1") == 1


@pytest.mark.parametrize("backend", ["asyncio", "twisted"])
def test_a_service_asks_another_through_a_gateway(
    backend: str, redis_server: RedisServer, gateway: StartGateway, stage: ExitStack
) -> None:
    """The sample service asks itself, by name: who asks and who is asked know nothing of each other's channels."""
    services = {"sample": {"channel": "events:sample", "reply": True}}
    url = gateway(redis_server, services=services).url
    instances = Instances()
    stage.callback(instances.stop)
    instances.start(backend, redis_server.url)
    redis = redis_server.client()
    wait_until(lambda: redis.pubsub_numsub("events:sample")[0][1] == 1, "the service", 30)

    async def asked(*events: tuple[str, Any]) -> list[Any]:
        async with connect(f"{url}?token=ada&roomId=r1", compression=None, proxy=None) as socket:
            answers = []
            for number, (event, payload) in enumerate(events):
                ask = {"event": event, "payload": payload}
                await socket.send(json.dumps({"type": "sample:ask:other", "payload": ask, "id": number}))
                while (message := await received(socket)).get("id") != number:
                    pass
                answers.append(message["payload"])
            return answers

    answer, nobody = asyncio.run(asked(("sample:say:who", None), ("nobody:is:there", None)))

    who = {"user_id": "user_ada", "socket_id": "", "room_id": "r1", "source": "sample"}
    assert {name: answer["answer"][name] for name in who} == who
    assert nobody["code"] == "INVALID_EVENT"
