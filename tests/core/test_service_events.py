"""Events of services for services: what becomes of each, and what its sender is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.logger import capturedLogs
from txredisapi import ResponseError

from kraftek.contract.interfaces import Undelivered
from kraftek.contract.json_text import JsonBounds
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Registration
from kraftek.core.dispatch import APPEND, Dispatch
from kraftek.core.registry import EventRouter, ServiceRegistry
from kraftek.core.service_events import ATTEMPTS, RETRIED, RETRIES, ServiceEvents
from tests.support.fakes import FakeBus, FakeReading

REPLIES = "k:events:reply:chat"
INVALID_NAME = "Event type is not valid or service is not registered"


class Desk:
    """An intake, and the Redis around it in the test's hands."""

    def __init__(self) -> None:
        self.bus = FakeBus(prefix="k:")
        self.registry = ServiceRegistry(
            [
                Registration(name="chat", channel="events:chat"),
                Registration(name="notes", channel="events:notes"),
                Registration(name="wiki", channel="events:wiki", reply=True),
                Registration(name="log", channel="events:log", transport="stream", max_length=5),
            ]
        )
        self.counters = Counters()
        dispatch = Dispatch(self.registry, self.bus)
        router = EventRouter(self.registry)
        self.service_events = ServiceEvents(
            "gw", self.registry, router, dispatch, self.bus, self.counters, JsonBounds(256), now=lambda: 12.345
        )
        self.service_events.begin()

    @property
    def reading(self) -> FakeReading:
        (reading,) = self.bus.readings
        return reading

    def send(self, **words: Any) -> None:
        """``chat`` appends this, and the gateway is given it."""
        self.reading.hand("1-0", msgspec.json.encode({"source": "chat", **words}))

    def published(self) -> list[tuple[str, Any]]:
        """What was published since the last look, and not answered."""
        return [(message.channel, message.event) for message in self.bus.published]

    def told(self) -> Any:
        """The one answer to the sender, and nothing else."""
        ((channel, answer),) = self.published()
        assert channel == "events:reply:chat"
        self.bus.published.clear()
        return answer

    def buried(self) -> dict[str, Any]:
        """What was kept of the one event that could not be delivered, which is done by that."""
        (call,) = self.bus.calls
        self.bus.calls.clear()
        call.reply.callback(b"1-0")
        fields = call.args[4:]
        size = len(fields[1])  # type: ignore[arg-type]
        most = min(10_000, 64 * 1024 * 1024 // (size + 1))
        assert (call.command, call.keys, call.args[:4]) == (
            "XADD",
            ("events:gateway:dead",),
            ("MAXLEN", "~", most, "*"),
        )
        return dict(zip(map(str, fields[::2]), fields[1::2], strict=True))


def test_an_event_goes_to_its_service_and_is_done_when_that_has_it() -> None:
    desk = Desk()
    assert desk.reading.stream == "events:gateway"
    desk.send(eventType="notes:note:create", payload={"a": [1, 2.50]}, userId="ann", roomId="board", id=7,
              traceparent="00-1", replyTo=REPLIES)  # fmt: skip
    ((channel, event),) = desk.published()
    assert channel == "events:notes"
    assert event == {
        "eventType": "notes:note:create",
        "userId": "ann",
        "socketId": "",
        "roomId": "board",
        "timestamp": 12345,
        "gatewayId": "gw",
        "replyTo": "",  # it is the gateway that answers
        "payload": {"a": [1, 2.5]},
        "id": 7,
        "traceparent": "00-1",
        "source": "chat",
    }
    assert desk.reading.acked == []
    desk.bus.answer(2)
    assert desk.reading.acked == ["1-0"]
    assert desk.told() == {"type": "ack", "inReplyTo": 7, "payload": {"receivers": 2}}
    assert (desk.counters.intake, desk.counters.intake_refused) == (1, 0)


def test_as_little_as_it_takes() -> None:
    desk = Desk()
    desk.send(eventType="notes:note:create")
    ((_, event),) = desk.published()
    assert (event["userId"], event["socketId"], event["replyTo"], event["payload"]) == ("", "", "", None)
    assert event.keys().isdisjoint({"id", "roomId", "traceparent"})
    desk.bus.answer(1)
    assert desk.published() == []
    assert desk.reading.acked == ["1-0"]


def test_a_service_that_replies_answers_itself() -> None:
    desk = Desk()
    desk.send(eventType="wiki:page:read", id="a", replyTo=REPLIES)
    assert [event["replyTo"] for _, event in desk.published()] == [REPLIES]
    desk.bus.answer(1)
    assert desk.published() == []
    assert desk.reading.acked == ["1-0"]


def test_errors_about_an_event_without_an_id_may_be_sent() -> None:
    desk = Desk()
    desk.send(eventType="notes:note:create", replyTo=REPLIES)
    assert [event["replyTo"] for _, event in desk.published()] == [REPLIES]


def test_a_service_on_a_stream() -> None:
    desk = Desk()
    desk.send(eventType="log:line:add", id=1, replyTo=REPLIES)
    (call,) = desk.bus.calls
    assert (call.command, call.keys) == (APPEND, ("events:log",))
    call.reply.callback(1)
    assert desk.told() == {"type": "ack", "inReplyTo": 1, "payload": {"receivers": 1}}
    assert desk.reading.acked == ["1-0"]


def test_a_stream_that_is_full() -> None:
    desk = Desk()
    desk.send(eventType="log:line:add", id=1, replyTo=REPLIES)
    desk.bus.calls.pop().reply.callback(Undelivered.FULL)
    answer = desk.told()
    assert (answer["type"], answer["inReplyTo"]) == ("error", 1)
    assert answer["payload"] == {
        "code": "SERVICE_UNAVAILABLE",
        "message": "too many events wait for this service",
        "eventType": "log:line:add",
        "retryAfter": 1.0,
    }
    assert desk.counters.streams_full == 1
    assert desk.reading.acked == ["1-0"]
    assert desk.bus.calls == []


@pytest.mark.parametrize("request_id", [{}, {"id": 0}])
def test_nobody_listens(request_id: dict[str, int]) -> None:
    desk = Desk()
    desk.send(eventType="wiki:page:read", replyTo=REPLIES, **request_id)
    desk.bus.answer(0)
    assert desk.told() == {
        "type": "error",
        "payload": {
            "code": "SERVICE_UNAVAILABLE",
            "message": "service wiki has no subscriber at present",
            "eventType": "wiki:page:read",
        },
        **({"inReplyTo": 0} if request_id else {}),
    }
    assert desk.reading.acked == ["1-0"]
    assert desk.bus.calls == []
    assert desk.counters.published_to_nobody == 1


# What is wrong is answered, counted, and kept.


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ({"eventType": "notes"}, "INVALID_EVENT", INVALID_NAME),
        ({"eventType": "nobody:note:create"}, "INVALID_EVENT", INVALID_NAME),
        ({"eventType": "gateway:client:left"}, "INVALID_EVENT", INVALID_NAME),
        ({"eventType": "notes:a:b", "source": "gone"}, "ACCESS_DENIED", "the source is not a registered service"),
        ({"eventType": "notes:a:b", "source": None}, "INVALID_MESSAGE", "Expected `str`, got `null` - at `$.source`"),
        ({"eventType": "a:b:c", "roomId": 1}, "INVALID_MESSAGE", "Expected `str | null`, got `int` - at `$.roomId`"),
        ({}, "INVALID_MESSAGE", "Object missing required field `eventType`"),
    ],
)
def test_wrong_ones(words: dict[str, Any], code: str, message: str) -> None:
    desk = Desk()
    whole = {"source": "chat", "id": "q", "replyTo": REPLIES, **words}
    desk.send(**whole)
    assert desk.told() == {
        "type": "error",
        "inReplyTo": "q",
        "payload": {"code": code, "message": message, "eventType": words.get("eventType", "")},
    }
    assert desk.buried() == {"event": msgspec.json.encode(whole), "reason": message, "id": "1-0"}
    assert desk.reading.acked == ["1-0"]
    assert desk.counters.intake_refused == 1


@pytest.mark.parametrize(
    ("event", "answered"),
    [
        (b"", None),
        (b"not JSON", None),
        (b"[1]", None),
        (b'{"replyTo": 5}', None),
        (b'{"replyTo": ""}', None),
        (b'{"replyTo": "another:prefix"}', None),
        (b"[" * 100_000, None),
        (b'{"source": "chat", "eventType": "notes:a:b", "payload": "\xff", "replyTo": "k:events:reply:chat"}', {}),
        (b'{"source": "chat", "eventType": "\xff", "id": 5, "replyTo": "k:events:reply:chat"}', {"inReplyTo": 5}),
        (b'{"source": "chat", "eventType": "notes:a:b", "replyTo": "\xff"}', None),
        (b'{"\xff": 1, "replyTo": "k:events:reply:chat"}', None),
        (b'{"id": [], "replyTo": "k:events:reply:chat", "eventType": "x"}', {}),
        (b'{"id": 5, "replyTo": "k:events:reply:chat", "eventType": 5}', {"inReplyTo": 5}),
        (b'{"id": %b, "replyTo": "k:events:reply:chat", "eventType": "notes:a:b"}' % (65 * b"9"), {}),
    ],
)
def test_whatever_it_is_it_is_kept_and_answered_where_possible(event: bytes, answered: dict[str, int] | None) -> None:
    desk = Desk()
    desk.reading.hand("1-0", event)
    if answered is None:
        assert desk.published() == []
    else:
        answer = desk.told()
        assert answer["payload"]["code"] == "INVALID_MESSAGE"
        assert {key: value for key, value in answer.items() if key == "inReplyTo"} == answered
    assert desk.buried()["event"] == event
    assert desk.reading.acked == ["1-0"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (rb'"eventType": "notes:a:b", "roomId": "\ud83d"', "half of a surrogate pair outside of the payload"),
        (b'"eventType": "notes:a:b", "payload": ' + b"[" * 257 + b"]" * 257, "more than 256 levels"),
        (b'"eventType": "notes:a:b", "payload": ' + b"1" * 1_001, "more than 1000 digits"),
    ],
)
def test_what_no_service_could_take_is_refused(event: bytes, message: str) -> None:
    desk = Desk()
    desk.reading.hand("1-0", b'{"source": "chat", "id": 3, "replyTo": "%b", %b}' % (REPLIES.encode(), event))
    told = desk.told()
    assert (told["inReplyTo"], told["payload"]["code"]) == (3, "INVALID_MESSAGE")
    assert message in told["payload"]["message"]


def test_half_a_character_is_replaced_in_a_payload() -> None:
    desk = Desk()
    desk.reading.hand("1-0", rb'{"source": "chat", "eventType": "notes:a:b", "payload": ["\ud83d", 1.50]}')
    ((_, event),) = desk.published()
    assert event["payload"] == ["\ufffd", 1.5]


def test_what_gateways_die_of_is_kept_and_not_tried_again() -> None:
    desk = Desk()
    event = b'{"source": "chat", "eventType": "notes:a:b", "id": 3, "replyTo": "k:events:reply:chat"}'
    desk.reading.hand("1-0", event, ATTEMPTS)
    assert len(desk.published()) == 1
    desk.bus.answer(1)
    assert desk.told()["type"] == "ack"
    desk.reading.hand("2-0", event, ATTEMPTS + 1)
    reason = "delivered to 5 gateways, none of which finished it"
    assert desk.told() == {
        "type": "error",
        "inReplyTo": 3,
        "payload": {"code": "INTERNAL", "message": reason, "eventType": "notes:a:b"},
    }
    assert desk.buried() == {"event": event, "reason": reason, "id": "2-0"}
    assert desk.reading.acked == ["1-0", "2-0"]
    assert (desk.counters.intake, desk.counters.intake_refused) == (1, 1)


def test_what_cannot_be_kept_is_logged_until_it_can() -> None:
    desk = Desk()
    with capturedLogs() as logged:
        for error in (ResponseError("WRONGTYPE"), ResponseError("WRONGTYPE"), None, ResponseError("WRONGTYPE")):
            desk.send()
            reply = desk.bus.calls.pop().reply
            reply.callback(b"1-0") if error is None else reply.errback(error)
    assert len(logged) == 2
    assert desk.reading.acked == ["1-0"] * 4


# What Redis refuses is tried again, for a while.


def refused(desk: Desk) -> None:
    """Redis refuses whatever was published since the last look."""
    for _ in tuple(desk.bus.published):
        desk.bus.answer(Undelivered.REFUSED)


def test_what_redis_refuses_may_go_well_later() -> None:
    desk = Desk()
    desk.send(eventType="notes:a:b", id=1, replyTo=REPLIES)
    for _ in range(RETRIES):
        refused(desk)
        assert desk.published() == []
        desk.service_events.sweep()
    desk.bus.answer(1)
    assert desk.told()["type"] == "ack"
    assert desk.reading.acked == ["1-0"]
    assert desk.bus.calls == []
    assert desk.counters.publishes_refused == 0


def test_what_redis_refuses_for_good_is_told_and_kept() -> None:
    desk = Desk()
    desk.send(eventType="notes:a:b", id=1, replyTo=REPLIES)
    for _ in range(RETRIES):
        refused(desk)
        desk.service_events.sweep()
    assert desk.reading.acked == []
    refused(desk)
    assert desk.told() == {
        "type": "error",
        "inReplyTo": 1,
        "payload": {
            "code": "SERVICE_UNAVAILABLE",
            "message": "Redis refused the event",
            "eventType": "notes:a:b",
        },
    }
    assert desk.buried()["reason"] == "Redis refused it; the gateway's log says why"
    assert desk.reading.acked == ["1-0"]
    assert desk.counters.publishes_refused == 1
    desk.service_events.sweep()
    assert desk.published() == []


def test_what_redis_refuses_leaves_room_for_others() -> None:
    desk = Desk()
    event = b'{"source": "chat", "eventType": "notes:a:b"}'
    ids = [f"{number}-0" for number in range(RETRIED + 2)]
    for entry_id in ids:
        desk.reading.hand(entry_id, event)
    refused(desk)
    assert desk.reading.acked == []
    for call in desk.bus.calls:
        call.reply.callback(b"1-0")
    assert desk.reading.acked == ids[RETRIED:]
    desk.service_events.sweep()
    assert len(desk.published()) == RETRIED
    for _ in range(RETRIED):
        desk.bus.answer(1)
    desk.send(eventType="notes:a:b")
    refused(desk)
    desk.service_events.sweep()
    assert len(desk.published()) == 1
    assert desk.reading.acked == [*ids[RETRIED:], *ids[:RETRIED]]


# Redis comes and goes.


def test_what_may_not_have_arrived_is_sent_again_when_redis_is_back() -> None:
    desk = Desk()
    desk.send(eventType="notes:a:b", id=1, replyTo=REPLIES)
    desk.bus.down()
    desk.send(eventType="notes:c:d")
    desk.service_events.sweep()
    assert desk.published() == []
    desk.bus.up()
    desk.service_events.sweep()
    desk.service_events.sweep()
    assert [event["eventType"] for _, event in desk.published()] == ["notes:a:b", "notes:c:d"]
    assert desk.reading.acked == []
    desk.bus.answer(1)
    desk.bus.answer(1)
    assert desk.reading.acked == ["1-0", "1-0"]
    assert desk.told()["type"] == "ack"


def test_what_cannot_be_kept_at_present_is_kept_later() -> None:
    desk = Desk()
    desk.send(eventType="notes", id=1, replyTo=REPLIES)
    assert desk.told()["type"] == "error"
    desk.bus.down()
    desk.bus.up()
    assert desk.reading.acked == []
    desk.service_events.sweep()
    assert desk.published() == []
    assert desk.buried()["id"] == "1-0"
    assert desk.reading.acked == ["1-0"]


def test_an_answer_that_redis_cannot_take_ends_nothing() -> None:
    desk = Desk()
    desk.bus.down()
    desk.send(eventType="notes", id=1, replyTo=REPLIES)
    assert desk.counters.publishes_lost == 1
    desk.bus.up()
    desk.service_events.sweep()
    assert desk.buried()["id"] == "1-0"
    assert desk.reading.acked == ["1-0"]


def test_the_end() -> None:
    desk = Desk()
    desk.service_events.end()
    assert desk.reading.ended
    desk.service_events.begin()
    assert not desk.reading.ended
    bus = FakeBus()
    registry = ServiceRegistry()
    never = ServiceEvents(
        "gw", registry, EventRouter(registry), Dispatch(registry, bus), bus, Counters(), JsonBounds(256)
    )
    assert never.end().called
