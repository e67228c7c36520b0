"""What a service does with the events it gets: the same through both backends, and over both transports."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kraftek.service import Refused
from kraftek.service.testing import Contract
from tests.service.instances import Instances, registered, stopped
from tests.support.redis_server import PrivateRedis

WAYS = [
    pytest.param(("asyncio", {}), id="asyncio-pubsub"),
    pytest.param(("twisted", {}), id="twisted-pubsub"),
    pytest.param(("asyncio", {"transport": "stream"}), id="asyncio-stream"),
    pytest.param(("twisted", {"transport": "stream"}), id="twisted-stream"),
    pytest.param(("asyncio", {"transport": "stream", "partitions": 2}), id="asyncio-partitions"),
    pytest.param(("twisted", {"transport": "stream", "partitions": 2}), id="twisted-partitions"),
]


@pytest.fixture(scope="module", params=WAYS)
def stage(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """A Redis and one process of the service, for all tests of one way."""
    backend, settings = request.param
    server, instances = PrivateRedis(), Instances()
    server.start()
    process = instances.start(backend, server.url, **settings)
    yield server.url, settings
    logged = stopped(process)
    assert "An event was lost" not in logged
    server.close()


@pytest.fixture
def contract(stage: tuple[str, dict[str, Any]]) -> Iterator[Contract]:
    url, settings = stage
    contract = Contract(url)
    contract.redis.delete("also")
    processor = registered(**settings)
    contract.register(processor)
    contract.wait_for(processor)
    yield contract
    contract.close()


def refused(contract: Contract, event: str, payload: Any = None) -> Refused:
    with pytest.raises(Refused) as caught:
        contract.client("ada", "room").request(event, payload)
    return caught.value


@pytest.mark.parametrize("event", ["say:back", "say:later", "say:explicitly"])
@pytest.mark.parametrize("payload", [0, "größe 🎉", [1.5, None], {"a": {}}])
def test_a_request_is_answered(contract: Contract, event: str, payload: Any) -> None:
    ada = contract.client("ada", "room")

    ada.send(f"sample:{event}", payload, id="q1")

    assert ada.receive() == {"type": f"sample:{event}", "id": "q1", "payload": payload}


@pytest.mark.parametrize("event", ["say:nothing", "say:awaitable"])
def test_a_handler_that_returns_nothing_answers_null(contract: Contract, event: str) -> None:
    ada = contract.client("ada", "room")

    ada.send(f"sample:{event}", {"ignored": 1}, id=1)

    assert ada.receive() == {"type": f"sample:{event}", "id": 1, "payload": None}


@pytest.mark.parametrize("event", ["say:silent", "say:afterwards"])
def test_a_request_may_be_left_to_others(contract: Contract, event: str) -> None:
    ada = contract.client("ada", "room")

    ada.send(f"sample:{event}", 1, id="left")
    assert ada.request("sample:say:back", 2) == 2
    contract.settle()

    assert not ada.inbox


def test_a_function_may_block_a_thread(contract: Contract) -> None:
    ada = contract.client("ada", "room")

    assert ada.request("sample:say:blocked", 1) is False
    assert [told["type"] for told in ada.inbox] == ["sample:said:blocked"]
    assert refused(contract, "sample:say:blocked", "refuse").code == "NOT_NOW"
    assert refused(contract, "sample:say:blocked", "await").code == "EVENT_PROCESSING_ERROR"


def test_redis_answers_with_bytes_or_text(contract: Contract) -> None:
    assert contract.client("ada", "room").request("sample:say:stored", "b") == ["größe", "b"]


def test_what_a_context_awaits_is_of_its_backend(contract: Contract) -> None:
    assert contract.client("ada", "room").request("sample:say:chained") == "chained"


@pytest.mark.parametrize(
    ("event", "payload", "answer", "says"),
    [
        ("go:dataclass", {"name": "ada"}, ["ada", 0], "Object missing required field `name`"),
        ("go:typed", {"x": 3}, 3, "Object missing required field `x`"),
    ],
)
def test_a_payload_is_of_any_type_that_msgspec_knows(
    contract: Contract, event: str, payload: Any, answer: Any, says: str
) -> None:
    assert contract.client("ada").request(f"sample:{event}", payload) == answer
    error = refused(contract, f"sample:{event}", {})
    assert (error.code, error.message) == ("INVALID_PAYLOAD", says)


def test_who_wants_no_answer_gets_none(contract: Contract) -> None:
    ada = contract.client("ada", "room")

    ada.send("sample:say:back", 1)
    ada.send("sample:say:explicitly", 2)
    ada.request("sample:say:back", 3)
    contract.settle()

    assert not ada.inbox


def test_only_the_sender_is_answered(contract: Contract) -> None:
    ada, other = contract.client("ada", "room"), contract.client("ada", "room")

    assert ada.request("sample:say:back", 1) == 1

    assert not other.inbox


def test_an_event_answered_twice_has_failed(contract: Contract) -> None:
    assert refused(contract, "sample:say:twice", 1).code == "EVENT_PROCESSING_ERROR"


def test_a_handler_knows_what_the_gateway_knows(contract: Contract) -> None:
    ada = contract.client("ada", "room")

    ada.send("sample:say:who", None, id=7, timestamp=1_700_000_000_000)

    assert ada.receive()["payload"] == {
        "user_id": "ada",
        "socket_id": ada.socket_id,
        "room_id": "room",
        "event_type": "sample:say:who",
        "id": 7,
        "source": None,
        "timestamp": 1_700_000_000_000,
    }


def test_a_payload_is_checked_and_converted(contract: Contract) -> None:
    ada = contract.client("ada")

    assert ada.request("sample:go:to", {"x": 3, "more": 1}) == {"x": 3, "label": "here"}


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (None, "Expected `object`, got `null`"),
        ({}, "Object missing required field `x`"),
        ({"x": -1}, "Expected `int` >= 0 - at `$.x`"),
        ({"x": 1, "label": 7}, "Expected `str`, got `int` - at `$.label`"),
    ],
)
def test_a_wrong_payload_is_refused(contract: Contract, payload: Any, says: str) -> None:
    error = refused(contract, "sample:go:to", payload)

    assert (error.code, error.message) == ("INVALID_PAYLOAD", says)


def test_an_event_without_a_handler_is_refused(contract: Contract) -> None:
    error = refused(contract, "sample:no:such")

    assert (error.code, error.message) == ("NO_HANDLER", "service sample has no handler for sample:no:such")


def test_a_handler_may_refuse(contract: Contract) -> None:
    error = refused(contract, "sample:do:refuse")

    assert (error.code, error.message, error.retry_after) == ("NOT_NOW", "come back", 2.5)


def test_why_a_handler_failed_is_nobodys_business(contract: Contract) -> None:
    error = refused(contract, "sample:do:fail")

    assert (error.code, error.message) == ("EVENT_PROCESSING_ERROR", "service sample failed to process the event")


@pytest.mark.parametrize(
    ("event", "code"),
    [("do:fail", "EVENT_PROCESSING_ERROR"), ("no:such", "NO_HANDLER"), ("go:to", "INVALID_PAYLOAD")],
)
def test_errors_are_told_without_being_asked_for(contract: Contract, event: str, code: str) -> None:
    ada = contract.client("ada", "room")

    ada.send(f"sample:{event}", None)

    told = ada.receive()
    assert (told["type"], "id" in told) == ("error", False)
    assert (told["payload"]["code"], told["payload"]["eventType"]) == (code, f"sample:{event}")


def test_everybody_is_told(contract: Contract) -> None:
    ada, bob, cy = contract.client("ada", "room"), contract.client("bob", "room"), contract.client("cy", "there")

    ada.send("sample:tell:all", {"n": 1})
    assert cy.receive() == {"type": "sample:told:there", "payload": {"n": 1}}
    ada.request("sample:say:back", 0)

    assert [told["type"] for told in ada.inbox] == ["sample:told:room", "sample:told:socket"]
    assert [told["type"] for told in bob.inbox] == ["sample:told:room", "sample:told:others", "sample:told:user"]
    assert not cy.inbox
    assert contract.redis.get("also") == '{"n": 1}'


def test_redis_may_forget_scripts(contract: Contract) -> None:
    ada, bob = contract.client("ada", "room"), contract.client("bob", "room")

    for n in range(4):
        if n == 2:
            contract.redis.script_flush()
        ada.request("sample:tell:all", {"n": n})

    told = [message["payload"]["n"] for message in bob.inbox if message["type"] == "sample:told:room"]
    assert told == [0, 1, 2, 3]


def test_a_handler_that_fails_has_said_and_done_nothing(contract: Contract) -> None:
    ada = contract.client("ada", "room")

    ada.send("sample:tell:half", 1)

    assert ada.receive()["payload"]["code"] == "EVENT_PROCESSING_ERROR"
    contract.settle()
    assert not ada.inbox
    assert contract.redis.get("also") is None


def test_everybody_hears_it_and_some_are_disconnected(contract: Contract) -> None:
    ada = contract.client("ada", "room")
    ada.send("sample:tell:everybody", "wrong")
    assert ada.receive()["payload"]["code"] == "EVENT_PROCESSING_ERROR"
    ada.send("sample:tell:everybody", 1)

    heard = [contract.hear(10) for _ in range(3)]

    bye, revoked = (
        {"code": "BANNED", "message": "bye"},
        {"code": "ACCESS_REVOKED", "message": "disconnected by a service"},
    )
    close = {"channel": "events:broadcast", "type": "disconnect"}
    assert heard == [
        {
            "channel": "events:broadcast",
            "type": "sample:told:everybody",
            "payload": 1,
            "everybody": True,
            "excludeSocketIds": [ada.socket_id],
        },
        {**close, "payload": bye, "userIds": ["bob"], "recipients": [ada.socket_id], "roomId": "r"},
        {**close, "payload": revoked, "userIds": ["eve"]},
    ]


def test_what_concerns_the_senders_gateway_goes_to_it_alone(contract: Contract) -> None:
    contract.client("ada", "room").send("sample:tell:all", 1)

    heard = {}
    while "sample:told:socket" not in heard:
        told = contract.hear(10)
        assert told is not None
        heard[told["type"]] = told["channel"]
    assert heard.pop("sample:told:socket") == contract.reply_to
    assert set(heard.values()) == {"events:broadcast"}


def test_an_answer_finds_its_user_when_the_gateway_is_gone(contract: Contract) -> None:
    """Another gateway has the user's request by then, sent again under the same id."""
    ada = contract.client("ada", "room")

    ada.send("sample:say:back", 1, id="q1", replyTo="events:reply:gone")

    told = contract.hear(10)
    assert told == {
        "channel": "events:broadcast",
        "type": "sample:say:back",
        "payload": 1,
        "recipients": [ada.socket_id],
        "userIds": ["ada"],
        "inReplyTo": "q1",
    }


def test_an_event_of_the_original_gateway_is_enough(contract: Contract) -> None:
    """It has no ``replyTo`` and no ``gatewayId``."""
    ada = contract.client("ada", "room")
    event = {"eventType": "sample:do:refuse", "userId": "ada", "socketId": ada.socket_id, "timestamp": 1}

    contract.deliver(event | {"payload": {}})

    assert ada.receive()["payload"]["code"] == "NOT_NOW"


def test_a_service_asks_another(contract: Contract) -> None:
    ada = contract.client("ada", "room")
    ada.send("sample:ask:other", {"event": "other:thing:get", "payload": [1]}, id=1, traceparent="00-1")

    asked = contract.emitted()
    expected = {
        "source": "sample",
        "eventType": "other:thing:get",
        "payload": [1],
        "userId": "ada",
        "roomId": "room",
        "traceparent": "00-1",
    }
    assert {name: asked.get(name) for name in expected} == expected
    contract.answer(asked, {"thing": True})

    assert ada.receive()["payload"] == {"answer": {"thing": True}}


def test_what_another_service_refuses_is_refused(contract: Contract) -> None:
    ada = contract.client("ada", "room")
    contract.redis.delete("events:gateway")
    ada.send("sample:ask:other", {"event": "other:thing:get"}, id=1)

    contract.answer(contract.emitted(), {"code": "SERVICE_UNAVAILABLE", "message": "away", "retryAfter": 1}, "error")

    assert ada.receive()["payload"] == {
        "code": "SERVICE_UNAVAILABLE",
        "message": "away",
        "eventType": "sample:ask:other",
        "retryAfter": 1.0,
    }


def test_another_service_may_be_silent(contract: Contract) -> None:
    error = refused(contract, "sample:ask:other", {"event": "other:thing:get", "timeout": 0.05})

    assert (error.code, error.message) == ("TIMEOUT", "other:thing:get: no answer within 0.05 s")


def test_a_service_tells_another(contract: Contract) -> None:
    contract.redis.delete("events:gateway")

    contract.client("ada", "room").send("sample:ask:nobody", {"event": "other:thing:put", "payload": 1})

    event = {"source": "sample", "eventType": "other:thing:put", "payload": 1, "userId": "ada", "roomId": "room"}
    assert contract.emitted() == event


def test_a_service_is_asked_by_another(contract: Contract) -> None:
    """It has no socket: the answer goes to where the other listens, and names nobody."""
    event = {"eventType": "sample:say:back", "source": "other", "socketId": "", "userId": "", "timestamp": 1}

    contract.deliver(event | {"id": 5, "replyTo": contract.reply_to, "payload": "?"})

    assert contract.hear(10) == {
        "channel": contract.reply_to,
        "type": "sample:say:back",
        "payload": "?",
        "inReplyTo": 5,
    }


def test_who_is_in_a_room(contract: Contract) -> None:
    contract.redis.delete("room:full")
    ada, bob = contract.client("ada", "full"), contract.client("bob", "full")

    assert ada.request("sample:ask:room") == {"ada": ada.socket_id, "bob": bob.socket_id}


def test_comings_and_goings(contract: Contract) -> None:
    contract.redis.delete("room:full")
    ada = contract.client("ada", "full")
    coming = {"roomId": "full", "userId": "bob", "socketId": "x.1", "timestamp": 1, "payload": {}}

    for event in ("left", "joined"):  # it has no handler for the first, and nobody is told so
        contract.send(registered_of(contract), json.dumps(coming | {"eventType": f"gateway:client:{event}"}), "full")

    assert ada.receive() == {"type": "sample:people:changed", "payload": ["ada"]}
    assert not ada.inbox


def registered_of(contract: Contract) -> Any:
    return contract._services["sample"]


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"null", b"7", b"{}", b"[" * 100_000, b'{"eventType": 7}'])
def test_what_is_no_event_hurts_nobody(contract: Contract, body: bytes) -> None:
    contract.send(registered_of(contract), body)

    assert contract.client("ada").request("sample:say:back", 1) == 1


def test_many_at_once(contract: Contract) -> None:
    clients = [contract.client(f"user{number}", f"room{number}") for number in range(20)]
    began = time.monotonic()
    for number in range(400):
        clients[number % 20].send("sample:say:back", number, id=number)

    for number in range(400):
        assert clients[number % 20].receive(10)["payload"] == number
    print(f"400 requests in {time.monotonic() - began:.2f} s")
