"""What a processor says to a service author who gets it wrong. What it does with events is in test_contract.py."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from kraftek.service import Context, EventProcessor, TooLarge
from kraftek.service.link import Link
from kraftek.service.processor import Incoming, NoEvent


@pytest.mark.parametrize("handler", [lambda: None, lambda context, payload, more: None])
def test_a_handler_takes_the_context_and_perhaps_the_payload(handler: Any) -> None:
    processor = EventProcessor("chat")
    with pytest.raises(TypeError, match="chat:message:send: expected a function of the context"):
        processor.on("message:send")(handler)


def test_a_coroutine_function_runs_in_no_thread() -> None:
    async def handler(context: Context) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="chat:message:send: expected a plain function for a thread"):
        EventProcessor("chat").on("message:send", thread=True)(handler)


def answers(handler: Any, **how: bool) -> list[Any]:
    """The payloads with which a request is answered."""
    processor = EventProcessor("chat")
    processor.on("a:b", **how)(handler)
    event = Incoming(event_type="chat:a:b", socket_id="g.1", id=1, reply_to="replies")
    commands = asyncio.run(processor.handle(event, cast("Link", None)))
    return [json.loads(cast("bytes", command.parts[-1]))["payload"] for command in commands if command.when == "always"]


def test_a_request_is_answered_by_whatever_a_handler_returns() -> None:
    async def coroutine(context: Context) -> None:
        pass

    assert answers(lambda context: None) == answers(coroutine) == [None]
    assert answers(lambda context: 0) == [0]
    assert answers(lambda context: context.reply(2)) == [2]
    assert answers(lambda context: context.answer_later()) == []
    assert answers(lambda context: None, answers=False) == []
    assert answers(lambda context: 1, answers=False) == [1]


@pytest.mark.parametrize("event", ["send", "a:b:c:d", ":send", "a::c", "message:to send", f"message:{'x' * 128}"])
def test_an_event_has_a_whole_name_or_one_within_the_service(event: str) -> None:
    with pytest.raises(ValueError, match="expected module:name or service:module:name"):
        EventProcessor("chat").on(event)


@pytest.mark.parametrize("word", ["eventType", "payload"])
def test_what_is_not_utf8_is_no_event(word: str) -> None:
    words = {"eventType": "chat:a:b", "userId": "ann", "socketId": "g.1", "timestamp": 1, "payload": "x"}
    body = json.dumps({**words, word: "?"}).encode().replace(b"?", b"\xff")
    with pytest.raises(NoEvent):
        EventProcessor("chat").open(body)


def test_half_a_character_is_replaced_in_payloads_and_refused_in_names() -> None:
    processor = EventProcessor("chat")

    async def handle(context: Context, payload: Any) -> Any:
        assert payload == {"text": "\ufffd", "n": 1.5}
        for call in (
            lambda: context.broadcast_to_room("a:b:c", 1, "\ud83d"),
            lambda: context.broadcast_to_user("a:b:c", 1, "\ud83d"),
            lambda: context.broadcast_to_sockets("\ud83d", 1, ("g.1",)),
            lambda: context.emit("notes:a:b", 1, "\ud83d"),
            lambda: context.emit("notes:a:\ud83d", 1),
        ):
            with pytest.raises(ValueError, match=r"surrogates not allowed|expected service:module:name"):
                call()
        context.broadcast_to_room("a:b:c", "\ud83d", "r1")
        context.emit("notes:a:b", "\ud83d")
        return {"text": "\ud83d"}

    processor.on("a:b")(handle)
    words = {"eventType": "chat:a:b", "userId": "ann", "socketId": "g.1", "id": 1, "replyTo": "replies"}
    event = processor.open(json.dumps({**words, "payload": {"text": "\ude00", "n": 1.50}}).encode())
    commands = asyncio.run(processor.handle(event, cast("Link", None)))
    bodies = [part for command in commands for part in command.parts if isinstance(part, bytes)]
    said = [json.loads(body)["payload"] for body in bodies]
    assert said == ["\ufffd", "\ufffd", {"text": "\ufffd"}, {"text": "\ufffd"}]
    with pytest.raises(NoEvent, match="half of a surrogate pair"):
        processor.open(json.dumps({**words, "roomId": "\ud83d"}).encode())


def test_an_event_has_one_handler() -> None:
    processor = EventProcessor("chat")
    processor.on("message:send")(lambda context, payload: None)
    with pytest.raises(ValueError, match="each once"):
        processor.on("chat:message:send")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": ""}, "name"),
        ({"name": "chat:room"}, "name"),
        ({"channel": "events chat"}, "channel"),
        ({"transport": "streams"}, "transport"),
        ({"transport": "stream", "partitions": -1}, "partitions"),
        ({"partitions": 4}, "only a stream has partitions"),
        ({"concurrency": 0}, "concurrency"),
        ({"attempts": 0}, "attempts"),
        ({"claim_after": 0}, "claim_after"),
        ({"grace": -1}, "grace"),
        ({"message_bytes": 4095}, "message_bytes"),
        ({"prefix": "a b"}, "prefix"),
        ({"broadcast": ""}, "broadcast"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EventProcessor(**{"name": "chat", **settings})


def test_a_message_that_is_too_large_is_not_sent() -> None:
    processor = EventProcessor("chat", message_bytes=5000)
    link: Any = None
    context = Context(processor, Incoming(event_type="chat:a:b", socket_id="g.1", id=1, reply_to="replies"), link)
    large = "x" * 5000
    calls: list[Any] = [
        lambda payload: context.broadcast_to_room("a:b:c", payload, "r1"),
        lambda payload: context.broadcast_to_user("a:b:c", payload, "ann"),
        lambda payload: context.broadcast_to_sockets("a:b:c", payload, ("g.1",)),
        lambda payload: context.emit("a:b:c", payload),
    ]
    for call in calls:
        with pytest.raises(TooLarge, match=r"^a:b:c: a message of 5\d\d\d bytes; at most 5000 may be sent$"):
            call(large)
    assert context.commands == []
    for call in calls:
        call(large[:4000])
    assert len(context.commands) == len(calls)

    processor.on("a:b")(lambda context, payload: large)
    event = Incoming(event_type="chat:a:b", socket_id="g.1", id=1, reply_to="replies")
    with pytest.raises(TooLarge, match="chat:a:b"):
        asyncio.run(processor.handle(event, link))
    assert len(processor.failure(event)) == 2


def test_a_mebibyte_may_be_sent_unless_it_is_said_otherwise() -> None:
    context = in_no_room()
    context.broadcast_to_user("a:b:c", "x" * 1_048_000, "ann")
    with pytest.raises(TooLarge):
        context.broadcast_to_user("a:b:c", "x" * 1_048_576, "ann")


def in_no_room() -> Context:
    """What a handler gets of an event from a socket that is in no room."""
    link: Any = None
    return Context(EventProcessor("chat"), Incoming(event_type="chat:a:b", socket_id="g.1"), link)


def test_who_is_in_no_room_has_to_name_one() -> None:
    context = in_no_room()
    with pytest.raises(ValueError, match="expected a room_id"):
        context.broadcast_to_room("chat:a:c", 1)
    with pytest.raises(ValueError, match="expected a room_id"):
        context.who_is_in()
    assert context.commands == []


def test_a_single_id_may_stand_for_a_list() -> None:
    context = in_no_room()
    context.broadcast_to_room("chat:a:c", 1, room_id="r", exclude="g.1")
    context.broadcast_to_users("chat:a:c", 1, "bob")
    context.broadcast_to_sockets("chat:a:c", 1, "g.1")
    told = [json.loads(body) for command in context.commands if isinstance(body := command.parts[2], bytes)]
    assert [words.get("excludeSocketIds") for words in told] == [["g.1"], None, None]
    assert [words.get("userIds") for words in told] == [None, ["bob"], None]
    assert [words.get("recipients") for words in told] == [None, None, ["g.1"]]


def test_an_event_to_another_service_has_a_whole_name() -> None:
    context = in_no_room()
    for sends in (context.emit, context.request):
        with pytest.raises(ValueError, match="expected service:module:name"):
            sends("message:send")
    assert context.commands == []
