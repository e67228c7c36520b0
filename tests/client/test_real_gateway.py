"""Both clients and a real gateway, with real services behind it, through what happens to gateways."""

from __future__ import annotations

import json
import queue
import threading
from collections import Counter
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.client import Closed, Message, Presence, Refused, State
from tests.client.backends import MakeUser
from tests.docs.pages import code
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import AuthService, Gateway, RedisServer, StartGateway, StartService

SERVICES = {"chat": {"channel": "events:chat", "reply": True}, "stickyNotes": "events:stickyNotes"}


def same_port(gateway: Gateway) -> tuple[str, str]:
    """Arguments of a gateway that takes this one's place."""
    return "--listen", f"tcp:{gateway.port}:interface=127.0.0.1"


def test_requests(user: MakeUser, redis_server: RedisServer, gateway: StartGateway, service: StartService) -> None:
    service(redis_server, "events:chat")
    service(redis_server, "events:stickyNotes")
    ada = user(gateway(redis_server, services=SERVICES).url)
    heard: queue.Queue[Message] = queue.Queue()
    ada.client.on("stickyNotes:note:shout", heard.put)
    ada.client.on("error", heard.put)
    ada.run("connect")

    assert ada.run("request", "chat:message:reply", {"text": "größe 🎉"}) == {"text": "größe 🎉"}
    assert ada.run("request", "stickyNotes:note:create") == {"receivers": 1}
    with pytest.raises(Refused) as refused:
        ada.run("request", "nobody:is:there")
    assert refused.value.code == "INVALID_EVENT"

    ada.run("emit", "stickyNotes:note:shout", {"x": 1})
    assert heard.get(timeout=10.0) == Message("stickyNotes:note:shout", {"roomId": "r1", "x": 1}, None, "r1")
    ada.run("join", "r2")
    ada.run("emit", "stickyNotes:note:shout", {"x": 2}, room="r2")
    assert heard.get(timeout=10.0).room_id == "r2"
    ada.run("leave", "r2")
    ada.run("emit", "stickyNotes:note:shout", {"x": 3}, room="r2")
    assert heard.get(timeout=10.0).payload["code"] == "ACCESS_DENIED"


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_the_gateway_is_restarted(
    end: str, user: MakeUser, redis_server: RedisServer, gateway: StartGateway, service: StartService
) -> None:
    """The client comes back to its rooms, and the request that was unanswered is run once and answered once."""
    release = threading.Event()

    def answer_late(event: dict[str, Any]) -> dict[str, Any]:
        assert release.wait(60), "nobody released the answer"
        # As kraftek.service does when the gateway that asked is gone: whichever has the user's request now answers.
        reply = {"type": event["eventType"], "inReplyTo": event["id"], "payload": {"done": event["payload"]}}
        return {**reply, "recipients": [event["socketId"]], "userIds": [event["userId"]]}

    chat = service(redis_server, "events:chat", answer_late)
    service(redis_server, "events:stickyNotes")
    first = gateway(redis_server, services=SERVICES)
    ada = user(first.url, timeout=60.0)
    ada.run("connect")
    ada.run("join", "r2")
    asking = ada.start("request", "chat:message:send", 1, room="r2")
    (event,) = chat.wait_received()

    ada.expect(State.CONNECTING)
    ada.expect(State.READY)
    getattr(first, end)()
    assert ada.expect(State.WAITING).code == (1012 if end == "terminate" else 1006)
    gateway(redis_server, services=SERVICES, args=same_port(first))
    wait_until(lambda: ada.client.state is State.READY, "the connection again", 30.0)
    # Behind what is sent again: the answer to this one says that that has arrived.
    assert ada.run("request", "stickyNotes:note:create", room="r2") == {"receivers": 1}
    release.set()
    assert asking.result(10.0) == {"done": 1}
    assert chat.received() == [event]
    assert redis_server.client().hkeys("room:r2") == ["user_ada"]


def test_the_default_room_is_another_one_when_a_request_is_sent_again(
    user: MakeUser, redis_server: RedisServer, gateway: StartGateway, service: StartService
) -> None:
    """It keeps the room that it was first sent from, also when the client has left that: it runs once."""
    release = threading.Event()

    def answer_late(event: dict[str, Any]) -> dict[str, Any]:
        assert release.wait(60), "nobody released the answer"
        reply = {"type": event["eventType"], "inReplyTo": event["id"], "payload": event["roomId"]}
        return {**reply, "recipients": [event["socketId"]], "userIds": [event["userId"]]}

    chat = service(redis_server, "events:chat", answer_late)
    service(redis_server, "events:stickyNotes")
    first = gateway(redis_server, services=SERVICES)
    ada = user(first.url, timeout=60.0)
    ada.run("connect")
    ada.run("join", "r2")
    asking = ada.start("request", "chat:message:send", 1)
    (event,) = chat.wait_received()
    ada.run("leave", "r1")
    first.kill()
    gateway(redis_server, services=SERVICES, args=same_port(first))
    assert ada.run("request", "stickyNotes:note:create") == {"receivers": 1}
    assert ada.client.rooms == ["r2"]
    release.set()
    assert asking.result(10.0) == "r1"
    assert chat.received() == [event]


def test_requests_through_kills(
    user: MakeUser, redis_server: RedisServer, gateway: StartGateway, service: StartService
) -> None:
    """Whatever becomes of gateways: each request has one end, an answer or ``TIMEOUT``, and runs once at most."""

    def answer(event: dict[str, Any]) -> dict[str, Any]:
        reply = {"type": event["eventType"], "inReplyTo": event["id"], "payload": event["payload"]}
        return {**reply, "recipients": [event["socketId"]], "userIds": [event["userId"]]}

    chat = service(redis_server, "events:chat", answer)
    services = {"chat": {"channel": "events:chat", "reply": True, "timeout": 5.0}}
    process = gateway(redis_server, services=services)
    ada = user(process.url, timeout=60.0)
    ada.run("connect")

    def ask(first: int) -> list[Future[Any]]:
        return [ada.start("request", "chat:message:send", first + number) for number in range(50)]

    before: list[Future[Any]] = []
    after: list[Future[Any]] = []
    for _ in range(3):
        heard = len(chat.received())
        before += ask(len(before))
        chat.wait_received(heard + 1)
        process.kill()
        after += ask(1000 + len(after))
        process = gateway(redis_server, services=services, args=same_port(process))
        assert after[-1].result(60.0) == 999 + len(after)
    outcomes: Counter[str] = Counter()
    for request in before:
        try:
            outcomes["answered"] += request.result(60.0) in range(150)
        except Refused as refused:
            outcomes[refused.code] += 1
    assert outcomes["answered"] + outcomes["TIMEOUT"] == 150, outcomes
    # Of what was asked while there was no gateway, nothing can have been lost.
    assert [request.result(60.0) for request in after] == [*range(1000, 1150)]
    ran = Counter(event["payload"] for event in chat.received())
    assert set(ran.values()) == {1}


def test_access_taken_back_and_given_again(
    user: MakeUser, redis_server: RedisServer, gateway: StartGateway, auth_service: AuthService
) -> None:
    auth_service.allow("old", "Ada")
    tokens = {False: "old", True: "new"}
    ada = user(gateway(redis_server, auth=auth_service.url).url, tokens.__getitem__)
    ada.run("connect")
    ada.expect(State.CONNECTING)
    ada.expect(State.READY)
    auth_service.deny("old")
    redis_server.client().publish("auth:invalidate", json.dumps({"userId": "Ada"}))
    closed = ada.expect(State.CLOSED)
    assert closed.code == 4403
    with pytest.raises(Closed, match="4403 ACCESS_REVOKED"):
        ada.run("request", "stickyNotes:note:create")

    auth_service.allow("new", "Ada")
    ada.run("connect")
    assert ("new", "r1") in auth_service.questions


def test_the_auth_service_is_away(
    user: MakeUser, redis_server: RedisServer, gateway: StartGateway, auth_service: AuthService
) -> None:
    auth_service.allow("ada", "Ada")
    auth_service.mode = "down"
    ada = user(gateway(redis_server, auth=auth_service.url).url)
    said: queue.Queue[Message] = queue.Queue()
    ada.client.on("error", said.put)
    connecting = ada.start("connect")
    assert said.get(timeout=10.0).payload["code"] == "AUTH_UNAVAILABLE"
    auth_service.mode = "ok"
    assert connecting.result(20.0) is None


def test_a_room_cannot_be_asked_about_after_a_reconnect(
    user: MakeUser,
    redis_server: RedisServer,
    gateway: StartGateway,
    service: StartService,
    auth_service: AuthService,
) -> None:
    """What is for it waits, also a request that the service is just doing: all are answered, and done once."""
    release = threading.Event()

    def answer_late(event: dict[str, Any]) -> dict[str, Any]:
        assert release.wait(60), "nobody released the answer"
        reply = {"type": event["eventType"], "inReplyTo": event["id"], "payload": event["payload"]}
        return {**reply, "recipients": [event["socketId"]], "userIds": [event["userId"]]}

    chat = service(redis_server, "events:chat", answer_late)
    service(redis_server, "events:stickyNotes")
    auth_service.allow("ada", "Ada")
    first = gateway(redis_server, services=SERVICES, auth=auth_service.url)
    ada = user(first.url, timeout=60.0)
    ada.run("connect")
    ada.run("join", "r2")
    asked = [ada.start("request", "chat:message:send", 1, room="r2")]
    chat.wait_received()
    first.kill()
    auth_service.broken, before = {"r2"}, len(auth_service.questions)
    redis = redis_server.client()
    redis.delete(*redis.keys("access:token:*"))
    gateway(redis_server, services=SERVICES, auth=auth_service.url, args=same_port(first))
    asked.append(ada.start("request", "chat:message:send", 2, room="r2"))
    wait_until(lambda: ("ada", "r2") in auth_service.questions[before:], "a question about r2")
    # The rest goes on.
    assert ada.run("request", "stickyNotes:note:create") == {"receivers": 1}
    auth_service.broken = set()
    release.set()
    assert [each.result(30.0) for each in asked] == [1, 2]
    assert [event["payload"] for event in chat.received()] == [1, 2]


def test_a_second_login_elsewhere(user: MakeUser, redis_server: RedisServer, gateway: StartGateway) -> None:
    process = gateway(redis_server)
    here, there = user(process.url), user(process.url)
    here.run("connect")
    there.run("connect")
    here.expect(State.CONNECTING)
    here.expect(State.READY)
    assert here.expect(State.CLOSED).code == 4409
    here.run("connect")
    there.expect(State.CONNECTING)
    there.expect(State.READY)
    assert there.expect(State.CLOSED).code == 4409


def test_half_a_character(
    user: MakeUser, redis_server: RedisServer, gateway: StartGateway, service: StartService
) -> None:
    half, whole = "\ud83d", "\ufffd"
    service(redis_server, "events:chat")
    ada = user(gateway(redis_server, services=SERVICES).url)
    ada.run("connect")
    assert ada.run("request", "chat:a:reply", {"text": half, "more": [half, "😀"]}) == {
        "text": whole,
        "more": [whole, "😀"],
    }
    for call in (("join", half), ("leave", half), ("request", f"chat:a:{half}")):
        with pytest.raises(ValueError, match=r"half of a surrogate pair|an event's name"):
            ada.run(*call)
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        ada.run("request", "chat:a:reply", 1, room=half)
    assert ada.run("request", "chat:a:reply", "still there") == "still there"


def test_who_is_in_a_room(user: MakeUser, redis_server: RedisServer, gateway: StartGateway) -> None:
    rooms = {"rooms": {"r*": {"presence": True}}}
    first = gateway(redis_server, config=rooms)
    seen: queue.Queue[Presence] = queue.Queue()
    ada = user(first.url, data={"name": "Ada"})
    ada.run("presence", "r1", seen.put)
    printed: queue.Queue[Any] = queue.Queue()
    names = {"client": ada.client, "print": lambda *words: printed.put(words)}
    ada.backend.run(lambda: exec(code("client-presence"), names))
    ada.run("connect")
    assert printed.get(timeout=10.0) == (1, "users:", "user_ada")
    present = seen.get(timeout=10.0)
    assert (present.users, present.count) == ({"user_ada": {"name": "Ada"}}, 1)
    bob = user(gateway(redis_server, config=rooms).url, token=lambda _: "bob")
    bob.run("connect")
    assert seen.get(timeout=10.0).joined == {"user_bob": None}
    bob.run("join", "r1", data="busy")
    assert seen.get(timeout=10.0).joined == {"user_bob": "busy"}
    ada.expect(State.CONNECTING)
    ada.expect(State.READY)
    first.kill()
    bob.run("close")
    ada.expect(State.WAITING)
    gateway(redis_server, config=rooms, args=same_port(first))
    present = seen.get(timeout=30.0)
    assert (present.joined, present.left) == ({}, ["user_bob"])
