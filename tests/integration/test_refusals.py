"""A refusal says which message it is about, wherever that can be read; and what no service could take stops here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_socketio import NODE, SocketIOClient

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import Client, Connect, Gateway, RedisServer, Service, Shared, StartGateway

DEEP, DEEPER = 256, 257


@pytest.fixture(scope="module")
def echo(of_module: Shared) -> Service:
    return of_module.service(of_module.redis_server, "events:echo")


@pytest.fixture
def process(shared: Shared, echo: Service) -> Gateway:
    return shared.gateway(services={"echo": "events:echo"})


@pytest.fixture
def ada(process: Gateway, connect: Connect) -> Client:
    return connect(process, "ada", "r1")


def nested(depth: int) -> str:
    return '{"a":' * (depth - 1) + "[]" + "}" * (depth - 1)


NAMED = [
    ('{"type":"echo:a:b","roomId":5,"id":7}', 7, "`$.roomId`"),
    ('{"id":"seven","type":"echo:a:b","roomId":""}', "seven", "`$.roomId`"),
    ('{"type":"echo:a:b","roomId":"' + "r" * 257 + '","id":7}', 7, "`$.roomId`"),
    ('{"type":"echo:a:b","traceparent":1,"id":7}', 7, "`$.traceparent`"),
    ('{"type":"echo:a:b","traceparent":"' + "0" * 129 + '","id":7}', 7, "`$.traceparent`"),
    ('{"type":7,"id":7}', 7, "`$.type`"),
    ('{"id":7}', 7, "missing required field `type`"),
    ('{"type":"echo:a:b","payload":' + "[" * 20_000 + "]" * 20_000 + ',"id":7}', 7, "nested too deeply"),
    ('{"type":"echo:a:b","id":7,"payload":' + '{"id":' * 8_000, 7, "nested too deeply"),
    ('{"type":"join","payload":' + nested(1_500) + ',"id":"j"}', "j", "nested too deeply"),
    ('{"type":"echo:a:b","payload":{"id":1,"text":"\\"id\\":2"},"id":7,"roomId":0}', 7, "`$.roomId`"),
    ('{"type":"echo:a:b","more":{"x":[1]},"id": 7 ,"payload":[nope]}', 7, "malformed"),
    ('{"type":"echo:a:b","payload":{"x":nope},"id":7}', 7, "malformed"),
    ('{"type":"echo:a:b","payload":"\x01","id":-7}', -7, "malformed"),
    ('{"type":"echo:a:b","id":7,"payload":"tr', 7, "truncated"),
    ('{"type":"join","payload":"r1","id":7}', 7, "payload of join"),
    ('{"type":"leave","payload":{"roomId":null},"id":7}', 7, "payload of leave"),
    ('{"type":"authenticate","payload":{"token":"' + "t" * 16_385 + '"},"id":7}', 7, "payload of authenticate"),
    ('{"type":"echo:a:b","payload":' + "1" * 1_001 + ',"id":7}', 7, "digits"),
    ('{"type":"echo:a:b","payload":' + nested(DEEPER) + ',"id":7}', 7, "nested too deeply"),
]


def test_a_refusal_carries_the_id(ada: Client) -> None:
    for text, request_id, says in NAMED:
        ada.send_raw(text)
        refusal = ada.expect_error("INVALID_MESSAGE")
        assert refusal.get("id") == request_id, text
        assert says in refusal["payload"]["message"]
        ada.expect_nothing()


UNNAMED = [
    '{"type":"echo:a:b","id":{"id":7}}',
    '{"type":"echo:a:b","payload":{"id":7},"roomId":5}',
    '{"type":"echo:a:b","payload":{"id":7}',
    '["id",{"id":7}]',
    '{"type":"echo:a:b","id":7.5}',
    '{"type":"echo:a:b","id":"' + "x" * 65 + '"}',
    '{"type":"echo:a:b","payload":"\\"id\\":7,","roomId":5}',
]


def test_what_is_no_id_of_the_message_is_not_taken_for_one(ada: Client) -> None:
    for text in UNNAMED:
        ada.send_raw(text)
        assert "id" not in ada.expect_error("INVALID_MESSAGE"), text
        ada.expect_nothing()


def test_an_integer_id_of_any_usual_size_comes_back(ada: Client) -> None:
    for request_id in (2**53, 2**53 + 1, 2**64, -(2**80), int("9" * 64), 0):
        ada.send("echo:a:b", payload=1, id=request_id)
        assert ada.expect("ack")["id"] == request_id


def test_an_integer_id_is_bounded_as_a_string_is(ada: Client) -> None:
    for digits in (65, 400, 5_000, 60_000):
        for sign in ("", "-"):
            ada.send_raw(f'{{"type":"echo:a:b","payload":1,"id":{sign}{"9" * digits}}}')
            refusal = ada.expect_error("INVALID_MESSAGE")
            assert "id" not in refusal
        ada.expect_nothing()


ACCEPTED = [
    nested(DEEP),
    "[" * DEEP + "]" * DEEP,
    "[" + ",".join(["[[]]"] * 2_000) + "]",
    json.dumps("[" * 3_000),
    json.dumps('"[' * 3_000),
    json.dumps("\\" + "{" * 3_000),
    "9" * 1_000,
    "-" + "9" * 1_000,
    json.dumps("1" * 5_000),
    json.dumps(["\\", "1" * 5_000]),
    "[" + ",".join(["0.123456789"] * 3_000) + "]",
    json.dumps({"1" * 2_000: 1}),
]


def test_what_looks_like_too_much_is_taken(ada: Client) -> None:
    for payload in ACCEPTED:
        ada.send_raw(f'{{"type":"echo:a:b","payload":{payload},"id":7}}')
        assert ada.expect("ack")["id"] == 7


TOO_MUCH = [
    (nested(DEEPER), "256 levels"),
    ("[" * 900 + "]" * 900, "256 levels"),
    ("1" * 1_001, "1000 digits"),
    ("-0." + "1" * 1_000, "1000 digits"),
    ('{"text":"\\\\","n":[' + "1" * 5_000 + "]}", "1000 digits"),
    ("1e" + "0" * 1_000, "1000 digits"),
]


def test_what_would_end_a_service_does_not_reach_it(ada: Client) -> None:
    for payload, says in TOO_MUCH:
        ada.send_raw(f'{{"type":"echo:a:echo","payload":{payload},"id":7}}')
        refusal = ada.expect_error("INVALID_MESSAGE")
        assert refusal["id"] == 7
        assert says in refusal["payload"]["message"]
    ada.send("echo:a:echo", payload="the service lives")
    assert ada.expect("echo:a:echo")["payload"] == "the service lives"


def test_the_depth_is_configured(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server, services={"echo": "events:echo"}, config={"limits": {"json_depth": 3}})
    ada = connect(process, "ada", "r1")
    ada.send_raw('{"type":"echo:a:b","payload":[[[[]]]],"id":7}')
    assert "3 levels" in ada.expect_error("INVALID_MESSAGE")["payload"]["message"]
    ada.send_raw('{"type":"echo:a:b","payload":[[[]]],"id":7}')
    ada.expect_error("SERVICE_UNAVAILABLE")


@pytest.fixture
def page(process: Gateway, stage: ExitStack) -> SocketIOClient:
    client = SocketIOClient(NODE)
    stage.callback(client.close)
    client.connect(process.http_url, ["websocket"], {"token": "page", "roomId": "r1"})
    client.reports.expect("connect")
    client.reports.expect("event", "authenticated")
    return client


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_socketio_is_bounded_alike(page: SocketIOClient) -> None:
    page.request("echo:a:b", deep(DEEP))
    assert page.reports.expect("ack") == [{"receivers": 1}]
    for depth in (DEEPER, 900):
        page.request("echo:a:b", deep(depth))
        (answer,) = page.reports.expect("ack")
        assert answer["error"]["code"] == "INVALID_MESSAGE"
        assert "nested too deeply" in answer["error"]["message"]
    page.request("echo:a:b", 1)  # and nobody was put out
    assert page.reports.expect("ack") == [{"receivers": 1}]
