"""Events that services append to the gateway's stream: each ends once, as its service's or with a dead letter."""

from __future__ import annotations

from typing import Any

from kraftek.contract.interfaces import Undelivered
from kraftek.contract.json_text import JsonBounds
from kraftek.contract.messages import ID_LENGTH
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits, Registration
from kraftek.core.dispatch import Dispatch
from kraftek.core.registry import EventRouter, ServiceRegistry
from kraftek.core.service_events import RETRIES, ServiceEvents
from tests.fuzz.material import NOT_JSON, depth, digits, json_in
from tests.fuzz.watch import Target
from tests.support.fakes import FakeBus

__all__ = ["TARGET"]

_SERVICES = (
    Registration(name="chat", channel="events:chat"),
    Registration(name="wiki", channel="events:wiki", reply=True),
    Registration(name="log", channel="events:log", transport="stream", max_length=5),
)
_PREFIX = "k:"
_DEPTH = Limits().json_depth
_RECEIPTS = (1, 0, Undelivered.LOST, Undelivered.REFUSED, Undelivered.FULL)


class _Desk:
    """The reader of that stream, on a Redis in the target's hands."""

    def __init__(self, receipt: int) -> None:
        self.bus = FakeBus(prefix=_PREFIX)
        registry = ServiceRegistry(_SERVICES)
        self.receipt = receipt
        self.sent: list[bytes] = []
        self.answers: list[Any] = []
        self.buried: list[Any] = []
        self.events = ServiceEvents(
            "gw",
            registry,
            EventRouter(registry),
            Dispatch(registry, self.bus),
            self.bus,
            Counters(),
            JsonBounds(_DEPTH),
            now=lambda: 12.345,
        )
        self.events.begin()
        (self.reading,) = self.bus.readings

    def settle(self) -> None:
        """Redis answers all that was sent."""
        while self.bus.published or self.bus.calls:
            if self.bus.published:
                message = self.bus.published.pop(0)
                if message.channel in {"events:chat", "events:wiki"}:
                    self.sent.append(message.body)
                    message.receipt(self.receipt)
                else:
                    self.answers.append(json_in(message.body))
                    message.receipt(1)
            else:
                call = self.bus.calls.pop(0)
                if call.command == "XADD":
                    fields = call.args[4:]
                    self.buried.append(dict(zip(map(str, fields[::2]), fields[1::2], strict=True)))
                    call.reply.callback(b"1-0")
                else:
                    self.sent.append(next(arg for arg in call.args if isinstance(arg, bytes) and arg.startswith(b"{")))
                    call.reply.callback(self.receipt)


def _check_sent(event: bytes, value: Any) -> None:
    """What a service gets of an event that was ``value``."""
    envelope = json_in(event)
    if envelope is NOT_JSON:
        assert value is NOT_JSON  # an odd payload goes through as it was
        return
    assert depth(envelope["payload"]) <= _DEPTH
    assert digits(envelope["payload"]) <= 1000
    assert (envelope["gatewayId"], envelope["socketId"], envelope["timestamp"]) == ("gw", "", 12345)
    if value is not NOT_JSON:
        for name in ("eventType", "source", "payload", "id", "roomId", "traceparent"):
            assert envelope.get(name) == value.get(name), name
        # Where the gateway acknowledges a request, the service is not to answer it.
        answers = value.get("id") is None or value["eventType"].startswith("wiki:")
        assert envelope["replyTo"] == ((answers and value.get("replyTo")) or "")
        assert envelope["userId"] == value.get("userId", "")


def _run(data: bytes) -> None:
    receipt, event = _RECEIPTS[sum(data[:1]) % len(_RECEIPTS)], data[1:]
    value = NOT_JSON if b"\\ud" in event.lower() else json_in(event)
    desk = _Desk(receipt)
    desk.reading.hand("1-0", event)
    for _ in range(RETRIES + 2):
        desk.settle()
        desk.events.sweep()
    for sent in desk.sent:
        _check_sent(sent, value)
    if receipt != Undelivered.LOST or desk.buried:
        assert desk.reading.acked == ["1-0"]
    else:
        assert not desk.reading.acked
        assert desk.sent  # and again and again, for as long as Redis is lost
    assert len(desk.buried) <= 1
    for letter in desk.buried:
        assert letter["id"] == "1-0"
        assert 0 < len(letter["reason"]) <= 1000
    assert len(desk.answers) <= 1
    for answer in desk.answers:
        assert answer["type"] in {"ack", "error"}
        assert len(str(answer.get("inReplyTo", ""))) <= ID_LENGTH
        assert len(str(answer["payload"].get("message", ""))) < 300


_SEEDS = [
    bytes((receipt,)) + text
    for text in (
        (
            b'{"source":"chat","eventType":"wiki:page:read","payload":{"a":[1,2.5]},"id":7,"replyTo":"k:r","userId":"ann",'
            b'"roomId":"red","traceparent":"00-1"}'
        ),
        b'{"source":"wiki","eventType":"chat:note:add","id":"q","replyTo":"k:r"}',
        b'{"source":"wiki","eventType":"log:line:add","replyTo":"other:r","id":1}',
    )
    for receipt in range(len(_RECEIPTS))
]
_SEEDS += [
    b"\0" + text
    for text in (
        b'{"source":"nobody","eventType":"chat:note:add","id":5,"replyTo":"k:r"}',
        b'{"source":"chat","eventType":"chat","id":"x","replyTo":"k:r"}',
        b'{"source":"chat","eventType":"chat:a:\\ud83d","id":"x","replyTo":"k:r"}',
        b'{"source":"chat","eventType":"chat:a:b","payload":"\\ud83d"}',
        b'{"source":"chat","eventType":"chat:a:b","payload":' + 300 * b"[" + 300 * b"]" + b"}",
        b'{"source":"chat","eventType":"chat:a:b","payload":' + 1001 * b"1" + b',"id":2,"replyTo":"k:r"}',
        b'{"source":"chat","eventType":"chat:a:b","id":' + 65 * b"9" + b',"replyTo":"k:r"}',
        b'{"source":"chat","eventType":"chat:a:b","id":[],"replyTo":"k:r"}',
        b'{"source":"chat","eventType":5,"replyTo":"k:r"}',
        b'{"source":"chat","eventType":"chat:a:b","payload":"\xff"}',
        b'{"source":"chat","eventType":"chat:a:b","roomId":""}',
        b"[",
        b"",
    )
]

TARGET = Target("service_events", _run, _SEEDS, calls=(10_000, 200), memory=(1_000_000, 1_000))
