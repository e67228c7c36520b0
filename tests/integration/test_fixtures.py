"""The fixtures themselves, as far as they can be tried without a gateway: tests prove no more than these do."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from http.client import HTTPConnection
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import redis

if TYPE_CHECKING:
    from tests.integration.conftest import AuthService, Json, RedisServer, StartService


def event(name: str, **fields: Any) -> str:
    """An event as the gateway publishes it."""
    return json.dumps(
        {
            "eventType": name,
            "userId": "alice",
            "socketId": "gw.1",
            "roomId": "board",
            "payload": {"text": "hi"},
            "timestamp": 1,
            **fields,
        }
    )


# redis_server


def test_redis_starts_empty_on_the_same_port(redis_server: RedisServer) -> None:
    client = redis_server.client()
    port = redis_server.port
    client.set("a", "1")
    redis_server.kill()
    with pytest.raises(redis.exceptions.ConnectionError):
        client.get("a")
    redis_server.start()
    assert client.get("a") is None
    assert redis_server.url == f"redis://127.0.0.1:{port}/0"
    client.set("a", "1")
    redis_server.stop()
    redis_server.start()
    assert client.get("a") is None


# auth_service


def ask(auth_service: AuthService, token: str, room: str | None = "board") -> tuple[int, Json]:
    """What the service says over HTTP."""
    with closing(HTTPConnection("127.0.0.1", auth_service.port, timeout=5)) as connection:
        connection.request("POST", "/auth/check", json.dumps({"token": token, "roomId": room}))
        answer = connection.getresponse()
        return answer.status, json.load(answer)


def test_auth_says_yes_and_no(auth_service: AuthService) -> None:
    auth_service.allow("t1", "alice", rooms=["board"], permissions=["chat:*:*"], expiresAt=7, ttl=3)
    auth_service.allow("t2", "bob")
    auth_service.deny("t3", "banned")
    yes = {"success": True, "userId": "alice", "roomId": "board"}
    assert ask(auth_service, "t1") == (200, {**yes, "permissions": ["chat:*:*"], "expiresAt": 7, "ttl": 3})
    assert ask(auth_service, "t1", "other")[1]["success"] is False
    assert ask(auth_service, "t2", None) == (200, {"success": True, "userId": "bob", "roomId": None})
    assert ask(auth_service, "t3") == (401, {"success": False, "message": "banned"})
    assert ask(auth_service, "unknown")[0] == 401
    assert auth_service.questions[:3] == [("t1", "board"), ("t1", "other"), ("t2", None)]


def test_auth_misbehaves(auth_service: AuthService) -> None:
    auth_service.allow("t", "alice")
    auth_service.mode = "error500"
    assert ask(auth_service, "t")[0] == 500
    auth_service.mode = "garbage"
    with pytest.raises(UnicodeDecodeError):
        ask(auth_service, "t")
    auth_service.mode = "lying"
    assert ask(auth_service, "t") == (200, {"success": "yes", "userId": {"admin": True}, "roomId": 7})


def test_auth_goes_down_with_its_open_connections(auth_service: AuthService) -> None:
    auth_service.allow("t", "alice")
    with socket.create_connection(("127.0.0.1", auth_service.port)) as kept:
        body = b'{"token": "t", "roomId": null}'
        kept.sendall(b"POST /auth/check HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        auth_service.mode = "down"
        assert kept.recv(4096) in (b"", b'{"success": true, "userId": "alice", "roomId": null}')
    with pytest.raises(ConnectionRefusedError):
        ask(auth_service, "t")
    auth_service.mode = "ok"
    assert ask(auth_service, "t")[0] == 200


def test_auth_holds_what_was_true_when_it_was_asked(auth_service: AuthService) -> None:
    auth_service.allow("t", "alice")
    auth_service.mode = "slow"
    answers: list[tuple[int, Json]] = []
    asking = Thread(target=lambda: answers.append(ask(auth_service, "t")))
    asking.start()
    auth_service.wait_questions(1)
    assert auth_service.held == 1
    auth_service.deny("t")
    auth_service.mode = "ok"
    assert ask(auth_service, "t")[0] == 401
    assert answers == []
    auth_service.release()
    asking.join(5)
    assert answers[0][0] == 200


# service


@pytest.mark.parametrize(
    ("name", "fields", "channel", "answer"),
    [
        ("echo", {"payload": 7}, "events:broadcast", {"recipients": ["gw.1"], "payload": 7}),
        (
            "shout",
            {},
            "events:broadcast",
            {"recipients": [], "payload": {"roomId": "board", "text": "hi"}},
        ),
        ("shout", {"payload": 7}, "events:broadcast", {"recipients": [], "payload": 7, "roomId": "board"}),
        (
            "shoutOthers",
            {"payload": 7},
            "events:broadcast",
            {"recipients": [], "payload": 7, "roomId": "board", "excludeSocketIds": ["gw.1"]},
        ),
        (
            "users",
            {"payload": {"userIds": ["bob"]}},
            "events:broadcast",
            {"payload": {"userIds": ["bob"]}, "userIds": ["bob"]},
        ),
        (
            "reply",
            {"payload": 7, "id": 3, "replyTo": "gateway:gw"},
            "gateway:gw",
            {"recipients": ["gw.1"], "payload": 7, "inReplyTo": 3},
        ),
        (
            "kick",
            {"payload": {"code": "ACCESS_REVOKED"}},
            "events:broadcast",
            {"type": "disconnect", "recipients": ["gw.1"], "payload": {"code": "ACCESS_REVOKED"}},
        ),
    ],
)
def test_service_answers(
    redis_server: RedisServer, service: StartService, name: str, fields: Json, channel: str, answer: Json
) -> None:
    echo = service(redis_server, "events:test")
    with redis_server.client() as client, client.pubsub() as heard:
        heard.subscribe(channel)
        assert heard.get_message(timeout=5)
        assert client.publish("events:test", event(f"test:module:{name}", **fields)) == 1
        message = heard.get_message(timeout=5)
        assert message is not None
        assert json.loads(message["data"]) == {"type": f"test:module:{name}", **answer}
    assert echo.wait_received(1) == [json.loads(event(f"test:module:{name}", **fields))]


def test_service_survives_redis(redis_server: RedisServer, service: StartService) -> None:
    echo = service(redis_server, "events:test")
    redis_server.kill()
    redis_server.start()
    echo.wait_subscribed()
    redis_server.client().publish("events:test", event("test:module:silent"))
    assert len(echo.wait_received(1)) == 1
    echo.stop()
    assert redis_server.client().publish("events:test", "{}") == 0


def test_service_asks_the_test(redis_server: RedisServer, service: StartService) -> None:
    service(redis_server, "events:test", lambda event: {"type": "said", "payload": event["payload"]})
    with redis_server.client() as client, client.pubsub() as heard:
        heard.subscribe("events:broadcast")
        assert heard.get_message(timeout=5)
        client.publish("events:test", event("test:module:any"))
        message = heard.get_message(timeout=5)
        assert message is not None
        assert json.loads(message["data"]) == {"type": "said", "payload": {"text": "hi"}}
