"""What is said outside of handlers, through both publishers: to a real Redis, with a stand-in for the gateway."""

from __future__ import annotations

import asyncio
import json
import unittest
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from kraftek.contract.names import HISTORY_RULES, history_log_key, user_topic
from kraftek.service import Away, Context, EventProcessor, OldGateway, Refused, Told, TooLarge
from kraftek.service import asyncio as over_asyncio
from kraftek.service import twisted as over_twisted
from kraftek.service.messages import to_room, to_users
from kraftek.service.testing import Contract
from tests.support.redis_server import PrivateRedis

Play = Callable[[Any], Awaitable[None]]
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "twisted"])


def over(backend: str, url: str, play: Play, **settings: Any) -> None:
    """Run a play with a publisher that is stopped at its end."""

    async def with_asyncio() -> None:
        async with over_asyncio.Publisher(url, **settings) as publisher:
            await asyncio.wait_for(play(publisher), 30.0)
        with pytest.raises(RuntimeError, match="not running"):
            await publisher.broadcast_to_user("a:b:c", 1, "ada")

    async def with_twisted() -> None:
        publisher = over_twisted.Publisher(reactor, url, **settings)
        publisher.startService()
        try:
            await play(publisher)
        finally:
            await publisher.stopService()
        answer = publisher.broadcast_to_user("a:b:c", 1, "ada")
        assert isinstance(answer, Deferred)
        with pytest.raises(RuntimeError, match="not running"):
            await answer

    if backend == "asyncio":
        asyncio.run(with_asyncio())
        return

    class Trial(TestCase):
        timeout = 30

        def runTest(self) -> Deferred[None]:
            return Deferred.fromCoroutine(with_twisted())

    result = unittest.TestResult()
    Trial().run(result)
    assert not result.errors, result.errors[0][1]
    assert not result.failures, result.failures[0][1]


@BACKENDS
def test_what_is_said_to_a_room_with_history_is_told_once(backend: str, gateway_contract: Contract) -> None:
    """Those in the room are on a gateway that does not follow the rules: it hears all on the usual channel."""
    redis, ada = gateway_contract.redis, gateway_contract.client("ada", "r")

    async def play(publisher: Any) -> None:
        plain = await publisher.broadcast_to_room("t:to:room", 0, "r", id="m")
        assert (plain, bool(plain)) == (Told(1), True)
        redis.hset(
            HISTORY_RULES, mapping={"rules": json.dumps([["room:r", False, 9, 60_000, 9000]]), "generation": "g"}
        )
        redis.zadd("gateways", {"gw": 2**40})
        first = await publisher.broadcast_to_room("t:to:room", 1, "r", id="m")
        assert (first.taken, first.offset, len(first.epoch)) == (1, 1, 12)
        again = await publisher.broadcast_to_room("t:to:room", 1, "r", id="m")
        assert (again, bool(again)) == (Told(0, 1, first.epoch), True)
        assert (await publisher.broadcast_to_room("t:to:room", 2, "r", exclude=[ada.socket_id])).offset == 2
        assert (await publisher.send(to_room("t:to:room", 3, "r", ()), id="n")).offset == 3
        assert (await publisher.append_to_room("t:to:room", "k", "x", "r", first=True, id="x")).offset == 4
        assert (await publisher.append_to_room("t:to:room", "k", "y", "r", last=True)).offset == 5
        assert (await publisher.append_to_room("t:to:room", "k", "x", "r", first=True, id="x")).offset == 4
        with pytest.raises(TooLarge, match="at most 9000 bytes"):
            await publisher.append_to_room("t:to:room", "k", "x" * 9000, "r")
        assert await publisher.broadcast_to_room("t:to:room", 4, "s") == Told(1)
        assert not await publisher.broadcast_to_users("t:to:nobody", 5, [])
        redis.delete("gateways", HISTORY_RULES)

    over(backend, gateway_contract.url, play)
    gateway_contract.settle()
    assert [told["payload"] for told in ada.inbox] == [0, 1, 3, "x", "y"]
    assert [told["append"] for told in [*ada.inbox][3:]] == [{"key": "k", "from": 4}, {"key": "k", "last": True}]


@BACKENDS
def test_what_is_said_to_users_with_history_is_told_each_of_them_once(backend: str, gateway_contract: Contract) -> None:
    redis: Any = gateway_contract.redis
    ada, bob = gateway_contract.client("ada"), gateway_contract.client("bob")

    async def play(publisher: Any) -> None:
        assert await publisher.broadcast_to_users("t:to:users", 0, ["ada", "bob"], id="m") == Told(1)
        rules = json.dumps([["room:", "", 9, 60_000, 9000]])
        redis.hset(HISTORY_RULES, mapping={"rules": rules, "generation": "g"})
        assert await publisher.broadcast_to_users("t:to:users", 1, ["ada", "bob"], id="m") == Told(1)
        rules = json.dumps([["user:", "", 9, 60_000, 9000]])
        redis.hset(HISTORY_RULES, mapping={"rules": rules, "generation": "h"})
        redis.zadd("gateways", {"gw": 2**40})
        first = await publisher.broadcast_to_user("t:to:user", 2, "bob", id="m")
        assert (first.taken, first.offset, len(first.epoch)) == (1, 1, 12)
        both = await publisher.broadcast_to_users("t:to:users", 2, ["ada", "", "bob"], id="m")
        assert (both.taken, both.offset, both.epoch == first.epoch) == (1, 1, False)
        assert await publisher.broadcast_to_user("t:to:user", 2, "bob", id="m") == Told(0, 1, first.epoch)
        assert (await publisher.send(to_users("t:to:users", 3, ("bob", "ada")), id="n")).offset == 2
        assert not await publisher.broadcast_to_users("t:to:nobody", 5, [])
        redis.delete("gateways", HISTORY_RULES)

    over(backend, gateway_contract.url, play)
    gateway_contract.settle()
    assert [[told["payload"] for told in client.inbox] for client in (ada, bob)] == [[0, 1, 2, 3]] * 2
    kept = [entry["m"] for _, entry in redis.xrange(history_log_key(user_topic("ada")))]
    assert kept == ['{"type":"t:to:users","payload":2}', '{"type":"t:to:users","payload":3}']


@BACKENDS
def test_to_whom_it_says(backend: str, gateway_contract: Contract) -> None:
    ada, bob = gateway_contract.client("ada", "r"), gateway_contract.client("bob", "r")
    eve = gateway_contract.client("eve", "s")

    async def play(publisher: Any) -> None:
        assert await publisher.broadcast_to_room("t:to:room", 1, "r", exclude=[bob.socket_id]) == Told(1)
        assert await publisher.broadcast_to_user("t:to:user", {"x": [2]}, "bob") == Told(1)
        assert await publisher.broadcast_to_users("t:to:users", 3, ["bob", "eve", ""]) == Told(1)
        assert await publisher.broadcast_to_sockets("t:to:sockets", "half \ud83d", eve.socket_id) == 1
        assert await publisher.broadcast_to_everybody("t:to:everybody", None, exclude=ada.socket_id) == 1
        assert await publisher.broadcast_to_users("t:to:nobody", 6, []) == Told(0)
        assert await publisher.broadcast_to_sockets("t:to:nobody", 7, [""]) == 0

    over(backend, gateway_contract.url, play)

    gateway_contract.settle()
    told = [[(each["type"], each["payload"]) for each in client.inbox] for client in (ada, bob, eve)]
    assert told == [
        [("t:to:room", 1)],
        [("t:to:user", {"x": [2]}), ("t:to:users", 3), ("t:to:everybody", None)],
        [("t:to:users", 3), ("t:to:sockets", "half \ufffd"), ("t:to:everybody", None)],
    ]


@BACKENDS
def test_it_disconnects_under_a_prefix_and_on_another_channel(backend: str, gateway_contract: Contract) -> None:
    listening = gateway_contract.redis.pubsub(ignore_subscribe_messages=True)
    listening.subscribe("live:said")

    async def play(publisher: Any) -> None:
        sent = publisher.disconnect(user_ids="ada", socket_ids=["g.1"], room_id="r", code="BANNED", message="bye")
        assert await sent == 1
        assert await publisher.disconnect(user_ids=["ada"]) == 1
        assert await publisher.disconnect(room_id="r") == 0
        with pytest.raises(ValueError, match="banned: expected a code of at most 64 capitals"):
            await publisher.disconnect(user_ids=["ada"], code="banned")

    over(backend, gateway_contract.url, play, prefix="live:", broadcast="said")

    heard = [listening.get_message(timeout=5.0) for _ in range(3)]
    said = [json.loads(each["data"]) for each in heard if each is not None]
    assert said == [
        {
            "type": "disconnect",
            "payload": {"code": "BANNED", "message": "bye"},
            "recipients": ["g.1"],
            "roomId": "r",
            "userIds": ["ada"],
        },
        {
            "type": "disconnect",
            "payload": {"code": "ACCESS_REVOKED", "message": "disconnected by a service"},
            "userIds": ["ada"],
        },
    ]
    listening.close()


@BACKENDS
@pytest.mark.parametrize(("source", "own"), [("", []), ("cron", ["cron:*:*"])])
def test_it_puts_into_rooms_and_takes_out(
    backend: str, source: str, own: list[str], gateway_contract: Contract
) -> None:
    ada, bob = gateway_contract.client("ada", "r"), gateway_contract.client("bob")
    listening = gateway_contract.redis.pubsub(ignore_subscribe_messages=True)
    listening.subscribe("events:broadcast")

    async def play(publisher: Any) -> None:
        assert await publisher.put_in_room("match", user_ids="ada", socket_ids=[bob.socket_id]) == 2
        assert await publisher.put_in_room("r", user_ids=["ada"], permissions=["a:*:*"]) == 2
        assert await publisher.broadcast_to_room("t:to:room", 1, "match") == Told(2)
        assert await publisher.remove_from_room("match", user_ids=["bob", "eve"]) == 2
        assert await publisher.broadcast_to_room("t:to:room", 2, "match") == Told(2)
        assert await publisher.put_in_room("match") == 0
        with pytest.raises(ValueError, match="not empty"):
            await publisher.put_in_room("", user_ids="ada")

    over(backend, gateway_contract.url, play, source=source)

    gateway_contract.settle()
    joined: Any = {"type": "joined", "payload": {"roomId": "match"}}
    gone = {"code": "ACCESS_REVOKED", "message": "Access to room match was ended by a service"}
    assert [*ada.inbox] == [joined, {"type": "t:to:room", "payload": 1}, {"type": "t:to:room", "payload": 2}]
    assert [*bob.inbox] == [
        joined,
        {"type": "t:to:room", "payload": 1},
        {"type": "error", "payload": gone, "roomId": "match"},
    ]
    heard = [listening.get_message(timeout=5.0) for _ in range(3)]
    payloads = [json.loads(each["data"])["payload"] for each in heard if each is not None]
    assert payloads == [{"permissions": own}, {"permissions": ["a:*:*"]}]
    listening.close()


@BACKENDS
def test_it_says_that_a_gateway_does_not_know_a_command(backend: str, gateway_contract: Contract) -> None:
    later = 4_102_444_800
    gateway_contract.redis.zadd("live:gateways", {"old": later, "new": later})
    gateway_contract.redis.hset("live:gateways:registrations", "new", '{"commands": ["gateway:room:put"]}')

    async def play(publisher: Any) -> None:
        for call in (publisher.put_in_room, publisher.remove_from_room):
            with pytest.raises(OldGateway, match=r"gateway (old|new) is of a version that does not know gateway:room:"):
                await call("match", user_ids="ada")
        assert not await publisher.broadcast_to_room("t:to:room", 1, "match")

    over(backend, gateway_contract.url, play, prefix="live:")


@BACKENDS
def test_it_asks_another_service(backend: str, gateway_contract: Contract) -> None:
    async def play(publisher: Any) -> None:
        asked = publisher.request("wiki:page:read", {"page": 1}, user_id="ada", room_id="r", timeout=10.0)
        if backend == "asyncio":
            asked = asyncio.ensure_future(asked)
            event = await asyncio.to_thread(gateway_contract.emitted)
        else:
            event = await deferToThread(gateway_contract.emitted)
        gateway_contract.answer(event, "text")
        assert await asked == "text"
        del event["id"], event["replyTo"]
        assert event == {
            "source": "cron",
            "eventType": "wiki:page:read",
            "payload": {"page": 1},
            "userId": "ada",
            "roomId": "r",
        }
        await publisher.emit("wiki:page:touch")
        with pytest.raises(Refused, match=r"TIMEOUT: wiki:page:read: no answer within 0.1 s"):
            await publisher.request("wiki:page:read", timeout=0.1)
        with pytest.raises(ValueError, match="expected service:module:name"):
            await publisher.request("read")

    over(backend, gateway_contract.url, play, source="cron")


@BACKENDS
def test_without_a_source_there_are_no_events(backend: str, gateway_contract: Contract) -> None:
    async def play(publisher: Any) -> None:
        for call in (publisher.emit, publisher.request):
            with pytest.raises(ValueError, match="needs a source"):
                await call("wiki:page:read")

    over(backend, gateway_contract.url, play)


@BACKENDS
def test_its_messages_have_a_bound(backend: str, gateway_contract: Contract) -> None:
    async def play(publisher: Any) -> None:
        for call in (
            lambda: publisher.broadcast_to_everybody("a:b:c", "x" * 5000),
            lambda: publisher.disconnect(user_ids=["ada"], message="x" * 5000),
        ):
            with pytest.raises(TooLarge, match=r"a message of 5\d\d\d bytes; at most 5000 may be sent"):
                await call()
        with pytest.raises(TooLarge, match="wiki:page:write"):
            await publisher.request("wiki:page:write", "x" * 5000)

    over(backend, gateway_contract.url, play, source="cron", message_bytes=5000)


@BACKENDS
def test_it_says_that_redis_is_away(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kraftek.service.publisher.PATIENCE", 0.5)
    redis = PrivateRedis()
    try:

        async def play(publisher: Any) -> None:
            with pytest.raises(Away, match=r"redis\.sock|[Nn]o such file"):
                await publisher.broadcast_to_user("a:b:c", 1, "ada")

        over(backend, redis.url, play)
    finally:
        redis.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # redis-py's, of a connection that is lost
@BACKENDS
def test_it_is_there_again_when_redis_is(backend: str) -> None:
    redis = PrivateRedis()
    redis.start()
    try:

        async def play(publisher: Any) -> None:
            assert await publisher.broadcast_to_user("a:b:c", 1, "ada") == Told(0)
            redis.kill()
            with pytest.raises(Away):
                await publisher.broadcast_to_user("a:b:c", 2, "ada")
            redis.start()
            for _ in range(200):
                try:
                    assert await publisher.broadcast_to_user("a:b:c", 3, "ada") == Told(0)
                except Away:
                    await publisher._backend.signal().wait(0.05)
                else:
                    return
            raise AssertionError("it stays away")

        over(backend, redis.url, play)
    finally:
        redis.close()


def test_what_is_wrong_with_its_settings() -> None:
    with pytest.raises(ValueError, match="name"):
        over_asyncio.Publisher("redis://127.0.0.1:1", "a b")
    with pytest.raises(ValueError, match="prefix"):
        over_asyncio.Publisher("redis://127.0.0.1:1", prefix="a b")


def test_a_context_whose_handler_has_ended_says_so(gateway_contract: Contract) -> None:
    chat = EventProcessor("chat")
    kept: list[Context] = []

    @chat.on("a:b")
    async def handle(context: Context) -> None:
        context.broadcast_to_everybody("chat:a:heard", 1)
        context.disconnect(user_ids=["eve"])
        kept.append(context)

    gateway_contract.run(chat)
    ada = gateway_contract.client("ada", "r")
    assert ada.request("chat:a:b") is None
    assert ada.receive() == {"type": "chat:a:heard", "payload": 1}
    (context,) = kept
    before = len(context.commands)
    for call in (
        lambda: context.broadcast_to_room("chat:a:c", 1),
        lambda: context.broadcast_to_user("chat:a:c", 1, "ada"),
        lambda: context.broadcast_to_sockets("chat:a:c", 1, "g.1"),
        lambda: context.broadcast_to_everybody("chat:a:c", 1),
        lambda: context.disconnect(user_ids="ada"),
        lambda: context.emit("wiki:a:b"),
        lambda: context.also("SET", "k", "v"),
    ):
        with pytest.raises(RuntimeError, match="the handler of chat:a:b has ended"):
            call()
    assert len(context.commands) == before
