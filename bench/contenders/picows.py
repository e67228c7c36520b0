"""The same job on asyncio with compiled parts throughout: uvloop, picows, hiredis, orjson.

Started by the benchmark as ``python -m bench.contenders.picows PORT REDIS_PORT PING_SECONDS``. It is what a user
who picks the fastest asyncio parts would write in an afternoon: native dialect, open authentication, rooms in memory
and in the Redis hash ``room:<id>``, events to the service's channel, ``events:broadcast`` to the sockets. uvloop
joins what one turn of the loop writes to one connection into one write.

Not done here: an access cache and permissions, duplicate logins, several rooms per socket, limits, compare and
delete when leaving, requests with answers, metrics, coming back after Redis was away.
"""

import asyncio
import secrets
import sys
import time
from collections import defaultdict, deque
from typing import Any, cast

import hiredis
import orjson
import uvloop
from picows import (
    WSAutoPingStrategy,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

SERVICES = {"bench": "events:bench"}


class Redis(asyncio.Protocol):
    """The connection for commands: replies are counted, only ``PUBLISH`` looks at its own."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[Client, str] | None] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def call(self, *command: str) -> None:
        self._waiting.append(None)
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]

    def publish(self, channel: str, body: bytes, sender: "Client", event_type: str) -> None:
        self._waiting.append((sender, event_type))
        self._transport.write(hiredis.pack_command(("PUBLISH", channel, body)))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            asked = self._waiting.popleft()
            if asked is not None and reply == 0:
                asked[0].error("SERVICE_UNAVAILABLE", "Nobody listens", asked[1])


class Deliveries(asyncio.Protocol):
    """The subscribed connection: what services send, to the sockets it is for."""

    def __init__(self, gateway: "Gateway") -> None:
        self._reader = hiredis.Reader()
        self._gateway = gateway
        self.subscribed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(hiredis.pack_command(("SUBSCRIBE", "events:broadcast")))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            assert isinstance(reply, list)
            if reply[0] == b"message":
                self._gateway.deliver(orjson.loads(reply[2]))
            else:
                self.subscribed.set()


class Gateway:
    """Who is here, by socket and by room."""

    def __init__(self) -> None:
        self.redis = Redis()
        self.clients: dict[str, Client] = {}
        self.rooms: defaultdict[str, set[Client]] = defaultdict(set)

    def accept(self, request: WSUpgradeRequest) -> "Client":
        return Client(self)

    def deliver(self, broadcast: dict[str, Any]) -> None:
        payload = broadcast["payload"]
        excluded = broadcast.get("excludeSocketIds") or ()
        message = orjson.dumps({"type": broadcast["type"], "payload": payload})
        if recipients := broadcast.get("recipients"):
            for socket_id in recipients:
                client = self.clients.get(socket_id)
                if client is not None and socket_id not in excluded:
                    client.transport.send(WSMsgType.TEXT, message)
        else:
            for client in self.rooms.get(payload.get("roomId"), ()):
                if client.socket_id not in excluded:
                    client.transport.send(WSMsgType.TEXT, message)


class Client(WSListener):
    """One client."""

    transport: WSTransport

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._user_id: str | None = None
        self._room_id: str | None = None
        self.socket_id = secrets.token_urlsafe(12)

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self._gateway.clients[self.socket_id] = self
        self._send({"type": "connected", "payload": {"socketId": self.socket_id}})

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            message = orjson.loads(frame.get_payload_as_memoryview())
            if message["type"] == "authenticate":
                self._authenticate(message["payload"])
            else:
                self._event(message["type"], message.get("payload"))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._gateway.clients.pop(self.socket_id, None)
        if self._user_id is not None and self._room_id is not None:
            self._gateway.rooms[self._room_id].discard(self)
            self._gateway.redis.call("HDEL", f"room:{self._room_id}", self._user_id)
            self._gateway.redis.call("DEL", f"socket:{self._user_id}:{self._room_id}")

    def error(self, code: str, message: str, event_type: str) -> None:
        self._send({"type": "error", "payload": {"code": code, "message": message, "eventType": event_type}})

    def _authenticate(self, asked: dict[str, Any]) -> None:
        user_id = self._user_id = f"user_{asked['token']}"
        room_id = self._room_id = asked["roomId"]
        self._gateway.rooms[room_id].add(self)
        self._gateway.redis.call("HSET", f"room:{room_id}", user_id, self.socket_id)
        self._gateway.redis.call("SET", f"socket:{user_id}:{room_id}", self.socket_id)
        answer = {"success": True, "userId": user_id, "roomId": room_id}
        self._send({"type": "authenticated", "payload": answer})

    def _event(self, event_type: str, payload: object) -> None:
        if self._user_id is None:
            self.error("NOT_AUTHENTICATED", "Authenticate first", event_type)
            return
        parts = event_type.split(":")
        channel = SERVICES.get(parts[0])
        if len(parts) != 3 or channel is None:
            message = "Event type is not valid or service is not registered"
            self.error("INVALID_EVENT", message, event_type)
            return
        event = {
            "eventType": event_type,
            "userId": self._user_id,
            "socketId": self.socket_id,
            "roomId": self._room_id,
            "payload": payload,
            "timestamp": time.time_ns() // 1_000_000,
        }
        self._gateway.redis.publish(channel, orjson.dumps(event), self, event_type)

    def _send(self, message: dict[str, Any]) -> None:
        self.transport.send(WSMsgType.TEXT, orjson.dumps(message))


async def main(port: int, redis_port: int, ping_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    gateway = Gateway()
    broadcasts = Deliveries(gateway)
    await loop.create_connection(lambda: gateway.redis, "127.0.0.1", redis_port)
    await loop.create_connection(lambda: broadcasts, "127.0.0.1", redis_port)
    await broadcasts.subscribed.wait()
    server = await ws_create_server(
        gateway.accept,
        "127.0.0.1",
        port,
        backlog=4096,
        enable_auto_ping=True,
        # A round of its pings takes the sum of both.
        auto_ping_idle_timeout=ping_seconds / 2,
        auto_ping_reply_timeout=ping_seconds / 2,
        auto_ping_strategy=WSAutoPingStrategy.PING_PERIODICALLY,
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
