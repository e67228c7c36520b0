"""What clients and services may use up of what others need, in other ways than the usual ones: through one gateway."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from websockets.sync.client import connect as websocket_connect

from kraftek.contract.history import FUNCTION
from tests.integration.test_limits import OPERATOR
from tests.integration.test_long_polling import Poller, Site
from tests.integration.wire import Wire, handshake
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import (
        AuthService,
        Client,
        Connect,
        Gateway,
        RedisServer,
        StartGateway,
        StartService,
    )

MIB = 1_048_576
SERVICES = {
    "chat": {"channel": "events:chat", "reply": True},
    "desk": {"channel": "events:desk", "transport": "stream", "reply": True, "requests": 100},
    "parts": {"channel": "events:parts", "transport": "stream", "partitions": 2, "max_bytes": MIB},
    "board": {"channel": "events:board", "transport": "stream", "max_length": 20, "presence": True},
}
CONFIG = {
    "forwarded_for": 1,
    "sessions": "many",
    "compression": True,
    "operator": OPERATOR,
    "auth": {"concurrency": 10, "waiting": 40},
    "limits": {"answer_bytes": MIB, "ping_interval": 600.0, "ping_timeout": 500.0},
}
LARGE = 30_000


class World:
    """The gateway, its Redis, and clients at addresses that a proxy reports."""

    def __init__(self, process: Gateway, connect: Connect, auth: AuthService, server: RedisServer) -> None:
        self.process = process
        self.connect = connect
        self.auth = auth
        self.server = server
        self.redis: Any = server.client()
        self.other = self.enter("other", "others", "9.9.9.9")

    def enter(self, user: str, room: str = "r", address: str = "1.1.1.1") -> Client:
        self.auth.allow(user, user)
        return self.connect(self.process, user, room, headers={"X-Forwarded-For": address})

    def publish(self, **message: Any) -> int:
        """How many have heard it."""
        return int(self.redis.publish("events:broadcast", json.dumps(message)))

    def grown(self, work: Callable[[], object]) -> int:
        """Bytes by which Redis grows by it."""
        before = self.redis.info("memory")["used_memory"]
        work()
        self.other.expect_nothing_through(self.server)
        return int(self.redis.info("memory")["used_memory"] - before)

    def resident(self) -> int:
        """Bytes that the gateway has."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def socketio(self, stage: ExitStack, user: str, room: str = "r") -> Any:
        """A Socket.IO client that is let in."""
        self.auth.allow(user, user)
        url = self.process.url + "socket.io/?EIO=4&transport=websocket"
        raw = stage.enter_context(websocket_connect(url, proxy=None, compression=None, max_size=None))
        raw.send("40" + json.dumps({"token": user, "roomId": room}))
        while not str(raw.recv(10)).startswith('42["authenticated"'):
            pass
        return raw


# Answers that Redis keeps.


def large_answers_of_many_users(world: World) -> None:
    users = [world.enter(f"asks{number}") for number in range(20)]

    def ask() -> None:
        for number in range(8):
            for user in users:
                user.send("chat:say:much", id=number)
        for user in users:
            assert [len(user.expect("chat:said:much")["payload"]) for _ in range(8)] == [LARGE] * 8

    assert world.grown(ask) < 2 * MIB


def requests_of_one_user(world: World) -> None:
    """Each has a record in Redis for two minutes, however short its answer is."""
    flood = world.enter("flood of requests")

    def ask() -> None:
        refused = 0
        for start in range(0, 4000, 200):
            for number in range(start, start + 200):
                flood.send("chat:say:little", id=f"{number:032}")
            answers = [flood.receive() for _ in range(200)]
            refused += sum(answer["payload"].get("limit") == "share" for answer in answers if answer["type"] == "error")
        assert refused > 2000

    assert world.grown(ask) < 0.75 * MIB
    other = world.enter("asks little")
    other.send("chat:say:little", id=1)
    assert other.receive()["type"] == "chat:said:little"


def answers_to_who_is_gone(world: World) -> None:
    """Their gateway is not there either: each might be kept for a request that comes again."""

    def answer() -> None:
        for number in range(200):
            gone = {"recipients": [f"gone.{number}"], "userIds": [f"user{number}"], "inReplyTo": number}
            world.publish(type="chat:said:much", payload="x" * LARGE, **gone)

    assert world.grown(answer) < 2 * MIB


# Streams that nobody reads.


def a_stream_in_many_rooms(world: World) -> None:
    """A user alone takes half of each partition."""
    flood = world.enter("flood")
    for number in range(20):
        flood.send("join", payload={"roomId": f"r{number}"})
        flood.expect("joined")

    def send() -> None:
        for number in range(100):
            flood.send("parts:file:save", id=number, roomId=f"r{number % 20}", payload="x" * LARGE)
        told = [flood.receive() for _ in range(100)]
        assert {message["payload"].get("limit") for message in told} == {None, "share"}

    assert world.grown(send) < 1.3 * MIB


def a_stream_by_attachments(world: World) -> None:
    with ExitStack() as stage:
        raw = world.socketio(stage, "binary", "elsewhere")

        def send() -> None:
            for number in range(100):
                raw.send(f'451-{number}["parts:file:save",{{"_placeholder":true,"num":0}}]')
                raw.send(os.urandom(LARGE))
            answers = [str(raw.recv(10)) for _ in range(100)]
            assert sum("RATE_LIMITED" in answer for answer in answers) > 50

        assert world.grown(send) < MIB


# Presence and a full stream.


def presence_of_who_comes_and_goes(world: World) -> None:
    fills = world.enter("fills")
    world.redis.xtrim("events:board", maxlen=0)
    for number in range(20):
        fills.send("board:note:add", id=number)
        fills.receive()
    before = world.redis.xrange("events:board")
    for _ in range(30):
        world.enter("comes", "door").close()
    with ExitStack() as stage:
        raw = world.socketio(stage, "enters", "door")
        for _ in range(30):
            raw.send("41")
            raw.send('40{"token": "enters", "roomId": "door"}')
            while not str(raw.recv(10)).startswith('42["authenticated"'):
                pass
    world.other.expect_nothing_through(world.server)
    assert world.redis.xrange("events:board") == before, "no event was lost"
    waiting = [key for key in world.redis.hkeys("events:board:presence") if "door" in str(key)]
    assert len(waiting) <= 2, "of each user and room one event at most waits"


# What is known of tokens.


def rooms_and_tokens_that_are_denied(world: World) -> None:
    asks = world.enter("nosy")
    world.auth.allow("nosy", "nosy", rooms=["r"])
    for number in range(100):
        asks.send("join", id=number, payload={"roomId": f"no {number}"})
    for _ in range(100):
        asks.expect("error")
    for number in range(50):
        stranger = world.connect(world.process, headers={"X-Forwarded-For": "8.8.8.8"})
        stranger.send("authenticate", payload={"token": f"none {number}", "roomId": "r"})
        stranger.expect_error("AUTH_FAILED")
    kept = [key for key in world.redis.scan_iter("access*") if world.redis.ttl(key) == -1]
    assert kept == [], "everything goes by itself"


# What all wait for.


def questions_of_strangers(world: World) -> None:
    """Each shows a token of its own, and all come from one address."""
    world.auth.mode = "slow"
    asked = len(world.auth.questions)
    strangers = [world.connect(world.process, headers={"X-Forwarded-For": "8.8.8.8"}) for _ in range(60)]
    for number, stranger in enumerate(strangers):
        stranger.send("authenticate", payload={"token": f"stranger {number}", "roomId": "r"})
    world.auth.wait_questions(asked + 5)
    world.auth.allow("late", "late")
    late = world.connect(world.process, headers={"X-Forwarded-For": "7.7.7.7"})
    late.send("authenticate", payload={"token": "late", "roomId": "late"})
    wait_until(lambda: ("late", "late") in world.auth.questions, "a question about who comes late")
    world.auth.mode = "ok"
    world.auth.release()
    late.expect("authenticated")
    for stranger in strangers:
        stranger.close()


def requests_over_socketio(world: World) -> None:
    with ExitStack() as stage:
        many = [world.socketio(stage, "many") for _ in range(25)]
        for raw in many:
            for number in range(8):
                raw.send(f'42{number}["desk:say:back",1]')
        wait_until(lambda: world.redis.xlen("events:desk") >= 50, "half of what may wait")
        few = world.enter("few")
        few.send("desk:say:back", id=1)
        wait_until(lambda: b"few" in str(world.redis.xrevrange("events:desk", count=1)).encode(), "another's request")
        assert world.redis.xlen("events:desk") <= 52


# One message for many that do not read.


def a_broadcast_to_polling_clients(world: World) -> None:
    pollers = []
    for number in range(40):
        world.auth.allow(f"polls{number}", f"polls{number}")
        pollers.append(Poller(Site(world.process.port, f'{{"token":"polls{number}","roomId":"polls"}}')))
        pollers[-1].join()
    before = world.resident()
    world.publish(type="a:b:c", roomId="polls", payload="x" * 20_000_000)
    world.other.expect_nothing_through(world.server)
    assert world.resident() - before < 150 * MIB
    for poller in pollers:
        poller.post("1")


def a_broadcast_to_clients_that_inflate(world: World) -> None:
    with ExitStack() as stage:
        world.auth.allow("inflates", "inflates")
        for _ in range(40):
            wire = stage.enter_context(Wire(world.process.port))
            wire.send(handshake("/?token=inflates&roomId=inflate", Sec_WebSocket_Extensions="permessage-deflate"))
            assert "permessage-deflate" in wire.response(body=False).headers["sec-websocket-extensions"]
            assert [wire.frame()[0] for _ in ("connected", "authenticated")] == [1, 1]
        before = world.resident()
        world.publish(type="a:b:c", roomId="inflate", payload=os.urandom(10_000_000).hex())
        world.other.expect_nothing_through(world.server)
        assert world.resident() - before < 150 * MIB


# One message with many names.


def an_answer_to_many_users(world: World) -> None:
    users = [f"user{number}" for number in range(2000)]

    def answer() -> None:
        world.publish(type="a:b:c", inReplyTo=1, userIds=users, payload="x" * 70_000)
        ours = world.other.socket_id.partition(".")[0]
        sockets = [f"{ours}.{number}" for number in range(2000)]
        world.publish(type="a:b:c", inReplyTo=1, recipients=sockets, userIds=users, payload="x" * 70_000)

    assert world.grown(answer) < MIB // 4


# A message that Redis cuts its subscribers for.


def too_large_for_a_subscriber(world: World) -> None:
    ours = world.other.socket_id.partition(".")[0]
    for channel in (f"events:reply:{ours}", "auth:invalidate"):
        world.redis.publish(channel, b"x" * 50_000_000)
        world.other.send("parts:file:save", id=channel)
        assert world.other.expect("ack")["id"] == channel
        wait_until(lambda: world.redis.pubsub_numsub("auth:invalidate")[0][1], "a subscription")

        def heard() -> bool:
            return world.publish(type="still:there:now", recipients=[world.other.socket_id], payload=1) > 0

        wait_until(heard, "a message")
        world.other.expect("still:there:now", 10)


def test_what_others_need_is_not_used_up(
    redis_server: RedisServer,
    gateway: StartGateway,
    connect: Connect,
    auth_service: AuthService,
    service: StartService,
) -> None:
    """A row each of what was tried once."""

    def answer(event: dict[str, Any]) -> dict[str, Any]:
        who = {"recipients": [event["socketId"]], "userIds": [event["userId"]], "inReplyTo": event["id"]}
        if event["eventType"] == "chat:say:little":
            return {"type": "chat:said:little", "payload": 1, **who}
        return {"type": "chat:said:much", "payload": "x" * LARGE, **who}

    service(redis_server, "events:chat", answer)
    process = gateway(redis_server, auth=auth_service.url, services=SERVICES, config=CONFIG)
    world = World(process, connect, auth_service, redis_server)
    for row in (
        large_answers_of_many_users,
        requests_of_one_user,
        answers_to_who_is_gone,
        a_stream_in_many_rooms,
        a_stream_by_attachments,
        presence_of_who_comes_and_goes,
        rooms_and_tokens_that_are_denied,
        questions_of_strangers,
        requests_over_socketio,
        a_broadcast_to_polling_clients,
        a_broadcast_to_clients_that_inflate,
        an_answer_to_many_users,
        too_large_for_a_subscriber,
    ):
        row(world)


# Histories, which a join of a hundred bytes may be answered with.

HISTORY = {
    "forwarded_for": 1,
    "sessions": "many",
    "rooms": {"board-*": {"history": 1000}},
    "limits": {"burst": 1.0, "events_per_user": 100},
}


def test_histories_are_read_as_fast_as_their_user_may_get_them(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    process = gateway(redis_server, auth=auth_service.url, services=SERVICES, config=HISTORY)
    world = World(process, connect, auth_service, redis_server)
    auth_service.allow("many", "many")
    first = connect(process, headers={"X-Forwarded-For": "2.2.2.2"})
    first.send("authenticate", payload={"token": "many", "roomId": "board-1"})
    where = first.expect("authenticated")["payload"]
    body = json.dumps({"type": "board:note:added", "payload": "x" * 900})
    for _ in range(400):
        world.redis.execute_command("FCALL", FUNCTION, 0, "board-1", body, "")
    size = 400 * len(body)
    sockets = [connect(process, headers={"X-Forwarded-For": "2.2.2.2"}) for _ in range(30)]
    before, began = world.redis.info("stats")["total_net_output_bytes"], time.monotonic()
    for number, each in enumerate(sockets):
        # None asks for what another one does, which would be read once for both.
        since = {"epoch": where["epoch"], "offset": number}
        each.send("authenticate", payload={"token": "many", "roomId": "board-1", "since": since})
    for each in sockets[:3]:
        assert each.expect("authenticated", 20)["payload"]["recovered"] is True
    read = world.redis.info("stats")["total_net_output_bytes"] - before
    # 100 events at once and 100 a second, and of this 400 messages count as 100.
    assert read < (3 + time.monotonic() - began) * size
    world.other.expect_nothing_through(redis_server)
    for each in (first, *sockets):
        each.connection.socket.shutdown(socket.SHUT_RDWR)  # what was not read would come before the closing handshake
