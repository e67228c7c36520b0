"""Both codecs against python-engineio's and python-socketio's packet classes: each reads the other's."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import msgspec
from engineio.packet import Packet as TheirEnginePacket
from engineio.payload import Payload as TheirPayload
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from socketio.packet import Packet as TheirPacket

from kraftek.contract.messages import Outgoing
from kraftek.edge.dialects.socketio_packets import (
    MAIN,
    MAX_ARGUMENTS,
    RESERVED_EVENTS,
    AckPacket,
    ConnectPacket,
    DisconnectPacket,
    EventPacket,
    SocketPacket,
    SocketSession,
    SocketSettings,
    decode_header,
    encode_ack,
    encode_connect_error,
    encode_event,
)
from kraftek.edge.dialects.socketio_packets import PacketKind as SocketPacketKind
from kraftek.edge.engineio.connection import EngineSession, EngineSettings
from kraftek.edge.engineio.packets import (
    Packet,
    PacketKind,
    decode_packet,
    decode_payload,
    encode_binary,
    encode_message,
    encode_payload,
)

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BINARY_JSON = st.recursive(
    SCALARS | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.text(max_size=20).filter(lambda name: name not in RESERVED_EVENTS)
NAMESPACES = st.sampled_from([MAIN, "/admin", "/é"])
# Theirs stops reading an id after 100 digits, ours after 16; JavaScript has no more than these.
ACK_IDS = st.integers(0, 2**53 - 1)
# Their engine packets turn text that is JSON into values: nothing that reads as such.
TEXTS = st.text(min_size=1).filter(lambda text: "\x1e" not in text and not text[0].isnumeric() and not is_json(text))
MESSAGES = st.lists(st.one_of(TEXTS, st.binary()), min_size=1, max_size=16)  # of more, theirs refuses to read a payload


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def ours(message: str | bytes) -> Outgoing:
    return encode_message(message.encode()) if isinstance(message, str) else encode_binary(message)


def as_packet(message: str | bytes) -> Packet:
    if isinstance(message, str):
        return Packet(PacketKind.MESSAGE, message.encode())
    return Packet(PacketKind.MESSAGE, message, True)


@given(MESSAGES)
def test_we_read_their_payloads(messages: list[str | bytes]) -> None:
    body = TheirPayload([TheirEnginePacket(4, message) for message in messages]).encode()
    assert [*decode_payload(body.encode())] == [as_packet(message) for message in messages]


@given(MESSAGES)
def test_they_read_our_payloads(messages: list[str | bytes]) -> None:
    body = encode_payload(ours(message) for message in messages)
    read = TheirPayload(encoded_payload=body.decode()).packets
    assert [(packet.packet_type, packet.data) for packet in read] == [(4, message) for message in messages]


def test_each_kind_of_packet_is_the_same_for_both() -> None:
    for number in range(7):
        assert decode_packet(TheirEnginePacket(number, "x").encode().encode()) == Packet(list(PacketKind)[number], b"x")
        assert TheirEnginePacket(encoded_packet=(list(PacketKind)[number].value + b"x").decode()).packet_type == number


def test_they_read_our_handshake() -> None:
    session = EngineSession("secret", EngineSettings(), 0.0, websocket=True)
    (packet,) = session.frames()
    read = TheirEnginePacket(encoded_packet=packet.text.decode())
    assert read.packet_type == 0
    assert read.data == {
        "sid": "secret",
        "upgrades": [],
        "pingInterval": 25_000,
        "pingTimeout": 20_000,
        "maxPayload": 1_000_000,
    }


def session(namespace: str) -> SocketSession:
    made = SocketSession(SocketSettings(namespaces=frozenset((MAIN, "/admin", "/é"))))
    made.accept(namespace, "sid")
    return made


def feed(client: SocketSession, theirs: TheirPacket) -> SocketPacket | Outgoing | None:
    """What we make of their packet."""
    encoded = theirs.encode()
    parts = encoded if isinstance(encoded, list) else [encoded]
    read = None
    for part in parts:
        assert read is None
        read = client.receive(part.encode(), False) if isinstance(part, str) else client.receive(part, True)
    return read


def decoded(args: tuple[Raw, ...]) -> list[Any]:
    return [json.loads(bytes(arg)) for arg in args]


def shaped(value: Any) -> Any:
    """The value with each ``bytes`` in our shape."""
    match value:
        case bytes():
            return {"_binary": b64encode(value).decode()}
        case list():
            return [shaped(item) for item in value]
        case dict():
            return {key: shaped(item) for key, item in value.items()}
        case _:
            return value


@given(NAMES, st.lists(BINARY_JSON, max_size=MAX_ARGUMENTS), st.none() | ACK_IDS, NAMESPACES)
def test_we_read_their_events(name: str, values: list[Any], ack_id: int | None, namespace: str) -> None:
    theirs = TheirPacket(2, [name, *values], namespace, ack_id)
    if len(theirs.deconstruct_binary(values)[1]) > 10:
        return
    packet = feed(session(namespace), theirs)
    assert isinstance(packet, EventPacket)
    assert (packet.name, packet.ack_id, packet.namespace) == (name, ack_id, namespace)
    assert decoded(packet.args) == shaped(values)


@given(st.lists(BINARY_JSON, max_size=5), ACK_IDS, NAMESPACES)
def test_we_read_their_acknowledgements(values: list[Any], ack_id: int, namespace: str) -> None:
    theirs = TheirPacket(3, values, namespace, ack_id)
    if len(theirs.deconstruct_binary(values)[1]) > 10:
        return
    packet = feed(session(namespace), theirs)
    assert isinstance(packet, AckPacket)
    assert (packet.ack_id, packet.namespace) == (ack_id, namespace)
    assert decoded(packet.args) == shaped(values)


def read_by_them(outgoing: Outgoing) -> TheirPacket:
    """What they make of our packet."""
    assert outgoing.text[:1] == b"4"
    packet = TheirPacket(encoded_packet=outgoing.text[1:].decode())
    done = not packet.attachment_count
    for data in outgoing.attachments:
        assert not done
        done = packet.add_attachment(data)
    assert done
    return packet


def args_of(values: list[Any]) -> list[bytes]:
    return [msgspec.json.encode(shaped(value)) for value in values]


@given(NAMES, st.lists(BINARY_JSON, max_size=3), st.none() | ACK_IDS, NAMESPACES)
def test_they_read_our_events(name: str, values: list[Any], ack_id: int | None, namespace: str) -> None:
    outgoing = encode_event(name, *args_of(values), ack_id=ack_id, namespace=namespace)
    if len(TheirPacket.deconstruct_binary(values)[1]) > 10:
        assert not outgoing.attachments
        return
    packet = read_by_them(outgoing)
    assert packet.packet_type == (5 if outgoing.attachments else 2)
    assert (packet.data, packet.id, packet.namespace or MAIN) == ([name, *values], ack_id, namespace)


@given(st.lists(BINARY_JSON, max_size=1), ACK_IDS, NAMESPACES)
def test_they_read_our_acknowledgements(values: list[Any], ack_id: int, namespace: str) -> None:
    outgoing = encode_ack(ack_id, *args_of(values), namespace=namespace)
    packet = read_by_them(outgoing)
    assert packet.packet_type == (6 if outgoing.attachments else 3)
    assert (packet.data, packet.id, packet.namespace or MAIN) == (values, ack_id, namespace)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3), NAMESPACES)
def test_they_connect(auth: dict[str, Any], namespace: str) -> None:
    client = SocketSession(SocketSettings(namespaces=frozenset((namespace,))))
    packet = feed(client, TheirPacket(0, auth, namespace))
    assert isinstance(packet, ConnectPacket)
    assert packet.auth is not None
    assert json.loads(bytes(packet.auth)) == auth
    answer = read_by_them(client.accept(namespace, "sid"))
    assert (answer.packet_type, answer.namespace or MAIN, answer.data) == (0, namespace, {"sid": "sid"})


def test_they_read_our_refusals_and_farewells() -> None:
    refusal = read_by_them(encode_connect_error("/admin", "no"))
    assert (refusal.packet_type, refusal.namespace, refusal.data) == (4, "/admin", {"message": "no"})
    farewell = read_by_them(session("/admin").disconnect("/admin"))
    assert (farewell.packet_type, farewell.namespace, farewell.data) == (1, "/admin", None)
    assert feed(session("/admin"), TheirPacket(1, namespace="/admin")) == DisconnectPacket("/admin")


DATA = st.lists(JSON, min_size=1, max_size=3)


@given(st.sampled_from(list(SocketPacketKind)), st.integers(0, 99), NAMESPACES, st.none() | ACK_IDS, DATA)
def test_both_take_a_header_apart_alike(
    kind: SocketPacketKind, attachments: int, namespace: str, ack_id: int | None, data: list[Any]
) -> None:
    binary = kind in (SocketPacketKind.BINARY_EVENT, SocketPacketKind.BINARY_ACK)
    if kind in (SocketPacketKind.CONNECT, SocketPacketKind.DISCONNECT, SocketPacketKind.CONNECT_ERROR):
        ack_id = None
    text = (
        f"{kind.value}{f'{attachments}-' if binary else ''}{'' if namespace == MAIN else namespace + ','}"
        f"{'' if ack_id is None else ack_id}{json.dumps(data)}"
    )
    theirs = TheirPacket(encoded_packet=text)
    header = decode_header(text.encode())
    assert (header.kind, header.namespace, header.ack_id) == (
        theirs.packet_type,
        theirs.namespace or MAIN,
        theirs.id,
    )
    assert header.attachments == theirs.attachment_count == (attachments if binary else 0)
    assert json.loads(header.payload) == theirs.data
