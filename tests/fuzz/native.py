"""Messages of native clients: a payload is one JSON value within its bounds; a refusal is the client's fault."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.json_text import MAX_DIGITS
from kraftek.contract.messages import (
    HISTORY_LIMIT,
    ID_LENGTH,
    ROOM_ID_LENGTH,
    Acknowledge,
    AskPresence,
    Authenticate,
    Cancel,
    Delivery,
    ErrorMessage,
    Event,
    History,
    Inbound,
    Join,
    Leave,
    Ping,
    Position,
    RequestId,
    Since,
)
from kraftek.contract.settings import Limits
from kraftek.edge.dialects.native import NativeDialect
from tests.fuzz.material import NOT_JSON, depth, digits, json_in
from tests.fuzz.watch import Target

__all__ = ["TARGET", "check_id", "check_payload", "check_refusal", "check_room"]

_DEPTH = Limits().json_depth
_DIALECT = NativeDialect()
_NAMES: dict[type, str] = {AskPresence: "presence", Acknowledge: "receipt"}
_POSITION_LENGTH = 64
"""Characters of a position in a history, as a script of Redis is given it."""
_SOCKETS = 8
"""Ids that a client had before."""


def check_refusal(error: PeerError) -> None:
    """It says little, which is about what the client sent."""
    assert error.code is Code.INVALID_MESSAGE
    assert 0 < len(error.message) < 300, error.message
    error.message.encode()
    check_id(error.id)


def check_id(id: RequestId | None) -> None:
    """It is none, or as short as it may be."""
    assert id is None or len(str(id)) <= ID_LENGTH, id


def check_room(message: Join | Leave | Authenticate | History | AskPresence) -> None:
    """What it says of a room is within its bounds."""
    room_id = message.room_id
    assert room_id is None or 0 < len(room_id) <= ROOM_ID_LENGTH
    places: list[Position | None] = []
    match message:
        case Authenticate():
            places = [message.since, message.user_since]
            assert 0 <= message.last <= HISTORY_LIMIT
        case Join():
            places = [message.since]
            assert 0 <= message.last <= HISTORY_LIMIT
        case History():
            places = [message.before]
            assert 1 <= message.limit <= HISTORY_LIMIT
        case AskPresence():
            assert len(message.version or "") <= _POSITION_LENGTH
    for place in places:
        if place is not None:
            assert len(place.epoch) <= _POSITION_LENGTH
            assert 0 <= place.offset <= 2**53
            assert not isinstance(place, Since) or len(place.socket_ids) <= _SOCKETS


def check_payload(payload: Raw) -> Any:
    """The value of a payload that goes to a service, which any service can read."""
    value = json_in(bytes(payload))
    if value is not NOT_JSON:
        assert depth(value) <= _DEPTH
        assert digits(value) <= MAX_DIGITS
    return value


def _check_text(data: bytes, value: Any) -> None:
    """What it is read as. ``value``: what the text is by another reader."""
    message = _DIALECT.received(data, False)
    assert isinstance(message, Inbound)
    check_id(message.id)
    payload: Any = None
    if isinstance(message, Event):
        payload = check_payload(message.payload)
        room_id: str | None = message.room_id
        told = _DIALECT.encode(Delivery(message.name, message.payload, message.room_id, message.id))
        assert told is not None
        answer = json_in(told.text)
        if payload is not NOT_JSON:
            assert answer is not NOT_JSON
            assert (answer["type"], answer.get("payload")) == (message.name, payload)
            assert (answer.get("id"), answer.get("roomId")) == (message.id, message.room_id)
    elif isinstance(message, Join | Leave | Authenticate | History | AskPresence):
        room_id = message.room_id
        check_room(message)
        if isinstance(message, Authenticate) and len(message.token.value) > 8:
            assert message.token.value not in repr(message)
    else:
        assert isinstance(message, Ping | Cancel | Acknowledge)
        room_id = None
    assert len(room_id or "") <= ROOM_ID_LENGTH
    if value is NOT_JSON or b"\\ud" in data.lower():
        return
    # Both readers see the same.
    assert isinstance(value, dict)
    assert value.get("id") == message.id
    if isinstance(message, Event):
        assert value["type"] == message.name
        assert value.get("roomId") == message.room_id
        assert value.get("traceparent") == message.traceparent
        assert value.get("resent", False) is message.resent
        assert bool(value.get("progress", False)) is bool(message.progress)
        assert value.get("payload") == payload
    else:
        assert value["type"] == _NAMES.get(type(message), type(message).__name__.lower())


def _run(data: bytes) -> None:
    binary, data = sum(data[:1]) & 1, data[1:]
    text = data.decode("utf-8", "replace").encode()  # as the edge hands it in
    if binary:
        try:
            _DIALECT.received(data, True)
        except PeerError as error:
            check_refusal(error)
        else:
            raise AssertionError("a binary message means something")
        return
    for each in {data, text}:
        try:
            _check_text(each, json_in(each))
        except PeerError as error:
            check_refusal(error)
            refusal = ErrorMessage(error.code, error.message, error.event_type, error.retry_after, error.id)
            told = _DIALECT.encode(refusal)
            assert told is not None
            assert json_in(told.text) is not NOT_JSON


_SEEDS = [
    b"\0" + text
    for text in (
        b'{"type":"chat:note:add","payload":{"a":[1,2.5,"x",null,true]},"id":"q1","roomId":"red","resent":true}',
        b'{"type":"chat:note:add","id":7,"traceparent":"00-1-2-3"}',
        b' { "type" : "a:b:c" , "payload" : "\\ud83d" } ',
        b'{"type":"a:b:\\ud83d","payload":1}',
        b'{"type":"authenticate","payload":{"token":"t","roomId":"red"},"id":1}',
        b'{"type":"authenticate","roomId":"red","payload":{"token":"\\ud83dx"}}',
        b'{"type":"join","payload":{"roomId":"red"}}',
        b'{"type":"leave","payload":{"roomId":""}}',
        b'{"type":"join","payload":{"roomId":"red","since":{"epoch":"ab","offset":12,"socketIds":["gw.1"]},"history":9}}',
        b'{"type":"authenticate","payload":{"token":"t","roomId":"red","data":[1],"userSince":{"epoch":"","offset":0}}}',
        b'{"type":"history","payload":{"roomId":"red","limit":10,"before":{"epoch":"ab","offset":12}},"id":1}',
        b'{"type":"history","payload":{"roomId":"red","limit":1e999,"socketIds":[]},"id":2}',
        b'{"type":"presence","payload":{"roomId":"red","version":"ab-1","changes":false},"id":3}',
        b'{"type":"receipt","id":4}',
        b'{"type":"ping","id":"p"}',
        b'{"type":"cancel","id":"q1","payload":{"eventType":"chat:note:add"}}',
        b'{"type":"chat:bot:ask","id":7,"progress":{"run":"5be0","number":3}}',
        b'{"type":"unknown","id":-0}',
        b'{"type":5,"id":12}',
        b'{"id":12,"id":"q","type":[]}',
        b'{"type":"a:b:c","payload":' + 60 * b"[" + 60 * b"]" + b"}",
        b'{"type":"a:b:c","payload":' + 300 * b'[{"":' + b"1" + 300 * b"}]" + b"}",
        b'{"type":"a:b:c","payload":' + 1001 * b"1" + b"}",
        b'{"type":"a:b:c","payload":[' + 400 * b"1" + b"." + 400 * b"2" + b"e-" + 300 * b"3" + b"]}",
        b'{"type":"a:b:c","id":' + 65 * b"9" + b"}",
        b'{"type":"a:b:c","id":"' + 65 * b"x" + b'"}',
        b'{"type":"a:b:c","roomId":"' + 257 * b"x" + b'"}',
        b'{"type":"a:b:c","payload":"\xff"}',
        b'{"type":"a:b:c","payload":{"a":1,}}',
        b'{"type":"a:b:c","payload":NaN}',
        b'{"type":"a:b:c","payload":"\\u0000\\x"}',
        b"[",
        b"",
    )
]
_SEEDS.append(b'\1{"type":"a:b:c"}')

TARGET = Target("native", _run, _SEEDS, calls=(3_000, 100), memory=(500_000, 1_000))
