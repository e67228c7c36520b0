"""Events for services in the gateway's own process: claimed once, in order, and never lost between two states."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from kraftek.contract.interfaces import IBusListener
from kraftek.contract.settings import Registration
from kraftek.core.local_dispatch import Listeners, LocalDispatch
from tests.support.fakes import Call
from tests.support.world import CHAT, NOTES, Client, House

LOGS = Registration(name="logs", channel="events:logs")


class Process:
    """A gateway with the services ``chat``, which replies, and ``logs``, which does not. ``taken``: their events."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.listeners: Listeners = {"events:chat": self.take, "events:logs": self.take}
        self.house = House(services=(NOTES, CHAT, LOGS), dispatch=self.dispatch)
        self.bus = self.house.bus

    def dispatch(self, house: House) -> LocalDispatch:
        here = house.clock, house.accounts, self.listeners
        return LocalDispatch(house.registry, house.bus, *here, most_bytes=10_000)

    def take(self, body: bytes) -> None:
        self.taken.append(json.loads(body))

    def payloads(self) -> list[Any]:
        """Those of the events that were handed over."""
        self.house.clock.advance(0)
        return [event["payload"] for event in self.taken]

    def claims(self) -> list[Call]:
        """Those that Redis has not answered."""
        return [call for call in self.bus.calls if getattr(call.command, "source", "").count("'NX'")]

    def answer(self, result: int | bytes) -> None:
        """Redis answers the oldest claim."""
        claim = self.claims()[0]
        self.bus.calls.remove(claim)
        claim.reply.callback(result)


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def ada(process: Process) -> Client:
    client = process.house.admit("ada", "r")
    process.bus.calls.clear()
    return client


def ask(client: Client, id: int, payload: Any = 1, service: str = "chat", **more: Any) -> None:
    client.send({"type": f"{service}:message:send", "payload": payload, "id": id, **more})


def emit(client: Client, payload: Any, service: str = "chat", **more: Any) -> None:
    client.send({"type": f"{service}:message:send", "payload": payload, **more})


def errors(client: Client) -> list[tuple[str, int | None]]:
    told = client.link.read()
    return [(each["payload"]["code"], each.get("id")) for each in told if each["type"] == "error"]


def test_it_listens_to_the_bus(process: Process) -> None:
    verifyObject(IBusListener, process.house.core.dispatch)


def test_an_event_does_not_come_to_redis(process: Process, ada: Client) -> None:
    emit(ada, {"a": 1})
    assert process.taken == []  # not within the call, or an answer could come before its request waits
    assert process.payloads() == [{"a": 1}]
    (event,) = process.taken
    assert (event["eventType"], event["userId"], event["roomId"], event["socketId"], event["replyTo"]) == (
        "chat:message:send",
        "ada",
        "r",
        ada.id,
        "events:reply:gw",
    )
    assert (process.bus.published, process.bus.calls, errors(ada)) == ([], [], [])
    assert process.house.counters.published == 1


def test_a_request_is_claimed_first(process: Process, ada: Client) -> None:
    ask(ada, 1, "x" * 300)
    (claim,) = process.claims()
    assert claim.keys[0].startswith("request:")
    assert claim.args == (ada.id, b"")  # without the event
    assert process.payloads() == []
    assert process.house.accounts.in_flight == 302 + 1024
    process.answer(1)
    assert process.payloads() == ["x" * 300]
    assert process.house.accounts.in_flight == 0
    answer = {"type": "chat:message:send", "payload": "done", "recipients": [ada.id], "inReplyTo": 1}
    process.house.broadcast(**answer)
    assert ada.link.read() == [{"type": "chat:message:send", "payload": "done", "id": 1}]
    process.house.clock.advance(1)
    assert [claim.keys[0]] == [key for call in process.bus.calls for key in call.keys]  # there it is stored


def test_one_that_was_sent_before_is_not_handled(process: Process, ada: Client) -> None:
    ask(ada, 1)
    ask(ada, 2)
    process.answer(b"?other.socket")
    process.answer(b'{"type":"r","payload":"before"}')
    assert process.payloads() == []
    assert ada.link.read() == [{"type": "r", "payload": "before", "id": 2}]
    assert process.house.accounts.in_flight == 0


def test_events_of_a_room_stay_in_order(process: Process, ada: Client) -> None:
    bob = process.house.admit("bob", "other")
    process.bus.calls.clear()
    ask(ada, 1, "first")
    emit(ada, "second")
    ask(ada, 2, "third")
    emit(bob, "elsewhere")
    assert process.payloads() == ["elsewhere"]
    claim = process.claims()[1]
    process.bus.calls.remove(claim)
    claim.reply.callback(1)
    assert process.payloads() == ["elsewhere"]
    process.answer(1)
    assert process.payloads() == ["elsewhere", "first", "second", "third"]


def test_one_of_the_room_that_was_sent_before_holds_up_nobody(process: Process, ada: Client) -> None:
    ask(ada, 1, "first")
    emit(ada, "second")
    process.answer(b"?other.socket")
    assert process.payloads() == ["second"]


@pytest.mark.parametrize("stands", [True, False])
def test_a_claim_that_was_lost_is_made_again(process: Process, ada: Client, stands: bool) -> None:
    ask(ada, 1, "first")
    emit(ada, "second")
    process.bus.down()
    assert (process.payloads(), ada.link.read()) == ([], [])
    process.bus.up()
    process.answer(f"?{ada.id}".encode() if stands else 1)
    assert process.payloads() == ["first", "second"]


def test_a_claim_that_was_lost_may_be_another_ones(process: Process, ada: Client) -> None:
    ask(ada, 1)
    process.bus.down()
    process.bus.up()
    process.answer(b"?other.socket")
    assert process.payloads() == []


def test_a_record_of_its_own_that_was_not_lost_is_an_earlier_one(process: Process, ada: Client) -> None:
    ask(ada, 1)
    process.answer(f"?{ada.id}".encode())
    assert process.payloads() == []


def test_what_has_timed_out_is_not_handled_any_more(process: Process, ada: Client) -> None:
    ask(ada, 1, "first")
    emit(ada, "second")
    process.bus.down()
    process.house.pass_time(CHAT.timeout + 1)
    assert errors(ada) == [("TIMEOUT", 1)]
    process.house.core.dispatch.sweep()
    assert process.payloads() == ["second"]
    process.bus.up()
    assert (process.claims(), process.payloads(), process.house.accounts.in_flight) == ([], ["second"], 0)


def test_one_that_times_out_while_redis_thinks(process: Process, ada: Client) -> None:
    ask(ada, 1)
    process.house.pass_time(CHAT.timeout + 1)
    process.answer(1)
    assert (process.payloads(), errors(ada)) == ([], [("TIMEOUT", 1)])
    ask(ada, 2)
    process.house.pass_time(CHAT.timeout + 1)
    process.bus.down()
    process.house.core.dispatch.sweep()
    assert (process.payloads(), process.house.accounts.in_flight) == ([], 0)


def test_redis_that_cannot_be_asked_again_yet(process: Process, ada: Client) -> None:
    ask(ada, 1)
    process.bus.down()
    process.house.core.dispatch.sweep()
    assert process.payloads() == []
    process.bus.up()
    process.answer(1)
    assert process.payloads() == [1]


def test_what_waits_is_bounded(process: Process, ada: Client) -> None:
    ask(ada, 1, "x" * 1000)
    for _ in range(8):
        emit(ada, "")
    emit(ada, "second")
    ask(ada, 2)
    assert errors(ada) == [("SERVICE_UNAVAILABLE", None)]
    process.house.requests.sweep()  # it may have been sent before: that is looked up first, as ever
    process.bus.calls.pop().reply.callback([None, None])
    assert errors(ada) == [("SERVICE_UNAVAILABLE", 2)]
    process.answer(1)
    assert process.payloads() == ["x" * 1000, *[""] * 8]
    emit(ada, "third")
    assert process.payloads()[9:] == ["third"]


def test_a_service_that_does_not_run(process: Process, ada: Client) -> None:
    process.listeners["events:chat"] = None
    ask(ada, 1)
    emit(ada, "x")
    assert process.claims() == []
    process.house.clock.advance(0)
    assert sorted(errors(ada), key=str) == [("SERVICE_UNAVAILABLE", 1), ("SERVICE_UNAVAILABLE", None)]
    assert process.house.counters.published_to_nobody == 2


def test_a_service_that_ends_meanwhile_leaves_no_claim(process: Process, ada: Client) -> None:
    ask(ada, 1)
    (claim,) = process.claims()
    process.answer(1)
    process.listeners["events:chat"] = None
    process.house.clock.advance(0)
    assert errors(ada) == [("SERVICE_UNAVAILABLE", 1)]
    assert [(call.command, call.keys) for call in process.bus.calls] == [("DEL", (claim.keys[0],))]


def test_a_service_that_does_not_reply(process: Process, ada: Client) -> None:
    ask(ada, 1, service="logs")
    (claim,) = process.claims()
    process.answer(1)
    assert process.payloads() == [1]
    ack = {"type": "ack", "payload": {"receivers": 1}}
    assert ada.link.read() == [{**ack, "id": 1}]
    (kept,) = process.bus.calls
    assert isinstance(kept.args[0], bytes)
    assert (kept.command, kept.keys, json.loads(kept.args[0])) == ("SET", (claim.keys[0],), ack)


def test_other_services_are_reached_as_ever(process: Process, ada: Client) -> None:
    emit(ada, "x", service="notes")
    assert [each.channel for each in process.bus.published] == ["events:notes"]
    ask(ada, 1, service="notes")
    (sent,) = process.bus.calls
    assert sent.keys[0] == "events:notes"
    assert process.payloads() == []


def test_one_event_that_fails_does_not_take_others_with_it(process: Process, ada: Client) -> None:
    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    process.listeners["events:logs"] = fail
    emit(ada, "x", service="logs")
    emit(ada, "y")
    with capturedLogs() as events:
        assert process.payloads() == ["y"]
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError]
