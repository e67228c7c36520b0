"""Socket.IO against whatever may arrive: packets or a clean error, within bounds; and round trips."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from kraftek.contract.messages import Outgoing
from kraftek.edge.dialects.socketio_packets import (
    MAIN,
    MAX_ARGUMENTS,
    MAX_ATTACHMENTS,
    RESERVED_EVENTS,
    AckPacket,
    ConnectPacket,
    DisconnectPacket,
    EventPacket,
    SocketError,
    SocketSession,
    SocketSettings,
    decode_header,
    encode_ack,
    encode_event,
)

SETTINGS = SocketSettings(namespaces=frozenset((MAIN, "/é")), max_attachment_bytes=50)

NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.text(max_size=20).filter(lambda name: name not in RESERVED_EVENTS)
NAMESPACES = st.sampled_from([MAIN, "/é"])
ACK_IDS = st.integers(0, 10**16 - 1)

# Pieces that packets are made of, in any order, with noise between them.
PIECES = st.text(max_size=5) | st.sampled_from(
    [
        *("0", "1", "2", "3", "4", "5", "6", "51-", "52-", "50-", "63-", "12", "9" * 17),
        *("/é,", "/é", "/x,", ",", "[", "]", "{", "}", "\\", "\x00", "[" * 3000),
        *('"a"', '"connect"', '["a"]', '["a",1]', "{}", '{"_binary":"AQ=="}'),
        *('{"_placeholder":true,"num":0}', '{"num":1,"_placeholder":true}'),
    ]
)
TEXTS = st.binary(max_size=60) | st.lists(PIECES, max_size=8).map("".join).map(str.encode)
MESSAGES = st.lists(st.tuples(TEXTS, st.just(False)) | st.tuples(st.binary(), st.just(True)), max_size=8)


@given(MESSAGES, st.booleans())
def test_any_messages_give_packets_or_an_error(messages: list[tuple[bytes, bool]], connected: bool) -> None:
    client = SocketSession(SETTINGS)
    if connected:
        client.accept(MAIN, "sid")
    for data, binary in messages:
        try:
            packet = client.receive(data, binary)
        except SocketError:
            return  # a shell closes the connection
        match packet:
            case ConnectPacket():
                assert packet.namespace in SETTINGS.namespaces
                client.accept(packet.namespace, "sid")
            case Outgoing():
                assert packet.text.endswith(b'{"message":"Invalid namespace"}')
            case EventPacket():
                assert packet.name not in RESERVED_EVENTS
                check_args(packet.args)
            case AckPacket():
                check_args(packet.args)
            case DisconnectPacket():
                assert packet.namespace in SETTINGS.namespaces
            case None:
                pass


def check_args(args: tuple[Raw, ...]) -> None:
    """They are JSON, and few."""
    assert len(args) <= MAX_ARGUMENTS
    for arg in args:
        json.loads(bytes(arg).decode("utf-8", "replace"))


@given(st.one_of(TEXTS, st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_text_has_a_header_or_is_refused(text: bytes) -> None:
    try:
        header = decode_header(text)
    except SocketError:
        return
    assert text.endswith(header.payload)
    assert header.ack_id is None or 0 <= header.ack_id < 10**16


def strip(outgoing: Outgoing) -> bytes:
    assert outgoing.text[:1] == b"4"
    return outgoing.text[1:]


def connected_session(namespace: str = MAIN) -> SocketSession:
    client = SocketSession(SocketSettings(namespaces=SETTINGS.namespaces))
    client.accept(namespace, "sid")
    return client


@given(NAMES, st.lists(JSON, max_size=MAX_ARGUMENTS), st.none() | ACK_IDS, NAMESPACES)
def test_events_come_back_as_they_were(name: str, values: list[Any], ack_id: int | None, namespace: str) -> None:
    args = tuple(Raw(msgspec.json.encode(value)) for value in values)
    encoded = encode_event(name, *args, ack_id=ack_id, namespace=namespace)
    assert encoded.attachments == ()
    assert connected_session(namespace).receive(strip(encoded), False) == EventPacket(name, args, ack_id, namespace)


@given(st.lists(JSON, max_size=MAX_ARGUMENTS), ACK_IDS, NAMESPACES)
def test_acknowledgements_come_back_as_they_were(values: list[Any], ack_id: int, namespace: str) -> None:
    args = tuple(Raw(msgspec.json.encode(value)) for value in values)
    encoded = encode_ack(ack_id, *args, namespace=namespace)
    assert connected_session(namespace).receive(strip(encoded), False) == AckPacket(ack_id, args, namespace)


def shaped(value: Any, take: list[bytes]) -> Any:
    """The value with each ``bytes`` in the shape that the application sees; those are noted in ``take``."""
    match value:
        case bytes():
            take.append(value)
            return {"_binary": value}  # msgspec writes bytes as base64
        case list():
            return [shaped(item, take) for item in value]
        case dict():
            return {key: shaped(item, take) for key, item in value.items()}
        case _:
            return value


BINARY_VALUES = st.recursive(
    st.binary(max_size=20) | st.text(max_size=5) | st.integers(0, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=MAX_ATTACHMENTS,
)


@given(NAMES, BINARY_VALUES, st.none() | ACK_IDS)
def test_binary_events_come_back_as_they_were(name: str, value: Any, ack_id: int | None) -> None:
    buffers: list[bytes] = []
    arg = Raw(msgspec.json.encode(shaped(value, buffers)))
    encoded = encode_event(name, arg, ack_id=ack_id)
    assert list(encoded.attachments) == buffers
    client = connected_session()
    packet = client.receive(strip(encoded), False)
    for data in encoded.attachments:
        assert packet is None
        packet = client.receive(data, True)
    assert packet == EventPacket(name, (arg,), ack_id)


@given(JSON, st.booleans())
def test_any_payload_can_be_sent(value: Any, escape: bool) -> None:
    """Clients read what services send, and take no placeholder for ours that is not."""
    payload = json.dumps([value, {"_binary": "AQ=="}], ensure_ascii=escape).encode("utf-8", "replace")
    encoded = encode_event("a", payload)
    body = json.loads(strip(encoded)[strip(encoded).index(b"[") :].decode("utf-8", "replace"))
    if encoded.attachments:
        assert body[1][1] == {"_placeholder": True, "num": 0}
    else:
        assert body[1][1] == {"_binary": "AQ=="}
