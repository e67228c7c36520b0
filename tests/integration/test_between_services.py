"""Events of services for services, through gateway processes that come, are killed, and go."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.integration.test_processes import READY
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import Gateway, RedisServer, StartGateway

SERVICES = {
    "chat": "events:chat",
    "wiki": {"channel": "events:wiki", "reply": True},
    "log": {"channel": "events:log", "transport": "stream", "partitions": 2},
}
CONFIG = {"redis": {"prefix": "k:"}}
PATIENCE = 60.0
"""Seconds for what has no promise about time, on a busy machine."""


class Services:
    """``chat`` asks, and all three listen."""

    def __init__(self, server: RedisServer) -> None:
        self.redis: Any = server.client()
        self.channels: Any = self.redis.pubsub(ignore_subscribe_messages=True)
        self.channels.subscribe("k:replies:chat", "k:events:chat", "k:events:wiki")
        for _ in range(3):
            self.channels.get_message(timeout=5)
        self.heard: dict[str, list[Any]] = {"replies:chat": [], "events:chat": [], "events:wiki": []}

    def send(self, event: str, **words: Any) -> str:
        """``chat`` sends an event."""
        sent = {"source": "chat", "eventType": event, "replyTo": "k:replies:chat", **words}
        return str(self.redis.xadd("k:events:gateway", {"event": json.dumps(sent)}))

    def on(self, channel: str) -> list[Any]:
        """All that came on a channel. ``wiki`` answers each of its events."""
        while (message := self.channels.get_message()) is not None:
            event = json.loads(message["data"])
            where = message["channel"].removeprefix("k:")
            self.heard[where].append(event)
            if where == "events:wiki" and "id" in event:
                answer = {"type": event["eventType"], "inReplyTo": event["id"], "payload": event["payload"]}
                self.redis.publish(event["replyTo"], json.dumps(answer))
        return self.heard[channel]

    def until(self, channel: str, number: int) -> list[Any]:
        """All that came on a channel, as soon as it is so much."""
        return wait_until(
            lambda: heard if len(heard := self.on(channel)) >= number else [],
            lambda: f"{number} on {channel}, but {self.heard}",
            PATIENCE,
        )

    def settled(self) -> None:
        """Returns when nothing is left for the gateways to do."""
        wait_until(lambda: self.redis.xlen("k:events:gateway") == 0, "an empty stream", PATIENCE)
        assert self.redis.xpending("k:events:gateway", "gateways")["pending"] == 0

    def logged(self) -> list[Any]:
        """What stands in the streams of ``log``."""
        entries = [entry for number in range(2) for _, entry in self.redis.xrange(f"k:events:log:{number}")]
        return [json.loads(entry["event"]) for entry in entries]


def gateway_id(gateway: Gateway) -> str:
    return str(gateway.wait_log(READY)["id"])


def test_one_of_two_gateways_takes_each_event(redis_server: RedisServer, gateway: StartGateway) -> None:
    services = Services(redis_server)
    ids = {gateway_id(gateway(redis_server, services=SERVICES, config=CONFIG)) for _ in range(2)}
    number = 0
    while {event["gatewayId"] for event in services.on("events:wiki")} != ids:
        services.send("wiki:page:read", id=number, payload={"page": number}, userId="ann", roomId="board")
        number += 1
        assert number < 1000, "all went to one of them"
        services.until("events:wiki", number)
    for more in range(number, number + 300):
        services.send("wiki:page:read", id=more, payload={"page": more})
    number += 300

    replies = services.until("replies:chat", number)
    services.settled()
    events = services.on("events:wiki")
    assert sorted(event["id"] for event in events) == list(range(number))
    assert Counter(event["source"] for event in events) == {"chat": number}
    assert {event["socketId"] for event in events} == {""}
    assert (events[0]["userId"], events[0]["roomId"], events[-1]["userId"]) == ("ann", "board", "")
    answered = sorted((reply["inReplyTo"], reply["payload"]["page"]) for reply in replies)
    assert answered == [(n, n) for n in range(number)]

    # Without an answer of its own a service's event is acknowledged by the gateway, over channels and streams alike.
    services.send("chat:line:say", id="c", payload="hello")
    services.send("log:line:add", id="l", payload="hello", roomId="board")
    acks = services.until("replies:chat", number + 2)[number:]
    assert {ack["inReplyTo"]: (ack["type"], ack["payload"]) for ack in acks} == {
        "c": ("ack", {"receivers": 1}),
        "l": ("ack", {"receivers": 1}),
    }
    assert [event["payload"] for event in services.on("events:chat") + services.logged()] == ["hello", "hello"]
    services.settled()


def test_wrong_ones_are_answered_and_kept(redis_server: RedisServer, gateway: StartGateway) -> None:
    services = Services(redis_server)
    gateway(redis_server, services={**SERVICES, "deaf": "events:deaf"}, config=CONFIG)
    services.redis.xadd("k:events:gateway", {"event": "no JSON"})
    services.redis.xadd("k:events:gateway", {"something": "else"})
    services.send("wiki", id=1)
    services.send("nobody:page:read", id=2)
    services.send("wiki:page:read", id=3, source="nobody")
    services.send("wiki:page:read", id=4, roomId=["no", "text"])
    services.send("deaf:page:read", id=5)
    services.send("wiki:page:read", id=6, payload="good")
    replies = services.until("replies:chat", 6)
    services.settled()
    assert {reply["inReplyTo"]: reply["payload"].get("code") for reply in replies if reply["type"] == "error"} == {
        1: "INVALID_EVENT",
        2: "INVALID_EVENT",
        3: "ACCESS_DENIED",
        4: "INVALID_MESSAGE",
        5: "SERVICE_UNAVAILABLE",
    }
    assert [(reply["inReplyTo"], reply["payload"]) for reply in replies if reply["type"] != "error"] == [(6, "good")]
    dead = [entry for _, entry in services.redis.xrange("k:events:gateway:dead")]
    assert [entry["event"] for entry in dead[:2]] == ["no JSON", ""]
    assert [json.loads(entry["event"])["id"] for entry in dead[2:]] == [1, 2, 3, 4]
    assert all(entry["reason"] and entry["id"] for entry in dead)


def test_nothing_is_lost_when_the_gateway_that_read_it_is_killed(
    redis_server: RedisServer, gateway: StartGateway, stage: ExitStack
) -> None:
    services = Services(redis_server)
    dying, living = (gateway(redis_server, services=SERVICES, config=CONFIG) for _ in range(2))
    dead, alive = gateway_id(dying), gateway_id(living)

    def held() -> list[Any]:
        return list(services.redis.xpending_range("k:events:gateway", "gateways", "-", "+", 100, dead))

    # Redis gives it an entry while it cannot do anything.
    number = 0
    stage.callback(dying.process.send_signal, signal.SIGCONT)
    while not held():
        dying.process.send_signal(signal.SIGCONT)
        before = services.until("events:wiki", number) if number else []
        assert len(before) == number < 1000
        dying.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, dying.pid, os.WSTOPPED | os.WNOWAIT)
        for _ in range(2):
            services.send("wiki:page:read", id=number, payload=number)
            number += 1
    for _ in range(20):
        services.send("wiki:page:read", id=number, payload=number)
        number += 1
    (orphan, *_) = held()
    dying.kill()

    events = services.until("events:wiki", number)
    services.until("replies:chat", number)
    services.settled()
    assert sorted(event["id"] for event in events) == list(range(number))
    assert sorted(reply["inReplyTo"] for reply in services.on("replies:chat")) == list(range(number))
    assert events[-1]["gatewayId"] == alive
    assert orphan["consumer"] == dead


def test_events_wait_for_a_gateway(redis_server: RedisServer, gateway: StartGateway) -> None:
    services = Services(redis_server)
    for number in range(5):
        services.send("wiki:page:read", id=number, payload=number)
    first = gateway(redis_server, services=SERVICES, config=CONFIG)
    assert [event["id"] for event in services.until("events:wiki", 5)] == list(range(5))
    services.settled()
    first.terminate()
    services.send("wiki:page:read", id=5, payload=5)
    gateway(redis_server, services=SERVICES, config=CONFIG)
    assert services.until("events:wiki", 6)[-1]["id"] == 5
    services.settled()


def test_a_service_whose_stream_is_none_keeps_nobody_elses_events(
    redis_server: RedisServer, gateway: StartGateway
) -> None:
    services = Services(redis_server)
    gateway(redis_server, services=SERVICES, config=CONFIG)
    for number in range(2):
        services.redis.set(f"k:events:log:{number}", "no stream")
    for number in range(300):
        services.send("log:line:add", id=number, roomId=f"r{number}")
    services.send("wiki:page:read", id="page", payload="Start")
    answers = services.until("replies:chat", 301)
    services.settled()
    codes = Counter(answer["payload"]["code"] for answer in answers if answer["type"] == "error")
    assert codes == {"SERVICE_UNAVAILABLE": 300}
    assert {answer["inReplyTo"] for answer in answers} == {*range(300), "page"}
    assert services.redis.xlen("k:events:gateway:dead") == 300
