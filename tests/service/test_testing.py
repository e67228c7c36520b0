"""What the stand-in for the gateway does that tests of real services do not show."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from kraftek.service import Context, EventProcessor, Receipt
from kraftek.service.testing import Contract, Played


def test_services_may_have_a_prefix(gateway_contract: Contract) -> None:
    chat = EventProcessor("chat", prefix="test:")

    @chat.on("room:who")
    async def who(context: Context, payload: Any) -> list[str]:
        context.emit("wiki:page:read", payload)
        context.broadcast_to_room("chat:room:asked", payload)
        return sorted(await context.who_is_in())

    gateway_contract.run(chat)
    ada, bob = gateway_contract.client("ada", "r"), gateway_contract.client("bob", "r")
    assert ada.request("chat:room:who", "Start") == ["ada", "bob"]
    assert gateway_contract.emitted()["payload"] == "Start"
    assert bob.receive() == {"type": "chat:room:asked", "payload": "Start"}


def test_parts_of_an_answer_and_a_request_that_is_cancelled(gateway_contract: Contract) -> None:
    bot = EventProcessor("bot")

    @bot.on("text:say")
    async def say(context: Context, payload: str) -> str:
        await context.progress(payload[:2])
        await asyncio.sleep(60 if payload == "for ever" else 0)
        return payload

    gateway_contract.run(bot)
    ada = gateway_contract.client("ada", "r")
    ada.send("bot:text:say", "Hello", id=1, progress=True)
    part = ada.receive()
    assert (part["type"], part["id"], part["payload"], part["number"]) == ("progress", 1, "He", 1)
    assert ada.receive() == {"type": "bot:text:say", "id": 1, "payload": "Hello"}
    ada.send("bot:text:say", "for ever", id=2, progress=True)
    assert ada.receive()["payload"] == "fo"
    ada.cancel("bot:text:say", 2)
    assert ada.receive()["payload"]["code"] == "CANCELLED"


def test_who_has_got_a_message(gateway_contract: Contract) -> None:
    chat = EventProcessor("chat", prefix="test:")

    @chat.on("message:send")
    async def send(context: Context, payload: Any) -> Any:
        users = ["ada", "bob", "dan"] if payload == "users" else None
        receipt = await context.broadcast_with_receipt("chat:message:sent", payload, user_ids=users)
        return [receipt.acknowledged, receipt.slow, receipt.offline, receipt.owed, receipt.complete]

    @chat.on("message:wrong")
    async def wrong(context: Context, payload: Any) -> str:
        assert await context.broadcast_with_receipt("chat:message:sent", payload, user_ids=[""]) == Receipt()
        with pytest.raises(ValueError, match="at most 30 s"):
            await context.broadcast_with_receipt("chat:message:sent", payload, timeout=31)
        both: list[dict[str, Any]] = [{"room_id": "r1"}, {"exclude": ["g1.s1"]}]
        for more in both:
            with pytest.raises(ValueError, match="expected users, or else a room"):
                context.broadcast_with_receipt("chat:message:sent", payload, user_ids=["ada"], **more)
        return "nothing was sent"

    gateway_contract.run(chat)
    ada, bob, eve = (gateway_contract.client(name, "r") for name in ("ada", "bob", "eve"))
    bob.acknowledges = False
    assert ada.request("chat:message:send", "room") == [["ada", "eve"], ["bob"], [], [], True]
    assert ada.request("chat:message:send", "users") == [["ada"], ["bob"], ["dan"], [], True]
    assert [each["payload"] for each in (eve.receive(), bob.receive(), bob.receive())] == ["room", "room", "users"]
    assert ada.request("chat:message:wrong") == "nothing was sent"


def hall(**settings: Any) -> EventProcessor:
    """Tells a lobby who comes and goes elsewhere."""
    service = EventProcessor("hall", **settings)

    def tell(context: Context, payload: dict[str, Any]) -> None:
        what = [context.event_type.removeprefix("gateway:"), context.user_id, context.event.room_id]
        context.broadcast_to_room("hall:told", [*what, payload.get("reason"), payload["number"]], "lobby")

    for event in ("gateway:client:joined", "gateway:client:left", "gateway:room:reset"):
        service.on(event)(tell)
    return service


@pytest.mark.parametrize("settings", [{}, {"transport": "stream"}, {"transport": "stream", "partitions": 2}])
def test_who_joins_and_leaves(settings: dict[str, Any], gateway_contract: Contract) -> None:
    gateway_contract.run(hall(**settings))
    told = gateway_contract.client("eve", "lobby")

    def heard() -> list[Any]:
        payload = told.receive()["payload"]
        assert isinstance(payload, list)
        return payload

    assert heard() == ["client:joined", "eve", "lobby", None, 1]
    ada, twin = gateway_contract.client("ada", "r"), gateway_contract.client("ada", "r")
    assert heard() == ["client:joined", "ada", "r", None, 2]
    twin.close()
    assert gateway_contract.redis.hgetall("room:r") == {"ada": ada.socket_id}
    ada.leave()
    assert heard() == ["client:left", "ada", "r", "left", 3]
    assert gateway_contract.redis.exists("room:r", "socket:ada:r") == 0
    ada.join("s")
    assert heard() == ["client:joined", "ada", "s", None, 4]
    ada.close()
    assert heard() == ["client:left", "ada", "s", "closed", 5]
    gateway_contract.reset()
    for _ in range(settings.get("partitions", 1)):
        assert heard() == ["room:reset", "", None, None, 1]
    assert not told.inbox


@pytest.mark.process
def test_a_real_gateway_whose_service_is_the_test(gateway_contract: Contract) -> None:
    chat = gateway_contract.play("chat")
    gateway = gateway_contract.serve(sessions="many")
    with connect(gateway.url, subprotocols=[Subprotocol("kraftek.v1.json")]) as ada:
        assert json.loads(ada.recv(10))["type"] == "connected"
        ada.send(json.dumps({"type": "authenticate", "payload": {"token": "größe", "roomId": "r"}}))
        assert json.loads(ada.recv(10))["type"] == "authenticated"

        def asked(id: int) -> dict[str, Any]:
            ada.send(json.dumps({"type": "chat:room:who", "id": id, "payload": "?"}))
            event = chat.receive()
            assert (event["eventType"], event["userId"], event["payload"]) == ("chat:room:who", "user_größe", "?")
            return event

        chat.answer(asked(1), ["ada"])
        assert json.loads(ada.recv(10)) == {"type": "chat:room:who", "id": 1, "payload": ["ada"]}
        chat.refuse(asked(2), "BUSY", "later")
        assert json.loads(ada.recv(10))["payload"] == {
            "code": "BUSY",
            "message": "later",
            "eventType": "chat:room:who",
        }
        gateway_contract.publish("chat:message:sent", "Hello", roomId="r")
        assert json.loads(ada.recv(10)) == {"type": "chat:message:sent", "payload": "Hello", "roomId": "r"}


@pytest.mark.process
def test_a_gateway_that_does_not_start_says_why(gateway_contract: Contract) -> None:
    with pytest.raises(RuntimeError, match="sessions"):
        gateway_contract.serve(sessions="some")


def test_a_played_service_that_gets_nothing(gateway_contract: Contract) -> None:
    played: Played = gateway_contract.play("chat")
    with pytest.raises(AssertionError, match="service chat got no event"):
        played.receive(timeout=0.05)
