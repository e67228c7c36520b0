"""Half a character, ``"\\ud83d"``: what JavaScript and Python write for a text that was cut in the middle of an emoji.

In payloads it arrives as U+FFFD, whichever way they go and whoever reads them; in names it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_kraftek_js import Node
from tests.integration.test_socketio import NODE, SocketIOClient
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import (
        AuthService,
        Client,
        Connect,
        Gateway,
        RedisServer,
        Shared,
        StartGateway,
        StartService,
    )

SERVICES = {
    "echo": "events:echo",
    "asked": {"channel": "events:asked", "reply": True},
}
Hear = Callable[[str], Callable[[], bytes]]
"""What a service hears on a channel, as bytes, one message a call."""

HALF = "\ud83d"
WHOLE = "\ufffd"


@pytest.fixture
def redis_server(shared: Shared) -> RedisServer:
    return shared.redis_server


@pytest.fixture
def process(shared: Shared) -> Gateway:
    return shared.gateway(services=SERVICES)


@pytest.fixture
def ada(process: Gateway, connect: Connect) -> Client:
    return connect(process, "ada", "r1")


@pytest.fixture
def page(process: Gateway, stage: ExitStack) -> SocketIOClient:
    """A Socket.IO client in the same room."""
    client = SocketIOClient(NODE)
    stage.callback(client.close)
    client.connect(process.http_url, ["websocket"], {"token": "page", "roomId": "r1"})
    client.reports.expect("connect")
    client.reports.expect("event", "authenticated")
    return client


@pytest.fixture
def hear(redis_server: RedisServer, stage: ExitStack) -> Hear:
    def heard_on(channel: str) -> Callable[[], bytes]:
        listening = redis_server.client(decode_responses=False).pubsub()
        stage.callback(listening.close)

        def confirmed(kind: str) -> None:
            getattr(listening, kind)(channel)
            wait_until(lambda: (listening.get_message(timeout=0.05) or {}).get("type") == kind, kind)

        confirmed("subscribe")
        stage.callback(confirmed, "unsubscribe")

        def heard() -> bytes:
            message = wait_until(lambda: listening.get_message(timeout=0.05), f"a message on {channel}")
            return bytes(message["data"])

        return heard

    return heard_on


CUT = [
    (r'{"text":"cut \ud83d","n":1.50}', r'{"text":"cut \ufffd","n":1.50}'),
    (r'"\uD83D"', r'"\ufffd"'),
    (r'"\ude00 begins"', r'"\ufffd begins"'),
    (r'"\ude00\ud83d"', r'"\ufffd\ufffd"'),
    (r'"\ud83d\ud83d\ude00"', r'"\ufffd\ud83d\ude00"'),
    (r'"\ud83d\u0041"', r'"\ufffd\u0041"'),
    (r'{"\ud83d":  1E400}', r'{"\ufffd":  1E400}'),
    (r'"\\ud83d \\\ud83d \/\u00e9"', r'"\\ud83d \\\ufffd \/\u00e9"'),
]
"""Payloads, and what becomes of them to the byte."""


def test_what_a_client_cut_reaches_its_service(hear: Hear, redis_server: RedisServer, ada: Client) -> None:
    heard = hear("events:echo")
    for sent, arrives in CUT:
        ada.send_raw(f'{{"type":"echo:a:b","payload":{sent},"id":7}}')
        event = heard()
        assert f'"payload":{arrives},'.encode() in event
        assert json.loads(event)["payload"] == json.loads(arrives)
        answer = ada.expect("ack")
        assert (answer["id"], answer["payload"]) == (7, {"receivers": 1})


def test_many_of_them_close_nobodys_socket(hear: Hear, ada: Client, redis_server: RedisServer) -> None:
    heard = hear("events:echo")
    for n in range(15):
        ada.send_raw(f'{{"type":"echo:a:b","payload":["\\ud83d",{n}]}}')
        assert json.loads(heard())["payload"] == [WHOLE, n]
    ada.expect_nothing()


def test_what_a_service_cut_reaches_everybody_in_the_room(
    redis_server: RedisServer, ada: Client, page: SocketIOClient
) -> None:
    for sent, arrives in CUT:
        redis_server.client().publish("events:broadcast", f'{{"type":"a:b:c","payload":{sent},"roomId":"r1"}}')
        text = ada.connection.recv(10)
        assert isinstance(text, str)
        assert f'"payload":{arrives},' in text
        expected = json.loads(arrives.replace("1E400", "null"))  # what JavaScript's JSON makes of Infinity
        assert page.reports.expect("event", "a:b:c") == [expected]


def test_an_answer_that_was_cut_is_an_answer(
    hear: Hear, redis_server: RedisServer, process: Gateway, connect: Connect, page: SocketIOClient
) -> None:
    heard, publisher = hear("events:asked"), redis_server.client()

    def answer() -> None:
        event = json.loads(heard())
        told = {"type": event["eventType"], "recipients": [event["socketId"]], "inReplyTo": event["id"]}
        publisher.publish(event["replyTo"], json.dumps({**told, "payload": {"text": HALF}}))

    ada = connect(process, "ada", "r1")
    for respond in (answer, lambda: None):  # the second time it is what Redis keeps of the first
        ada.send("asked:a:b", payload=1, id="one")
        respond()
        said = ada.expect("asked:a:b")
        assert (said["id"], said["payload"]) == ("one", {"text": WHOLE})
    page.request("asked:a:b", 1)
    answer()
    assert page.reports.expect("ack") == [{"text": WHOLE}]


def test_a_services_event_for_another_service(hear: Hear, redis_server: RedisServer, process: Gateway) -> None:
    heard, told = hear("events:echo"), hear("answers")
    sent = {"source": "asked", "eventType": "echo:a:b", "payload": {"text": HALF}}
    redis_server.client().xadd("events:gateway", {"event": json.dumps(sent)})
    assert json.loads(heard())["payload"] == {"text": WHOLE}
    for name in ("roomId", "userId", "id", "eventType"):
        bad = {**sent, "replyTo": "answers", name: f"echo:a:{HALF}"}
        redis_server.client().xadd("events:gateway", {"event": json.dumps(bad)})
        answer = json.loads(told())
        assert (answer["type"], answer["payload"]["code"]) == ("error", "INVALID_MESSAGE"), answer


def test_a_socketio_client_cuts_too(redis_server: RedisServer, page: SocketIOClient, service: StartService) -> None:
    service(redis_server, "events:echo")
    page.emit("echo:a:echo", {"text": HALF, "data": b"\x00\xff"})
    assert page.reports.expect("event", "echo:a:echo") == [{"text": WHOLE, "data": b"\x00\xff"}]
    page.request("echo:a:silent", HALF)
    assert page.reports.expect("ack") == [{"receivers": 1}]


REFUSED = [
    (r'{"type":"echo:a:\ud83d","payload":1,"id":7}', 7),
    (r'{"type":"echo:a:b","roomId":"\ud83d","id":7}', 7),
    (r'{"type":"echo:a:b","id":"\ud83d"}', None),
    (r'{"type":"echo:a:b","traceparent":"\ud83d","id":"q"}', "q"),
    (r'{"type":"join","payload":{"roomId":"\ud83d"},"id":7}', 7),
    (r'{"type":"leave","payload":{"roomId":"r\ude00"},"id":7}', 7),
    (r'{"type":"authenticate","payload":{"token":"\ud83d","roomId":"r1"},"id":7}', 7),
    (r'{"type":"authenticate","payload":{"token":"ada","roomId":"\ud83d"},"id":7}', 7),
    (r'{"type":"\ud83d","id":7}', 7),
]


def test_a_name_that_was_cut_is_refused(ada: Client) -> None:
    for text, request_id in REFUSED:
        ada.send_raw(text)
        refusal = ada.expect_error("INVALID_MESSAGE")
        assert refusal.get("id") == request_id, text
        assert "surrogate" in refusal["payload"]["message"]
        ada.expect_nothing()


def test_a_room_that_holds_the_replacement_is_a_room_like_others(ada: Client) -> None:
    ada.send("join", payload={"roomId": WHOLE}, id=1)
    assert ada.expect("joined")["payload"] == {"roomId": WHOLE}


def test_socketio_refuses_names_that_were_cut(page: SocketIOClient) -> None:
    for name, payload in (
        (f"echo:a:{HALF}", 1),
        ("join", {"roomId": HALF}),
        ("leave", {"roomId": HALF}),
        ("authenticate", {"token": HALF}),
        ("authenticate", {"token": "page", "roomId": HALF}),
    ):
        page.request(name, payload)
        (answer,) = page.reports.expect("ack")
        assert answer["error"]["code"] == "INVALID_MESSAGE"
        assert "surrogate" in answer["error"]["message"]
        page.emit(name, payload)
        (error,) = page.reports.expect("event", "error")
        assert error["code"] == "INVALID_MESSAGE"
        page.request("nobody:is:there")  # ten in a row would put it out
        page.reports.expect("ack")
    page.request("echo:a:b", 1)
    (answer,) = page.reports.expect("ack")  # it is still there
    assert answer["error"]["code"] == "SERVICE_UNAVAILABLE"


def test_a_service_cannot_name_what_it_cut(redis_server: RedisServer, ada: Client, process: Gateway) -> None:
    ada.send("join", payload={"roomId": WHOLE})
    ada.expect("joined")
    for message in (
        {"type": HALF, "roomId": "r1", "payload": 1},
        {"type": "a:b:c", "roomId": HALF, "payload": 1},
        {"type": "a:b:c", "payload": {"roomId": HALF}},
        {"type": "a:b:c", "recipients": [HALF], "payload": 1},
    ):
        redis_server.client().publish("events:broadcast", json.dumps(message))
    ada.expect_nothing_through(redis_server)
    process.wait_log("Ignored a malformed broadcast: half of a surrogate pair")


def test_the_auth_service_cuts_its_reason(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    auth_service.deny("no", f"cut {HALF}")
    auth_service.allow("who", HALF)
    process = gateway(redis_server, auth=auth_service.url)
    client = connect(process)
    client.send("authenticate", payload={"token": "who", "roomId": "r1"})
    client.expect_error("AUTH_UNAVAILABLE")
    client.send("authenticate", payload={"token": "no", "roomId": "r1"})
    assert client.expect_error("AUTH_FAILED")["payload"]["message"] == f"cut {WHOLE}"
    client.expect_close(4401)


def test_kraftek_js(process: Gateway, redis_server: RedisServer, service: StartService, stage: ExitStack) -> None:
    service(redis_server, "events:asked")
    node = Node()
    stage.callback(node.close)
    node.evaluate(
        f"""(async () => {{
            globalThis.client = kraftek.connect("{process.url}", {{ token: () => "ada", roomId: "r1" }});
            await new Promise((ready) => client.on("state", ({{ state }}) => state === "ready" && ready()));
        }})()"""
    )
    assert node.evaluate(r'client.request("asked:a:reply", "cut \ud83d")') == f"cut {WHOLE}"
    assert node.evaluate(r'client.join("\ud83d").then(() => "in", (error) => error.name)') == "TypeError"
    assert node.evaluate("client.rooms") == ["r1"]
    assert node.evaluate(r'client.request("asked:a:\ud83d").catch((error) => error.name)') == "TypeError"
    # A connection that comes back is not kept from being ready.
    node.evaluate("client.open()")
    assert node.evaluate('client.request("asked:a:reply", "again")') == "again"
