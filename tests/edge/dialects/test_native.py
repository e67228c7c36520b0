"""The native dialect, ``kraftek.v1.json``: contract for clients, section 6."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.messages import (
    NULL,
    Ack,
    Admitted,
    Append,
    AskPresence,
    Authenticate,
    Authenticated,
    Cancel,
    Closing,
    Connected,
    Delivery,
    Drained,
    ErrorMessage,
    Event,
    Gap,
    History,
    HistoryPage,
    Inbound,
    Join,
    Joined,
    Leave,
    Left,
    Outbound,
    Outgoing,
    Place,
    Pong,
    Position,
    Positioned,
    Progress,
    Standing,
    Token,
)
from kraftek.contract.names import SUBPROTOCOL
from kraftek.edge.dialects.native import NativeDialect
from tests.edge.dialects.contract import JSON, SECRET, DialectContract, Wire, same


class TestNativeDialect(DialectContract):
    def make(self) -> NativeDialect:
        return NativeDialect()

    def examples(self) -> Sequence[tuple[Wire, Inbound]]:
        return [([(text.encode(), False)], message) for text, message in UNDERSTOOD]

    def mistakes(self) -> Sequence[Wire]:
        return [[(b"", False)], [(b'{"type":7}', False)], [(b'{"type":"join","payload":{"roomId":7}}', False)]]

    def delivered(self, outgoing: Outgoing) -> tuple[str, Any]:
        read = json.loads(outgoing.text)
        return read["type"], read["payload"]


UNDERSTOOD: list[tuple[str, Inbound]] = [
    (
        f'{{"type":"authenticate","payload":{{"token":"{SECRET}","roomId":"r"}},"id":1}}',
        Authenticate(Token(SECRET), "r", 1),
    ),
    (f'{{"type":"authenticate","payload":{{"token":"{SECRET}"}}}}', Authenticate(Token(SECRET))),
    (f'{{"type":"authenticate","payload":{{"token":"{SECRET}","roomId":null}}}}', Authenticate(Token(SECRET))),
    (f'{{"type":"authenticate","payload":{{"token":"{SECRET}"}},"roomId":"r"}}', Authenticate(Token(SECRET), "r")),
    ('{"type":"authenticate","payload":{}}', Authenticate(Token(""))),
    ('{"type":"join","payload":{"roomId":"r"}}', Join("r")),
    ('{"type":"join","payload":{"roomId":"комната 📝","more":1},"id":"q"}', Join("комната 📝", "q")),
    ('{"type":"join","payload":{"roomId":"r","history":5}}', Join("r", last=5)),
    ('{"type":"authenticate","payload":{"token":"","history":1000}}', Authenticate(Token(""), last=1000)),
    ('{"type":"leave","payload":{"roomId":"r"},"id":-5}', Leave("r", -5)),
    ('{"type":"history","payload":{"roomId":"r"},"id":1}', History("r", 50, id=1)),
    ('{"type":"history","payload":{"roomId":"r","limit":9,"socketIds":["s"]}}', History("r", 9, None, ("s",))),
    ('{"type":"presence","payload":{"roomId":"r","changes":false},"id":6}', AskPresence("r", 6, changes=False)),
    ('{"type":"cancel","id":"q"}', Cancel("q")),
    ('{"type":"a:b:c","id":1,"progress":true}', Event("a:b:c", id=1, progress=True)),
    ('{"type":"a:b:c","progress":{"run":"x","number":3,"more":1}}', Event("a:b:c", progress=Place("x", 3))),
    ('{"type":"cancel","id":1,"payload":{"eventType":"a:b:c","id":2}}', Cancel(1, "a:b:c")),
    ('{"type":"cancel","payload":{"eventType":"a:b:c"}}', Cancel(None, "a:b:c")),
    ('{"type":"a:b:c"}', Event("a:b:c")),
    (
        ' { "id" : "q" , "payload" : {"x": [1.50, 1e2 ,"\\u00e9"] } , "type" : "a:b:c" , "roomId" : "r" , "_":{} } ',
        Event("a:b:c", Raw(b'{"x": [1.50, 1e2 ,"\\u00e9"] }'), "q", "r"),
    ),
    ('{"type":"a:b:c","traceparent":"00-ab-cd-01"}', Event("a:b:c", NULL, None, None, "00-ab-cd-01")),
    ('{"type":"a:b:c","payload":null,"id":null,"roomId":null,"traceparent":null}', Event("a:b:c")),
    (f'{{"type":"a:b:c","id":{2**200}}}', Event("a:b:c", NULL, 2**200)),
    (f'{{"type":"a:b:c","id":"{"x" * 64}"}}', Event("a:b:c", NULL, "x" * 64)),
    # Names that nobody has registered are the router's to refuse.
    ('{"type":":::"}', Event(":::")),
    ('{"type":"","id":1}', Event("", NULL, 1)),
    ('{"type":"subscribe"}', Event("subscribe")),
    ('{"type":"connected"}', Event("connected")),
]


def refused(text: str | bytes, *, binary: bool = False) -> PeerError:
    with pytest.raises(PeerError) as caught:
        NativeDialect().received(text if isinstance(text, bytes) else text.encode(), binary)
    assert caught.value.code is Code.INVALID_MESSAGE
    assert not caught.value.closes
    return caught.value


# What is wrong, and that the client is told where.
REFUSED = [
    ("", "truncated"),
    (" ", "truncated"),
    ("{", "truncated"),
    ("nope", "byte 4"),
    ('{"type":"a:b:c"} {}', "byte 18"),
    ('{"type":"a:b:c",}', "byte 16"),
    ("{'type':'a:b:c'}", "byte 1"),
    ('{"type":"a:b:c","payload":01}', "byte 27"),
    ('{"type":"a:b:c","payload":"a\nb"}', "byte 28"),
    ('{"type":"a:b:c","payload":NaN}', "byte 26"),
    ('\ufeff{"type":"a:b:c"}', "byte 0"),
    ("null", "Expected `object`, got `null`"),
    ("5", "Expected `object`, got `int`"),
    ('"text"', "Expected `object`, got `str`"),
    ('[{"type":"a:b:c"}]', "Expected `object`, got `array`"),
    ("{}", "missing required field `type`"),
    ('{"payload":{}}', "missing required field `type`"),
    ('{"type":null}', "$.type"),
    ('{"type":7}', "$.type"),
    ('{"type":"a:b:c","id":1.5}', "$.id"),
    ('{"type":"a:b:c","id":true}', "$.id"),
    ('{"type":"a:b:c","id":{}}', "$.id"),
    (f'{{"type":"a:b:c","id":"{"x" * 65}"}}', "length <= 64 - at `$.id`"),
    (f'{{"type":"a:b:c","id":{"9" * 5000}}}', "$.id"),
    ('{"type":"a:b:c","roomId":5}', "$.roomId"),
    ('{"type":"a:b:c","roomId":""}', "length >= 1 - at `$.roomId`"),
    (f'{{"type":"a:b:c","roomId":"{"x" * 257}"}}', "length <= 256 - at `$.roomId`"),
    (f'{{"type":"a:b:c","traceparent":"{"x" * 129}"}}', "length <= 128 - at `$.traceparent`"),
    ('{"type":"a:b:\\ud800"}', "half of a surrogate pair"),
    ('{"type":"a:b:c","payload":"\\ud800","roomId":7}', "got `int` - at `$.roomId`"),
    (f'{{"type":"a:b:c","id":{10**64}}}', "Expected an integer of at most 64 characters - at `$.id`"),
    ('{"type":"authenticate"}', "payload of authenticate: Expected `object`, got `null`"),
    ('{"type":"authenticate","payload":"t"}', "payload of authenticate: Expected `object`, got `str`"),
    ('{"type":"authenticate","payload":{"token":5}}', "authenticate: Expected `str`, got `int` - at `$.token`"),
    ('{"type":"authenticate","payload":{"token":"t","roomId":""}}', "`$.roomId`"),
    (f'{{"type":"authenticate","payload":{{"token":"{"t" * 16385}"}}}}', "length <= 16384 - at `$.token`"),
    ('{"type":"join"}', "payload of join"),
    ('{"type":"join","roomId":"r"}', "payload of join"),
    ('{"type":"join","payload":{}}', "payload of join: Object missing required field `roomId`"),
    ('{"type":"join","payload":{"roomId":null}}', "payload of join: Expected `str`, got `null` - at `$.roomId`"),
    ('{"type":"join","payload":{"roomId":"r","history":0}}', "payload of join: Expected `int` >= 1 - at `$.history`"),
    ('{"type":"history","payload":{"roomId":"r","limit":1001}}', "payload of history: Expected `int` <= 1000 - at"),
    ('{"type":"leave","payload":["r"]}', "payload of leave: Expected `object`, got `array`"),
]


@pytest.mark.parametrize(("text", "where"), REFUSED)
def test_a_refusal_says_where(text: str, where: str) -> None:
    assert where in refused(text).message


def test_what_is_refused_in_a_payload_answers_its_request() -> None:
    assert refused('{"type":"join","payload":{},"id":"q"}').id == "q"
    assert refused('{"type":"authenticate","payload":5,"id":0}').id == 0


def test_a_binary_message_is_refused() -> None:
    assert refused(b'{"type":"a:b:c"}', binary=True).message == "expected a text message, found a binary one"


@pytest.mark.parametrize(
    "data",
    [b'{"type":"\xff:b:c"}', b'{"\xff":1,"type":"a:b:c","id":5.5}', b'{"type":"join","payload":{"roomId":"\xff"}}'],
)
def test_text_that_is_not_utf8_is_refused(data: bytes) -> None:
    # The transport refuses it before; the dialect does not depend on that where it reads.
    refused(data)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("type", ["a:b:c", "join", "authenticate"])
def test_deep_nesting_is_refused(opening: str, type: str) -> None:
    deep = opening * (60_000 // len(opening))
    assert "nested too deeply" in refused(f'{{"type":"{type}","payload":{deep}').message
    assert "nested too deeply" in refused(f'{{"type":"{type}","more":{deep}').message


def test_moderate_nesting_passes_through() -> None:
    payload = b"[" * 256 + b"]" * 256
    message = NativeDialect().received(b'{"type":"a:b:c","payload":' + payload + b"}", False)
    assert isinstance(message, Event)
    assert bytes(message.payload) == payload


def test_more_than_a_service_takes_is_refused() -> None:
    for payload in ("[" * 257 + "]" * 257, "1" * 1_001):
        refusal = refused(f'{{"type":"a:b:c","id":7,"payload":{payload}}}')
        assert refusal.id == 7


def test_half_a_character_in_a_payload_is_replaced() -> None:
    message = NativeDialect().received(rb'{"type":"a:b:c","payload":{"x":"\ud800", "n":1.50},"id":"q"}', False)
    assert same(message, Event("a:b:c", Raw(rb'{"x":"\ufffd", "n":1.50}'), "q"))
    message = NativeDialect().received(rb'{"type":"join","payload":{"roomId":"r","x":"\ud800"}}', False)
    assert same(message, Join("r"))


@given(JSON, st.sampled_from([None, 2]), st.booleans())
def test_a_payload_is_handed_on_byte_for_byte(value: Any, indent: int | None, ascii: bool) -> None:
    payload = json.dumps(value, indent=indent, ensure_ascii=ascii).encode()
    message = NativeDialect().received(b'{"type":"a:b:c","payload":' + payload + b',"id":1}', False)
    assert isinstance(message, Event)
    assert bytes(message.payload) == payload
    outgoing = NativeDialect().encode(Delivery("a:b:c", message.payload))
    assert outgoing is not None
    assert payload in outgoing.text


@pytest.mark.parametrize(
    "payload", [b"1.50", b"1E400", b"-0", b"123456789012345678901234567890", b'"\\u0041\\/"', b'{"b":1,"a":2,"b":3}']
)
def test_nothing_in_a_payload_is_made_nicer(payload: bytes) -> None:
    message = NativeDialect().received(b'{"type":"a:b:c","payload":' + payload + b"}", False)
    assert same(message, Event("a:b:c", Raw(payload)))


SAID: list[tuple[Outbound, str]] = [
    (Connected("g.1"), '{"type":"connected","payload":{"socketId":"g.1"}}'),
    (
        Authenticated("u", "r", 1),
        '{"type":"authenticated","payload":{"success":true,"userId":"u","roomId":"r"},"id":1}',
    ),
    (Authenticated("u", None), '{"type":"authenticated","payload":{"success":true,"userId":"u","roomId":null}}'),
    (Joined("r", "q"), '{"type":"joined","payload":{"roomId":"r"},"id":"q"}'),
    (
        Authenticated("u", "r", standing=Standing("e", 7)),
        '{"type":"authenticated","payload":{"success":true,"userId":"u","roomId":"r","epoch":"e","offset":7}}',
    ),
    (
        Joined("r", expires_in=1.5, standing=Standing("e", 0, recovered=True)),
        '{"type":"joined","payload":{"roomId":"r","expiresIn":1.5,"epoch":"e","offset":0,"recovered":true}}',
    ),
    (
        Positioned("r", Standing("e", 7, recovered=False, reason="epoch")),
        '{"type":"position","payload":{"epoch":"e","offset":7,"recovered":false,"reason":"epoch"},"roomId":"r"}',
    ),
    (Delivery("a:b:c", Raw(b"1"), "r", offset=8), '{"type":"a:b:c","payload":1,"roomId":"r","offset":8}'),
    (
        Delivery("a:b:c", Raw(b'"x"'), "r", offset=8, append=Append("k", 3, last=True)),
        '{"type":"a:b:c","payload":"x","roomId":"r","offset":8,"append":{"key":"k","from":3,"last":true}}',
    ),
    (
        HistoryPage("r", "e", [Delivery("a:b:c", Raw(b'"x"'), "r", offset=8, append=Append("k", 3))]),
        '{"type":"history","payload":{"roomId":"r","epoch":"e","messages":[{"type":"a:b:c","payload":"x","offset":8,"append":{"key":"k","from":3}}]}}',
    ),
    (
        HistoryPage("r", "e", [Delivery("a:b:c", Raw(b"1"), "r", offset=8)], Position("e", 8), 4),
        '{"type":"history","payload":{"roomId":"r","epoch":"e","messages":[{"type":"a:b:c","payload":1,"offset":8}],"before":{"epoch":"e","offset":8}},"id":4}',
    ),
    (HistoryPage("r", "e", []), '{"type":"history","payload":{"roomId":"r","epoch":"e","messages":[]}}'),
    (Left("r"), '{"type":"left","payload":{"roomId":"r"}}'),
    (Progress(1, Raw(b"[ 1]"), Place("x", 2)), '{"type":"progress","id":1,"payload":[ 1],"run":"x","number":2}'),
    (Drained(1.5), '{"type":"drain","payload":{"reconnectAfter":1.5}}'),
    (Pong(3), '{"type":"pong","payload":null,"id":3}'),
    (Gap({"r": {"a:*:*": 2}}), '{"type":"gap","payload":{"rooms":{"r":{"a:*:*":2}}}}'),
    (Ack(0, 2), '{"type":"ack","payload":{"receivers":2},"id":0}'),
    (
        ErrorMessage(Code.INVALID_EVENT, "No", "a:b", None, "q"),
        '{"type":"error","payload":{"code":"INVALID_EVENT","message":"No","eventType":"a:b"},"id":"q"}',
    ),
    (
        ErrorMessage(Code.AUTH_UNAVAILABLE, "Later", retry_after=1.5),
        '{"type":"error","payload":{"code":"AUTH_UNAVAILABLE","message":"Later","retryAfter":1.5}}',
    ),
    (
        ErrorMessage(Code.ACCESS_REVOKED, "Out", room_id="r"),
        '{"type":"error","payload":{"code":"ACCESS_REVOKED","message":"Out"},"roomId":"r"}',
    ),
    (Delivery("a:b:c", Raw(b'{"x": 1.0}')), '{"type":"a:b:c","payload":{"x": 1.0}}'),
    (Delivery("a:b:c"), '{"type":"a:b:c","payload":null}'),
    (Delivery("a:b:c", Raw(b"1"), "r", 7), '{"type":"a:b:c","payload":1,"id":7,"roomId":"r"}'),
    (Delivery("ж📝", Raw('"ж"'.encode())), '{"type":"ж📝","payload":"ж"}'),
]


@pytest.mark.parametrize(("message", "text"), SAID)
def test_what_we_say(message: Outbound, text: str) -> None:
    outgoing = NativeDialect().encode(message)
    assert outgoing is not None
    assert outgoing.text.decode() == text
    assert outgoing.attachments == ()


def test_every_message_to_a_client_is_among_them() -> None:
    assert {type(message) for message, _ in SAID} | {Closing, Admitted} == set(Outbound.__args__)


def test_the_close_code_says_it_all() -> None:
    assert NativeDialect().encode(Closing(4401)) is None


@given(st.integers(-(2**200), 2**200) | st.text(max_size=64))
def test_an_id_comes_back_as_it_was_given(id: int | str) -> None:
    message = NativeDialect().received(msgspec.json.encode({"type": "a:b:c", "id": id}), False)
    assert isinstance(message, Event)
    assert message.id == id
    assert message.id is not None
    outgoing = NativeDialect().encode(Ack(message.id, 1))
    assert outgoing is not None
    assert json.loads(outgoing.text)["id"] == id


def test_it_is_one_of_a_kind() -> None:
    assert NativeDialect().codec == SUBPROTOCOL == "kraftek.v1.json"
