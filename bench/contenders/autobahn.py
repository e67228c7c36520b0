"""The same job on this project's own libraries, used as their documentation shows: Autobahn, txredisapi, json.

Started by the benchmark as ``python -m bench.contenders.autobahn PORT REDIS_PORT PING_SECONDS``. Native dialect, open
authentication, rooms in memory and in the Redis hash ``room:<id>``, events to the service's channel,
``events:broadcast`` to the sockets.

Not done here: an access cache and permissions, duplicate logins, several rooms per socket, limits, compare and
delete when leaving, requests with answers, metrics, telling clients that Redis is away.
"""

import json
import secrets
import sys
import time
from collections import defaultdict
from typing import Any

import txredisapi
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet import reactor
from twisted.internet.defer import DeferredList, inlineCallbacks
from twisted.internet.endpoints import TCP4ServerEndpoint

SERVICES = {"bench": "events:bench"}


class Gateway(WebSocketServerFactory):
    """Who is here, by socket and by room."""

    def __init__(self, redis: Any, ping_seconds: float) -> None:
        super().__init__()
        self.redis = redis
        self.clients: dict[str, Client] = {}
        self.rooms: defaultdict[str, set[Client]] = defaultdict(set)
        self.protocol = Client
        self.setProtocolOptions(autoPingInterval=ping_seconds, autoPingTimeout=20)

    def deliver(self, broadcast: dict[str, Any]) -> None:
        payload = broadcast["payload"]
        excluded = broadcast.get("excludeSocketIds") or ()
        message = json.dumps({"type": broadcast["type"], "payload": payload}).encode()
        if recipients := broadcast.get("recipients"):
            for socket_id in recipients:
                client = self.clients.get(socket_id)
                if client is not None and socket_id not in excluded:
                    client.sendMessage(message)
        else:
            for client in self.rooms.get(payload.get("roomId"), ()):
                if client.socket_id not in excluded:
                    client.sendMessage(message)


class Client(WebSocketServerProtocol):
    """One client."""

    factory: Gateway

    def onConnect(self, request: ConnectionRequest) -> None:
        self.user_id: str | None = None
        self.room_id: str | None = None
        self.socket_id = secrets.token_urlsafe(12)

    def onOpen(self) -> None:
        self.factory.clients[self.socket_id] = self
        self.say({"type": "connected", "payload": {"socketId": self.socket_id}})

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        message = json.loads(payload)
        if message["type"] == "authenticate":
            self._authenticate(**message["payload"])
        else:
            self._event(message["type"], message.get("payload"))

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.factory.clients.pop(self.socket_id, None)
        if self.user_id is not None and self.room_id is not None:
            self.factory.rooms[self.room_id].discard(self)
            self.factory.redis.hdel(f"room:{self.room_id}", self.user_id)
            self.factory.redis.delete(f"socket:{self.user_id}:{self.room_id}")

    @inlineCallbacks
    def _authenticate(self, token: str, roomId: str) -> Any:
        self.user_id = f"user_{token}"
        self.room_id = roomId
        self.factory.rooms[roomId].add(self)
        yield DeferredList(
            [
                self.factory.redis.hset(f"room:{roomId}", self.user_id, self.socket_id),
                self.factory.redis.set(f"socket:{self.user_id}:{roomId}", self.socket_id),
            ]
        )
        answer = {"success": True, "userId": self.user_id, "roomId": roomId}
        self.say({"type": "authenticated", "payload": answer})

    @inlineCallbacks
    def _event(self, event_type: str, payload: object) -> Any:
        if self.user_id is None:
            self._error("NOT_AUTHENTICATED", "Authenticate first", event_type)
            return
        parts = event_type.split(":")
        channel = SERVICES.get(parts[0])
        if len(parts) != 3 or channel is None:
            message = "Event type is not valid or service is not registered"
            self._error("INVALID_EVENT", message, event_type)
            return
        event = {
            "eventType": event_type,
            "userId": self.user_id,
            "socketId": self.socket_id,
            "roomId": self.room_id,
            "payload": payload,
            "timestamp": int(time.time() * 1000),
        }
        heard = yield self.factory.redis.publish(channel, json.dumps(event))
        if heard == 0:
            self._error("SERVICE_UNAVAILABLE", "Nobody listens", event_type)

    def _error(self, code: str, message: str, event_type: str) -> None:
        self.say({"type": "error", "payload": {"code": code, "message": message, "eventType": event_type}})

    def say(self, message: dict[str, Any]) -> None:
        self.sendMessage(json.dumps(message).encode())


class Deliveries(txredisapi.SubscriberProtocol):  # type: ignore[misc]
    """The subscribed connection: what services send, to the sockets it is for."""

    factory: "BroadcastsFactory"

    def connectionMade(self) -> None:
        self.subscribe("events:broadcast").addCallback(self.factory.subscribed)

    def messageReceived(self, pattern: str, channel: str, message: str) -> None:
        self.factory.gateway.deliver(json.loads(message))


class BroadcastsFactory(txredisapi.SubscriberFactory):  # type: ignore[misc]
    """Starts the listening port once the subscription stands."""

    protocol = Deliveries

    def __init__(self, gateway: Gateway, port: int) -> None:
        super().__init__()
        self.gateway = gateway
        self._endpoint = TCP4ServerEndpoint(reactor, port, backlog=4096, interface="127.0.0.1")

    def subscribed(self, _: object) -> None:
        self._endpoint.listen(self.gateway)


@inlineCallbacks
def main(port: int, redis_port: int, ping_seconds: float) -> Any:
    redis = yield txredisapi.Connection("127.0.0.1", redis_port)
    gateway = Gateway(redis, ping_seconds)
    reactor.connectTCP("127.0.0.1", redis_port, BroadcastsFactory(gateway, port))


if __name__ == "__main__":
    reactor.callWhenRunning(main, int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    reactor.run()
