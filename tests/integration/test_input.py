"""Bad input of every kind: each gets its error, and the next good event on the same socket works."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as websocket_connect

from tests.integration.wire import Wire, handshake
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Connect, Gateway, RedisServer, Service, Shared, StartGateway

CHANNEL = "events:stickyNotes"


@pytest.fixture(scope="module")
def notes(of_module: Shared) -> Service:
    return of_module.service(of_module.redis_server, CHANNEL)


@pytest.fixture
def process(shared: Shared, notes: Service) -> Gateway:
    return shared.gateway(services={"stickyNotes": CHANNEL, "deaf": "events:deaf"})


@pytest.fixture
def ada(process: Gateway, connect: Connect) -> Client:
    return connect(process, token="ada", room="r1")


def works(client: Client) -> None:
    client.send("stickyNotes:note:echo", payload="good")
    assert client.expect("stickyNotes:note:echo")["payload"] == "good"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("", "truncated"),
        ("no json", "malformed"),
        ("[]", "Expected `object`, got `array`"),
        ("7", "Expected `object`, got `int`"),
        ("{}", "missing required field `type`"),
        ('{"type": 1}', "Expected `str`, got `int` - at `$.type`"),
        ('{"type": "stickyNotes:note:echo", "id": {}}', "`$.id`"),
        (json.dumps({"type": "stickyNotes:note:echo", "id": "x" * 65}), "`$.id`"),
        ('{"type": "stickyNotes:note:echo", "roomId": 5}', "`$.roomId`"),
        ('{"type": "join", "payload": {}}', "missing required field `roomId`"),
        ('{"type": "join"}', "payload of join"),
        ('{"type": "authenticate", "payload": {"token": 5}}', "`$.token`"),
        ('{"type": "stickyNotes:note:echo", "payload": ' + "[" * 20_000 + "]" * 20_000 + "}", "nested too deeply"),
        (b"\x00\x01", "expected a text message"),
    ],
)
def test_invalid_message(ada: Client, raw: str | bytes, says: str) -> None:
    ada.send_raw(raw)
    assert says in ada.expect_error("INVALID_MESSAGE")["payload"]["message"]
    works(ada)


@pytest.mark.parametrize(
    "name",
    ["", "x", "error", "a:b", "a:b:c:d", "stickyNotes::create", ":a:b", "stickyNotes:no te:create",
     "stickyNotes:note:cre\nate", "stickyNotes:note:" + "x" * 128, "unknown:note:create"],
)  # fmt: skip
def test_invalid_event(ada: Client, name: str) -> None:
    ada.send(name, payload={}, id=1)
    refusal = ada.expect_error("INVALID_EVENT")
    assert refusal["payload"] == {
        "code": "INVALID_EVENT",
        "message": "Event type is not valid or service is not registered",
        "eventType": name[:128],
    }
    assert refusal["id"] == 1
    works(ada)


def test_before_authenticate(process: Gateway, connect: Connect) -> None:
    client = connect(process)
    for name in ("stickyNotes:note:echo", "join", "leave"):
        client.send(name, payload={"roomId": "r1"}, id=name)
        assert client.expect_error("NOT_AUTHENTICATED")["id"] == name
    client.authenticate("ada", "r1")
    works(client)


def test_token_and_room_are_required_in_open_mode(process: Gateway, connect: Connect) -> None:
    for credentials in ({}, {"token": "ada"}, {"roomId": "r1"}):
        client = connect(process)
        client.send("authenticate", payload=credentials)
        assert client.expect_error("AUTH_FAILED")["payload"]["message"] == "Token and roomId required"
        client.expect_close(4401)


def test_nobody_listens(ada: Client) -> None:
    ada.send("deaf:note:create", payload={}, id=2)
    refusal = ada.expect_error("SERVICE_UNAVAILABLE")
    assert (refusal["id"], refusal["payload"]["eventType"]) == (2, "deaf:note:create")
    works(ada)


def test_other_users_token_on_the_same_socket(ada: Client) -> None:
    ada.send("authenticate", payload={"token": "bob", "roomId": "r1"})
    ada.expect_error("ACCESS_DENIED")
    works(ada)


def test_too_many_invalid_messages_in_a_row(ada: Client) -> None:
    for _ in range(9):
        ada.send_raw("x")
        ada.expect_error("INVALID_MESSAGE")
    works(ada)
    for _ in range(10):
        ada.send_raw("x")
        ada.expect_error("INVALID_MESSAGE")
    ada.expect_close(4400)


def test_too_big(ada: Client) -> None:
    ada.send_raw("x" * 65_537)
    ada.expect_close(1009)


def test_not_utf8(process: Gateway, connect: Connect) -> None:
    client = connect(process)
    client.connection.send(b'{"type": "\xff"}', text=True)
    client.expect_close(1007)


def test_authenticate_in_time(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    client = connect(gateway(redis_server, config={"limits": {"authenticate_timeout": 0.5}}))
    client.expect_error("AUTH_TIMEOUT")
    client.expect_close(4408)


def test_slow_consumer(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server, config={"limits": {"unsent_bytes": 100_000}})
    quick = connect(process, token="quick", room="r1")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", process.port))
        sock.sendall(
            b"GET /?token=slow&roomId=r1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        redis = redis_server.client()
        wait_until(lambda: "user_slow" in redis.hkeys("room:r1"), lambda: f"user_slow in {redis.hkeys('room:r1')}")
        message = json.dumps({"type": "big:big:big", "payload": {"roomId": "r1", "text": "x" * 60_000}})
        for _ in range(400):
            redis.publish("events:broadcast", message)
            quick.expect("big:big:big")
            if "user_slow" not in redis.hkeys("room:r1"):
                break
        else:
            pytest.fail("the slow client was kept")
    quick.expect_nothing_through(redis_server)


def test_connection_limits(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server, config={"limits": {"connections": 2}})
    connect(process)
    second = connect(process)
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as waiting:
        process.wait_log("All 2 connections that this process may have are taken")
        second.close()
        with websocket_connect(process.url, sock=waiting, compression=None, proxy=None) as third:
            assert json.loads(third.recv(10))["type"] == "connected"


def test_connections_per_address(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server, config={"limits": {"connections_per_address": 1}})
    first = connect(process)
    # On a bare socket: the answer comes at once, and websockets' client takes one that it has not asked for as a fault.
    with Wire(process.port) as refused:
        assert refused.response().status == 429
    first.close()

    def let_in() -> bool:
        with Wire(process.port) as wire:
            wire.send(handshake())
            return wire.response().status == 101

    wait_until(let_in, "a place")


def test_long_polling_counts_for_the_address_that_a_proxy_tells(
    redis_server: RedisServer, gateway: StartGateway
) -> None:
    process = gateway(redis_server, config={"forwarded_for": 1, "limits": {"connections_per_address": 1}})

    def poll(address: str) -> int:
        url = f"{process.http_url}socket.io/?EIO=4&transport=polling"
        request = urllib.request.Request(url, headers={"X-Forwarded-For": f"203.0.113.9, {address}"})
        try:
            with urllib.request.urlopen(request) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert [poll("192.0.2.1"), poll("192.0.2.1"), poll("192.0.2.2")] == [200, 429, 200]


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (["same-host"], None, True),
        (["same-host"], "http://127.0.0.1:{port}", True),
        (["same-host"], "http://evil.example", False),
        (["same-host"], "null", False),
        (["https://app.example.org"], "https://app.example.org", True),
        (["https://app.example.org"], "http://app.example.org", False),
        (["*.example.org"], "https://app.example.org", True),
        (["*.example.org"], "https://example.org.evil.example", False),
        (["*"], "http://evil.example", True),
    ],
)
def test_origins(shared: Shared, connect: Connect, origins: list[str], origin: str | None, allowed: bool) -> None:
    process = shared.gateway(config={"origins": origins})
    origin = origin and origin.format(port=process.port)
    if allowed:
        connect(process, origin=origin)
    else:
        with pytest.raises(InvalidStatus) as refused:
            connect(process, origin=origin)
        assert refused.value.response.status_code == 403


def test_unknown_subprotocol_is_refused(process: Gateway, connect: Connect) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(process, subprotocols=("mqtt",))
    assert refused.value.response.status_code == 400


def test_no_subprotocol_is_the_native_dialect(process: Gateway, connect: Connect) -> None:
    connect(process, subprotocols=(), token="ada", room="r1")


@pytest.mark.parametrize(
    "request_head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /?token=s3cr3t extra HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000,
    ],
)
def test_garbage_for_a_handshake(process: Gateway, ada: Client, request_head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as sock:
        sock.sendall(request_head)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 5"))
    assert b"s3cr3t" not in answer
    assert "s3cr3t" not in process.log()
    works(ada)
