"""Nobody can use up what is there for the others: budgets and shares, through real processes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from websockets.sync.client import connect as websocket_connect

from kraftek.client.asyncio import Client as KraftekClient
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import AuthService, Client, Connect, Gateway, RedisServer, StartGateway

Json = dict[str, Any]

NOTE = "notes:note:create"
OPERATOR = {"listen": ["tcp:0:interface=127.0.0.1"]}


class World:
    """One gateway with low limits, and clients at addresses that a proxy reports."""

    def __init__(self, process: Gateway, connect: Connect, auth: AuthService, redis: RedisServer) -> None:
        self.process = process
        self.connect = connect
        self.auth = auth
        self.redis = redis

    def enter(self, user: str, address: str) -> Client:
        self.auth.allow(user, user, rooms=["r"])
        return self.connect(self.process, user, "r", headers={"X-Forwarded-For": address})


def limits_of(client: Client, number: int) -> list[str | None]:
    """What so many messages to the client say was too much; ``None`` for one that is no refusal."""
    messages = [client.receive() for _ in range(number)]
    return [message["payload"].get("limit") if message["type"] == "error" else None for message in messages]


def a_user_on_two_sockets(world: World) -> None:
    ada, again, bob = world.enter("ada", "1.1.1.1"), world.enter("ada", "2.2.2.2"), world.enter("bob", "3.3.3.3")
    for number in range(200):
        for client in (ada, again):
            client.send(NOTE, id=number)
    told = limits_of(ada, 200) + limits_of(again, 200)
    assert told.count("user") >= 50
    assert set(told) == {None, "user"}
    assert world.process.metric('kraftek_rate_limited_total{limit="user"}') == told.count("user")
    bob.send(NOTE, id=1)
    bob.expect("ack")


def events_without_an_id(world: World) -> None:
    bob = world.enter("bob", "3.3.3.3")
    before = world.process.metric('kraftek_rate_limited_total{limit="user"}')
    for _ in range(400):
        bob.send(NOTE)
    bob.send("ping")
    told: list[str] = []
    while not told or told[-1] != "pong":
        told.append(bob.receive()["type"])
    refused = world.process.metric('kraftek_rate_limited_total{limit="user"}') - before
    assert refused >= 50
    assert told.count("error") * 10 <= refused


def an_address_with_two_users(world: World) -> None:
    cyd, dan = world.enter("cyd", "4.4.4.4"), world.enter("dan", "4.4.4.4")
    for number in range(150):
        for client in (cyd, dan):
            client.send(NOTE, id=number)
    told = limits_of(cyd, 150) + limits_of(dan, 150)
    assert told.count("address") >= 10
    assert None in told


def questions_and_noes(world: World) -> None:
    eve = world.enter("eve", "5.5.5.5")
    asked = len(world.auth.questions)
    for number in range(40):
        eve.send("join", payload={"roomId": f"no {number}"}, id=number)
    told = limits_of(eve, 40)
    assert told.count("questions") >= 10
    assert set(told) <= {None, "joins", "questions"}
    assert len(world.auth.questions) - asked == told.count(None)


def joins_that_the_cache_answers(world: World) -> None:
    fay = world.enter("fay", "6.6.6.6")
    for number in range(80):
        fay.send("join", payload={"roomId": "r"}, id=number)
    told = limits_of(fay, 80)
    assert told.count("joins") >= 10
    assert set(told) == {None, "joins"}


def what_is_no_event(world: World, text: str) -> None:
    """A socket over its budget is slowed, and everything is answered."""
    gus = world.connect(world.process)
    before = world.process.metric("kraftek_slowed_total")
    for number in range(400):
        # So that not too many malformed ones come in a row.
        gus.send_raw(text if number % 5 else '{"type": "ping"}')
    assert sum(gus.receive()["type"] in {"pong", "error"} for _ in range(400)) == 400
    assert world.process.metric("kraftek_slowed_total") > before


def the_namespace_of_socketio(world: World) -> None:
    """Who leaves it and enters it again has the same budget."""
    before = world.process.metric("kraftek_slowed_total")
    url = world.process.url + "socket.io/?EIO=4&transport=websocket"
    with websocket_connect(url, proxy=None, compression=None) as raw:
        for _ in range(200):
            raw.send("40")
            raw.send("41")
        accepted = 0
        while accepted < 200:
            accepted += str(raw.recv(10)).startswith("40")
    assert world.process.metric("kraftek_slowed_total") > before


def a_client_that_obeys(world: World) -> None:
    world.auth.allow("hal", "hal", rooms=["r"])

    async def talk() -> list[Any]:
        client = KraftekClient(world.process.url, lambda _: "hal", room="r")
        await client.connect()
        answers = await asyncio.gather(*(client.request("slow:thing:do", number) for number in range(50)))
        await client.close()
        return answers

    assert asyncio.run(talk()) == [{"receivers": 1}] * 50
    stream: Any = world.redis.client().xrange("events:slow")
    assert [json.loads(fields["event"])["payload"] for _, fields in stream] == [*range(50)]
    assert world.process.metric('kraftek_rate_limited_total{limit="event"}') >= 10


def test_budgets(redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService) -> None:
    """Of sockets, users, addresses, joins and questions, and a service's own."""
    process = gateway(
        redis_server,
        auth=auth_service.url,
        services={
            "notes": {"channel": "events:notes", "transport": "stream"},
            "slow": {"channel": "events:slow", "transport": "stream", "rate": {"slow:*:*": 20}},
        },
        config={
            "forwarded_for": 1,
            "sessions": "many",
            "operator": OPERATOR,
            "limits": {
                "burst": 1.0,
                "events_per_socket": 200,
                "events_per_user": 100,
                "events_per_address": 120,
                "questions_per_user": 10,
                "joins_per_user": 30,
            },
        },
    )
    world = World(process, connect, auth_service, redis_server)
    a_user_on_two_sockets(world)
    events_without_an_id(world)
    an_address_with_two_users(world)
    questions_and_noes(world)
    joins_that_the_cache_answers(world)
    for text in ('{"type": "ping"}', "{}", '{"type": "leave", "payload": {"roomId": "nowhere"}}'):
        what_is_no_event(world, text)
    the_namespace_of_socketio(world)
    a_client_that_obeys(world)
    assert world.process.metric("kraftek_rate_limited_closed_total") == 0


def test_shares(redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService) -> None:
    """One user on many sockets fills neither what waits at a service nor the questions to a slow auth service."""
    process = gateway(
        redis_server,
        auth=auth_service.url,
        services={"chat": {"channel": "events:chat", "transport": "stream", "reply": True, "requests": 100}},
        config={"sessions": "many", "auth": {"concurrency": 10, "waiting": 40, "timeout": 30.0}, "operator": OPERATOR},
    )
    shares = 'kraftek_rate_limited_total{limit="share"}'
    for user in ("ada", "bob", "cyd"):
        auth_service.allow(user, user)
    many = [connect(process, "ada", "r") for _ in range(40)]
    bob = connect(process, "bob", "r")
    for place, client in enumerate(many):
        for number in range(5):
            client.send("chat:message:send", id=f"{place} {number}")
    wait_until(lambda: process.metric(shares) == 150, lambda: f"150 refusals, not {process.metric(shares)}")
    bob.send("chat:message:send", id=1)
    stream = redis_server.client()
    wait_until(lambda: stream.xlen("events:chat") == 51, lambda: f"51 events, not {stream.xlen('events:chat')}")

    auth_service.mode = "slow"
    asked = len(auth_service.questions)
    for number, client in enumerate(many):
        client.send("join", payload={"roomId": f"room {number}"}, id="join")
    # Five of ten at a time are asked, twenty of forty wait.
    wait_until(lambda: process.metric(shares) == 165, lambda: f"165 refusals, not {process.metric(shares)}")
    auth_service.wait_questions(asked + 5)
    late = connect(process)
    late.send("authenticate", payload={"token": "cyd", "roomId": "late"})
    auth_service.wait_questions(asked + 6)
    assert auth_service.questions[-1] == ("cyd", "late")
    assert len(auth_service.questions) == asked + 6
    auth_service.mode = "ok"
    auth_service.release()
    assert late.expect("authenticated")["payload"]["userId"] == "cyd"
