"""Requests through real gateway processes and a real Redis: exactly one answer to each, however often it is sent.

The services are the test's own, at the far side of Redis: what they hear and say is the published contract.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect as websocket_connect

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from redis.client import PubSub

    from tests.integration.conftest import AuthService, Client, Connect, Gateway, RedisServer, Shared, StartGateway

Json = dict[str, Any]

CHAT = "chat:message:send"
SERVICES = {
    "chat": {"channel": "events:chat", "reply": True},
    "notes": "events:notes",
    "hasty": {"channel": "events:chat", "reply": True, "timeout": 0.2},
}


class Backstage:
    """A service on a channel, as the test plays it."""

    def __init__(self, server: RedisServer, channel: str) -> None:
        self._redis = server.client()
        self._channel = channel
        self._events: PubSub = self._redis.pubsub(ignore_subscribe_messages=True)
        self._events.subscribe(channel)
        wait_until(lambda: dict(self._redis.pubsub_numsub(channel))[channel] >= 1, "the subscription")

    def close(self) -> None:
        """Hear nothing any more; Redis has noticed when this returns."""
        listening = dict(self._redis.pubsub_numsub(self._channel))[self._channel]
        self._events.close()
        wait_until(
            lambda: dict(self._redis.pubsub_numsub(self._channel))[self._channel] < listening, "one subscription less"
        )

    def hear(self) -> Json:
        """The next event."""
        message = wait_until(lambda: self._events.get_message(timeout=0.1), "an event")
        event = json.loads(message["data"])
        assert isinstance(event, dict)
        return event

    def hear_nothing(self) -> None:
        """Nothing more was published to it: proved with a word of our own behind all that was."""
        self._redis.publish(self._channel, '{"barrier": true}')
        assert self.hear() == {"barrier": True}

    def reply(self, event: Json, payload: Any, type: str = "", **more: Any) -> int:
        """Answer it, on its gateway's channel; how many gateways heard that."""
        message = {
            "type": type or event["eventType"],
            "recipients": [event["socketId"]],
            "inReplyTo": event["id"],
            "payload": payload,
            **more,
        }
        return int(self._redis.publish(event["replyTo"], json.dumps(message)))

    def reply_to_user(self, event: Json, payload: Any) -> None:
        """Answer it by way of its user: what a service does whose asking gateway is gone."""
        message = {
            "type": event["eventType"],
            "recipients": [event["socketId"]],
            "userIds": [event["userId"]],
            "inReplyTo": event["id"],
            "payload": payload,
        }
        self._redis.publish("events:broadcast", json.dumps(message))


class Play:
    """What tests share that leave nothing waiting: two gateways, and a Redis that keeps the requests of all tests. So
    each test has ids of its own.
    """

    def __init__(self, shared: Shared, stage: ExitStack) -> None:
        self.redis_server = shared.redis_server
        self._shared = shared
        self._stage = stage

    def gateways(self, **config: Any) -> list[Gateway]:
        return [self._shared.gateway(number, services=SERVICES, config=config) for number in range(2)]

    def backstage(self, channel: str) -> Backstage:
        return self._stage.enter_context(closing(Backstage(self.redis_server, channel)))


@pytest.fixture
def play(shared: Shared, stage: ExitStack) -> Play:
    return Play(shared, stage)


@pytest.fixture
def chat(redis_server: RedisServer) -> Backstage:
    return Backstage(redis_server, "events:chat")


def ask(client: Client, id: int | str, payload: Any = None, event: str = CHAT, **more: Any) -> None:
    client.send(event, payload=payload, id=id, **more)


def refused(client: Client, code: str, id: int | str) -> Json:
    """The next message, which must be this error for that request; its payload."""
    message = client.expect_error(code)
    assert message["id"] == id
    payload = message["payload"]
    assert isinstance(payload, dict)
    return payload


def nothing_more(client: Client, redis_server: RedisServer) -> None:
    client.expect_nothing_through(redis_server)
    client.expect_nothing()


# Each kind of answer


@pytest.mark.parametrize("id", [0, -7, "", "1", "größe 🎉", "x" * 64])
def test_the_services_reply(id: int | str, play: Play, connect: Connect) -> None:
    chat = play.backstage("events:chat")
    ada = connect(play.gateways()[0], token="ada", room="r1")
    ask(ada, id, {"text": "größe"})
    event = chat.hear()
    assert (event["id"], event["payload"], event["userId"]) == (id, {"text": "größe"}, "user_ada")
    assert chat.reply(event, {"at": 1}, "chat:message:sent") == 1
    assert ada.receive() == {"type": "chat:message:sent", "payload": {"at": 1}, "id": id}
    chat.reply(event, {"at": 2})
    chat.reply_to_user(event, {"at": 3})
    nothing_more(ada, play.redis_server)


def test_a_services_refusal(play: Play, connect: Connect) -> None:
    chat = play.backstage("events:chat")
    ada = connect(play.gateways()[0], token="ada", room="r1")
    ask(ada, 1)
    chat.reply(chat.hear(), {"code": "TOO_RUDE", "message": "no"}, "error")
    assert refused(ada, "TOO_RUDE", 1)["message"] == "no"


def test_an_acknowledgement(play: Play, connect: Connect) -> None:
    instances = [play.backstage("events:notes") for _ in range(2)]
    ada = connect(play.gateways()[0], token="ada", room="r1")
    wait_until(lambda: play.redis_server.client().pubsub_numsub("events:notes")[0][1] == 2, "both")
    ask(ada, 1, event="notes:note:create")
    assert ada.receive() == {"type": "ack", "payload": {"receivers": 2}, "id": 1}
    event = instances[0].hear()
    instances[0].reply(event, "uncalled for")
    nothing_more(ada, play.redis_server)


def test_nobody_listens(play: Play, connect: Connect) -> None:
    ada = connect(play.gateways()[0], token="ada", room="r1")
    for event in (CHAT, "notes:note:create"):
        ask(ada, "nobody", event=event)
        assert refused(ada, "SERVICE_UNAVAILABLE", "nobody")["eventType"] == event
    nothing_more(ada, play.redis_server)


def test_redis_is_away(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server, services=SERVICES)
    ada = connect(process, token="ada", room="r1")
    redis_server.kill()
    process.wait_log("is unavailable")  # before that, nobody knows whether a request has arrived
    for number in range(3):
        ask(ada, number)
        refused(ada, "SERVICE_UNAVAILABLE", number)
    ada.expect_nothing()


def test_redis_goes_away_before_the_answer(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, chat: Backstage
) -> None:
    ada = connect(gateway(redis_server, services=SERVICES), token="ada", room="r1")
    ask(ada, 1, event="hasty:message:send")
    chat.hear()
    redis_server.kill()
    refused(ada, "TIMEOUT", 1)
    ada.expect_nothing()


def test_a_silent_service(play: Play, connect: Connect) -> None:
    chat = play.backstage("events:chat")
    ada = connect(play.gateways()[0], token="ada", room="r1")
    ask(ada, 1, event="hasty:message:send")
    event = chat.hear()
    assert refused(ada, "TIMEOUT", 1)["eventType"] == "hasty:message:send"
    chat.reply(event, "too late")
    chat.reply_to_user(event, "too late")
    nothing_more(ada, play.redis_server)
    ask(ada, 1, event="hasty:message:send")
    refused(ada, "TIMEOUT", 1)
    chat.hear_nothing()


def test_not_permitted(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService, chat: Backstage
) -> None:
    auth_service.allow("ada", "Ada", permissions=["chat:message:read"])
    ada = connect(gateway(redis_server, auth=auth_service.url, services=SERVICES), token="ada", room="r1")
    ask(ada, 1)
    refused(ada, "ACCESS_DENIED", 1)
    ask(ada, 2, event="chat:message:read", roomId="elsewhere")
    refused(ada, "ACCESS_DENIED", 2)
    chat.hear_nothing()


def test_no_such_event(play: Play, connect: Connect) -> None:
    ada = connect(play.gateways()[0], token="ada", room="r1")
    for event in ("nobody:is:there", "chat:message", "chat:message:send:now", ": :"):
        ask(ada, "x", event=event)
        assert refused(ada, "INVALID_EVENT", "x")["eventType"] == event
    ada.expect_nothing()


def test_too_many_of_one_socket(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, chat: Backstage
) -> None:
    process = gateway(redis_server, services=SERVICES, config={"limits": {"requests": 3}})
    ada, bob = connect(process, token="ada", room="r1"), connect(process, token="bob", room="r1")
    for number in range(5):
        ask(ada, number)
    assert refused(ada, "RATE_LIMITED", 3)["retryAfter"] > 0
    assert refused(ada, "RATE_LIMITED", 4)["retryAfter"] > 0
    events = [chat.hear() for _ in range(3)]
    assert [event["id"] for event in events] == [0, 1, 2]
    ask(bob, 0)
    chat.reply(chat.hear(), "for bob")
    assert bob.expect(CHAT)["payload"] == "for bob"
    chat.reply(events[1], "for ada")
    assert ada.expect(CHAT)["id"] == 1
    ask(ada, 3)
    assert chat.hear()["id"] == 3
    ada.send(CHAT)
    assert "id" not in chat.hear()
    nothing_more(ada, redis_server)


def test_too_many_for_one_service(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, chat: Backstage
) -> None:
    busy = {"chat": {"channel": "events:chat", "reply": True, "requests": 2}}
    process = gateway(redis_server, services=busy)
    ada, bob, eve = (connect(process, token=name, room="r1") for name in ("ada", "bob", "eve"))
    ask(ada, 1)
    ask(bob, 1)
    event = chat.hear()
    chat.hear()
    ask(eve, 1)
    assert refused(eve, "SERVICE_UNAVAILABLE", 1)["retryAfter"] > 0
    chat.reply(event, None)
    ada.expect(CHAT)
    ask(eve, 1)
    chat.reply(chat.hear(), None)
    eve.expect(CHAT)


def test_a_stream_service(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    stream = {"transport": "stream", "channel": "events:stream", "max_length": 2}
    process = gateway(redis_server, services={"keeps": stream, "answers": {**stream, "reply": True}})
    ada, bob = (connect(process, token=name, room="r1") for name in ("ada", "bob"))  # one may have half of it
    bus = redis_server.client()
    ask(ada, 1, "first", "keeps:a:b")
    assert ada.receive() == {"type": "ack", "payload": {"receivers": 1}, "id": 1}
    ask(ada, 1, "first", "keeps:a:b")
    assert ada.receive() == {"type": "ack", "payload": {"receivers": 1}, "id": 1}
    assert bus.xlen("events:stream") == 1
    ask(bob, 2, "second", "answers:a:b")
    wait_until(lambda: bus.xlen("events:stream") == 2, "the second event")
    ask(ada, 3, "third", "answers:a:b")
    assert refused(ada, "SERVICE_UNAVAILABLE", 3)["retryAfter"] > 0
    entries: Any = bus.xrange("events:stream")
    event = json.loads(entries[1][1]["event"])
    assert (event["id"], event["payload"]) == (2, "second")
    Backstage(redis_server, "events:elsewhere").reply(event, "done")
    assert bob.receive() == {"type": "answers:a:b", "payload": "done", "id": 2}


# The same request, sent again


def test_again_while_it_waits(play: Play, connect: Connect) -> None:
    chat = play.backstage("events:chat")
    ada = connect(play.gateways()[0], token="ada", room="r1")
    for _ in range(3):
        ask(ada, "waits", {"x": 1})
    event = chat.hear()
    chat.hear_nothing()
    chat.reply(event, "once")
    assert ada.receive() == {"type": CHAT, "payload": "once", "id": "waits"}
    nothing_more(ada, play.redis_server)


@pytest.mark.parametrize(("type", "payload"), [("", {"größe": 1}), ("error", {"code": "NO", "message": "no"})])
def test_again_after_its_answer(
    type: str,
    payload: Json,
    play: Play,
    connect: Connect,
) -> None:
    """Over the same socket, over another, and over another gateway."""
    number = f"answered-{type}"
    chat = play.backstage("events:chat")
    here, there = play.gateways()
    ada = connect(here, token="ada", room="r1")
    ask(ada, number, {"x": 1})
    chat.reply(chat.hear(), payload, type)
    first = ada.receive()
    assert (first["id"], first["payload"]) == (number, payload)
    ask(ada, number, {"x": 1})
    assert ada.receive() == first
    nothing_more(ada, play.redis_server)
    ada.close()
    for process in (here, there):
        again = connect(process, token="ada", room="r1")
        ask(again, number, {"x": 1})
        assert again.receive() == first
        nothing_more(again, play.redis_server)
        again.close()
    chat.hear_nothing()


def test_again_after_an_acknowledgement(play: Play, connect: Connect) -> None:
    notes = play.backstage("events:notes")
    here, there = play.gateways()
    for process in (here, there, here):
        ada = connect(process, token="ada", room="r1")
        ask(ada, "acknowledged", event="notes:note:create")
        assert ada.receive() == {"type": "ack", "payload": {"receivers": 1}, "id": "acknowledged"}
        nothing_more(ada, play.redis_server)
        ada.close()
    assert notes.hear()["id"] == "acknowledged"
    notes.hear_nothing()


@pytest.mark.parametrize("end", ["close", "kill", "terminate"])
def test_again_to_another_gateway_while_it_waits(
    end: str, redis_server: RedisServer, gateway: StartGateway, connect: Connect, chat: Backstage
) -> None:
    """The client goes, or its gateway does; the service runs it once, and answers whoever asks now."""
    config = {"drain": {"seconds": 1.0}}  # a gateway that ends does so while the request waits
    here, there = (gateway(redis_server, services=SERVICES, config=config) for _ in range(2))
    ada = connect(here, token="ada", room="r1")
    ask(ada, "a-1", {"x": 1})
    event = chat.hear()
    if end == "close":
        ada.close()
    else:
        getattr(here, end)()
    again = connect(there, token="ada", room="r1")
    ask(again, "a-1", {"x": 1})
    again.expect_nothing()
    chat.hear_nothing()
    if chat.reply(event, "once") == 0:
        assert end != "close"
        chat.reply_to_user(event, "once")
    assert again.receive() == {"type": CHAT, "payload": "once", "id": "a-1"}
    nothing_more(again, redis_server)
    chat.hear_nothing()


def test_again_after_it_was_answered_to_nobody(play: Play, connect: Connect) -> None:
    """The answer came between the two sockets: it is kept for whoever asks next."""
    chat = play.backstage("events:chat")
    here, there = play.gateways()
    ada = connect(here, token="ada", room="r1")
    ask(ada, "to-nobody")
    event = chat.hear()
    ada.close()
    wait_until(lambda: play.redis_server.client().hlen("room:r1") == 0, "that the gateway has noticed")
    assert chat.reply(event, "once") == 1
    again = connect(there, token="ada", room="r1")
    ask(again, "to-nobody")
    assert again.receive() == {"type": CHAT, "payload": "once", "id": "to-nobody"}
    chat.hear_nothing()


def test_both_sockets_are_open(play: Play, connect: Connect) -> None:
    """Each gets one answer, and the service one event."""
    chat = play.backstage("events:chat")
    here, there = play.gateways(sessions="many")
    sockets = [connect(process, token="ada", room="r1") for process in (here, here, there)]
    for socket in sockets:
        ask(socket, "both-open")
    event = chat.hear()
    chat.hear_nothing()
    chat.reply(event, "once")
    for socket in sockets:
        assert socket.receive() == {"type": CHAT, "payload": "once", "id": "both-open"}
        nothing_more(socket, play.redis_server)


def test_again_after_time_out_on_another_gateway(play: Play, connect: Connect) -> None:
    chat = play.backstage("events:chat")
    here, there = play.gateways()
    ada = connect(here, token="ada", room="r1")
    ask(ada, "timed-out", event="hasty:message:send")
    first = ada.expect_error("TIMEOUT")
    ada.close()
    again = connect(there, token="ada", room="r1")
    ask(again, "timed-out", event="hasty:message:send")
    assert again.receive() == first
    chat.hear()
    chat.hear_nothing()


def test_what_nobody_took_is_tried_anew(play: Play, connect: Connect) -> None:
    ada = connect(play.gateways()[0], token="ada", room="r1")
    ask(ada, "tried-anew")
    refused(ada, "SERVICE_UNAVAILABLE", "tried-anew")
    chat = play.backstage("events:chat")
    ask(ada, "tried-anew")
    chat.reply(chat.hear(), "now")
    assert ada.receive() == {"type": CHAT, "payload": "now", "id": "tried-anew"}


def test_what_is_another_request(play: Play, connect: Connect) -> None:
    """Another user's; another payload, room or event under the same id; a number and its text."""
    chat = play.backstage("events:chat")
    process = play.gateways()[0]
    ada, bob = connect(process, token="ada", room="r1"), connect(process, token="bob", room="r1")
    ada.send("join", payload={"roomId": "r2"})
    ada.expect("joined")

    def answered(client: Client, number: int, **asked: Any) -> None:
        ask(client, **{"id": 1, "payload": {"x": 1}, **asked})
        event = chat.hear()
        chat.reply(event, number)
        message = client.receive()
        assert (message["id"], message["payload"]) == (asked.get("id", 1), number)

    answered(ada, 1)
    answered(bob, 2)
    answered(ada, 3, payload={"x": 2})
    answered(ada, 4, roomId="r2")
    answered(ada, 5, event="chat:message:edit")
    answered(ada, 6, id="1")
    ask(ada, "1", {"x": 1}, roomId="r1")
    assert ada.receive()["payload"] == 6
    ask(ada, 1, {"x": 1}, event="chat:message:edit")
    assert ada.receive()["payload"] == 5
    chat.hear_nothing()


def test_the_window_is_over(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, chat: Backstage
) -> None:
    services = {"chat": {"channel": "events:chat", "reply": True, "timeout": 3.0}}
    process = gateway(redis_server, services=services, config={"limits": {"request_window": 0.2}})
    ada = connect(process, token="ada", room="r1")
    bus = redis_server.client()
    for number in range(2):
        wait_until(lambda: not [*bus.scan_iter("request:*")], "the end of the window")
        ask(ada, "a-1")
        chat.reply(chat.hear(), number)
        assert ada.receive()["payload"] == number


def test_no_window(redis_server: RedisServer, gateway: StartGateway, connect: Connect, chat: Backstage) -> None:
    process = gateway(redis_server, services=SERVICES, config={"limits": {"request_window": 0}})
    ada = connect(process, token="ada", room="r1")
    for number in range(2):
        ask(ada, "a-1")
        chat.reply(chat.hear(), number)
        assert ada.receive()["payload"] == number
    assert [*redis_server.client().scan_iter("request:*")] == []


# Socket.IO


def socketio_ack(process: Gateway, stage: ExitStack, chat: Backstage, answer: Any) -> None:
    """A fresh client of Socket.IO asks with its first acknowledgement, and is answered."""
    url = f"ws://127.0.0.1:{process.port}/socket.io/?EIO=4&transport=websocket"
    socket = stage.enter_context(websocket_connect(url, proxy=None))
    assert str(socket.recv(10)).startswith("0{")
    socket.send('40{"token":"ada","roomId":"r1"}')
    while not (said := str(socket.recv(10))).startswith('42["authenticated"'):
        assert said.startswith(("40", "42")), said
    socket.send(f'420["{CHAT}",{{"x":1}}]')
    chat.reply(chat.hear(), answer)
    assert str(socket.recv(10)) == f"430[{json.dumps(answer)}]"
    socket.close()


def test_acknowledgements_of_socketio_are_of_one_socket(stage: ExitStack, play: Play) -> None:
    """They are numbered from 0 on each: the next page's first is not the last one's."""
    chat = play.backstage("events:chat")
    here, there = play.gateways()
    for number, process in enumerate((here, here, there)):
        socketio_ack(process, stage, chat, {"number": number})
    chat.hear_nothing()


# All of it


def test_each_of_many_gets_exactly_one_answer(play: Play, connect: Connect) -> None:
    """A service that answers, answers twice, is silent, or late; clients that ask twice, here and elsewhere."""
    chat = play.backstage("events:chat")
    chance = random.Random(5)
    here, there = play.gateways(sessions="many")
    clients = [connect(process, token=f"u{n}", room="r1") for n in range(4) for process in (here, there)]
    asked: Counter[tuple[int, str]] = Counter()
    expected = 0
    for number in range(50):
        for user in range(4):
            name = chance.choice([CHAT, "hasty:message:send"])
            first = chance.randrange(2)
            for twin in range(1 + chance.randrange(2)):
                ask(clients[2 * user + (first + twin) % 2], f"{user}-{number}", {"n": number}, name)
                asked[2 * user + (first + twin) % 2, f"{user}-{number}"] += 1
            expected += 1
    ran: Counter[str] = Counter()
    late = []
    for _ in range(expected):
        event = chat.hear()
        ran[event["id"]] += 1
        if event["eventType"] == CHAT or chance.random() < 0.5:
            chat.reply(event, event["id"])
            if chance.random() < 0.3:
                chat.reply(event, "twice")
        else:
            late.append(event)
    answers: Counter[tuple[int, str]] = Counter()
    for number, client in enumerate(clients):
        for _ in range(sum(many for (its, _), many in asked.items() if its == number)):
            message = client.receive(10.0)
            answers[number, message["id"]] += 1
            assert message["type"] in {CHAT, "hasty:message:send"} or message["payload"]["code"] == "TIMEOUT", message
            assert message["payload"] == message["id"] or message["type"] == "error", message
    assert answers == asked
    assert set(ran.values()) == {1}
    for event in late:
        chat.reply(event, "late")
    for client in clients:
        nothing_more(client, play.redis_server)
    chat.hear_nothing()
