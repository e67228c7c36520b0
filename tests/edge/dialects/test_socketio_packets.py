"""Socket.IO by itself: packets, and what a client's session makes of the messages that Engine.IO carries."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from kraftek.contract.messages import Outgoing
from kraftek.edge.dialects.socketio_packets import (
    MAIN,
    MAX_ARGUMENTS,
    MAX_ATTACHMENTS,
    MAX_NAMESPACE,
    RESERVED_EVENTS,
    AckPacket,
    ConnectPacket,
    DisconnectPacket,
    EventPacket,
    Header,
    PacketKind,
    SocketError,
    SocketSession,
    SocketSettings,
    decode_header,
    encode_ack,
    encode_connect_error,
    encode_event,
)


def session(*namespaces: str, **settings: Any) -> SocketSession:
    """A session in these namespaces, out of ``/`` and ``/custom``."""
    made = SocketSession(SocketSettings(namespaces=frozenset((MAIN, "/custom")), **settings))
    for namespace in namespaces:
        made.receive(b"0" + namespace.encode(), False)
        made.accept(namespace, "sid")
    return made


def args(packet: object) -> list[str]:
    assert isinstance(packet, EventPacket | AckPacket)
    return [bytes(arg).decode() for arg in packet.args]


def wire(outgoing: object) -> tuple[str, ...]:
    assert isinstance(outgoing, Outgoing)
    return outgoing.text.decode(), *(data.hex() for data in outgoing.attachments)


# Headers.


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("0", (PacketKind.CONNECT, 0, "/", None, b"")),
        ('0{"token":"123"}', (PacketKind.CONNECT, 0, "/", None, b'{"token":"123"}')),
        ("0/custom", (PacketKind.CONNECT, 0, "/custom", None, b"")),
        ("0/custom,", (PacketKind.CONNECT, 0, "/custom", None, b"")),
        ('0/é,{"a":1}', (PacketKind.CONNECT, 0, "/é", None, b'{"a":1}')),
        ("1", (PacketKind.DISCONNECT, 0, "/", None, b"")),
        ("1/admin,", (PacketKind.DISCONNECT, 0, "/admin", None, b"")),
        ('2["foo"]', (PacketKind.EVENT, 0, "/", None, b'["foo"]')),
        ('212["foo"]', (PacketKind.EVENT, 0, "/", 12, b'["foo"]')),
        ('2/,12["foo"]', (PacketKind.EVENT, 0, "/", 12, b'["foo"]')),
        ('3/admin,13["bar"]', (PacketKind.ACK, 0, "/admin", 13, b'["bar"]')),
        (
            '4{"message":"Not authorized"}',
            (PacketKind.CONNECT_ERROR, 0, "/", None, b'{"message":"Not authorized"}'),
        ),
        ('51-["baz",1]', (PacketKind.BINARY_EVENT, 1, "/", None, b'["baz",1]')),
        ('52-/admin,["baz"]', (PacketKind.BINARY_EVENT, 2, "/admin", None, b'["baz"]')),
        ('61-15["bar"]', (PacketKind.BINARY_ACK, 1, "/", 15, b'["bar"]')),
        ("29007199254740991[]", (PacketKind.EVENT, 0, "/", 9_007_199_254_740_991, b"[]")),
        ("212345678901234567[]", (PacketKind.EVENT, 0, "/", 1_234_567_890_123_456, b"7[]")),
        ("0/" + "x" * 255, (PacketKind.CONNECT, 0, "/" + "x" * 255, None, b"")),
    ],
)
def test_takes_a_header_apart(text: str, header: tuple[Any, ...]) -> None:
    assert decode_header(text.encode()) == Header(*header)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "a packet of no known kind"),
        (b"abc", "a packet of no known kind"),
        (b"7", "a packet of no known kind"),
        (b"\xff", "a packet of no known kind"),
        (b'5["foo"]', "BINARY_EVENT and its number of attachments do not fit"),
        (b'5-["foo"]', "BINARY_EVENT and its number of attachments do not fit"),
        (b'51234567890-["foo"]', "BINARY_EVENT and its number of attachments do not fit"),
        (b'6/admin,1["foo"]', "BINARY_ACK and its number of attachments do not fit"),
        (b'21-["foo"]', "EVENT and its number of attachments do not fit"),
        (b"01", "CONNECT with an acknowledgement id"),
        (b"1/a,12", "DISCONNECT with an acknowledgement id"),
        (b"0/" + b"x" * MAX_NAMESPACE, "a namespace of 257 bytes"),
        (b"0/\xff,", "a namespace that is not UTF-8"),
    ],
)
def test_refuses_a_header(text: bytes, why: str) -> None:
    with pytest.raises(SocketError) as caught:
        decode_header(text)
    assert str(caught.value) == why


# Connecting.


def test_connects_to_the_main_namespace() -> None:
    client = session()
    assert not client.connected
    assert client.receive(b"0", False) == ConnectPacket("/", None)
    assert wire(client.accept("/", "wZX3oN0bSVIhsaknAAAI")) == ('40{"sid":"wZX3oN0bSVIhsaknAAAI"}',)
    assert client.connected


def test_connects_with_a_payload_that_is_not_shown() -> None:
    client = session()
    packet = client.receive(b'0{"token":"S3CRET"}', False)
    assert packet == ConnectPacket("/", Raw(b'{"token":"S3CRET"}'))
    assert "S3CRET" not in repr(packet)


def test_connects_to_another_namespace_besides() -> None:
    client = session("/")
    assert client.receive(b'0/custom,{"token":"abc"}', False) == ConnectPacket("/custom", Raw(b'{"token":"abc"}'))
    assert wire(client.accept("/custom", "x")) == ('40/custom,{"sid":"x"}',)
    assert client.receive(b'2/custom,["a",1]', False) == EventPacket("a", (Raw(b"1"),), None, "/custom")
    assert client.receive(b"1/custom", False) == DisconnectPacket("/custom")
    assert client.receive(b'2["a",1]', False) == EventPacket("a", (Raw(b"1"),))


def test_only_the_main_namespace_exists_unless_told() -> None:
    client = SocketSession(SocketSettings())
    assert wire(client.receive(b"0/random", False)) == ('44/random,{"message":"Invalid namespace"}',)
    assert wire(client.receive(b"0/custom,{}", False)) == ('44/custom,{"message":"Invalid namespace"}',)
    assert wire(client.receive(b"0/custom,[", False)) == ('44/custom,{"message":"Invalid namespace"}',)
    assert not client.connected
    assert client.receive(b"0", False) == ConnectPacket("/")


def test_nothing_is_made_of_what_is_shown_with_a_connection() -> None:
    """A megabyte of keys, each a string of its own, took 31 ms."""
    data = b"0{" + b",".join(b'"%x":1' % key for key in range(10_000)) + b"}"
    client = SocketSession(SocketSettings())
    tracemalloc.start()
    try:
        packet = client.receive(data, False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert packet == ConnectPacket("/", Raw(data[1:]))
    assert peak < 3 * len(data)


@pytest.mark.parametrize("auth", [b"[]", b'"x"', b"1", b"null", b'{"a":1', b'{"a":1}}', b"{1:1}", b'{"a":nope}'])
def test_what_is_shown_with_a_connection_is_an_object(auth: bytes) -> None:
    with pytest.raises(SocketError) as caught:
        SocketSession(SocketSettings()).receive(b"0" + auth, False)
    assert caught.value.closes


def test_refuses_a_connection_with_words_of_the_application() -> None:
    assert wire(encode_connect_error("/", "Not «authorized»")) == ('44{"message":"Not «authorized»"}',)


@pytest.mark.parametrize("payload", ["[]", '"a"', "1", "null", "{", "{}x", '{"a":' + "[" * 100_000, "x"])
def test_refuses_a_malformed_connect(payload: str) -> None:
    with pytest.raises(SocketError) as refused:
        session().receive(b"0" + payload.encode(), False)
    # Whoever is in no namespace is told nothing else, and would wait.
    assert refused.value.closes


def test_refuses_to_connect_twice() -> None:
    with pytest.raises(SocketError, match="a second CONNECT to the same namespace"):
        session("/").receive(b"0", False)


@pytest.mark.parametrize("text", ['2["a",1]', '212["a",1]', '3/custom,1["a"]', "1", '51-["a"]', "4{}", '2/other,["a"]'])
def test_refuses_what_comes_before_a_connect(text: str) -> None:
    with pytest.raises(SocketError, match="in a namespace that the client is not in"):
        session().receive(text.encode(), False)


# Leaving.


def test_the_client_leaves() -> None:
    client = session("/")
    assert client.receive(b"1", False) == DisconnectPacket("/")
    assert not client.connected
    with pytest.raises(SocketError):
        client.receive(b'2["a"]', False)


def test_the_client_may_come_back() -> None:
    client = session("/")
    client.receive(b"1", False)
    assert client.receive(b"0", False) == ConnectPacket("/")


def test_we_put_the_client_out() -> None:
    client = session("/", "/custom")
    assert wire(client.disconnect()) == ("41",)
    assert wire(client.disconnect("/custom")) == ("41/custom,",)
    assert not client.connected


@pytest.mark.parametrize("text", ["1{}", "1[]", '4{"message":"no"}', "4"])
def test_refuses_a_packet_that_clients_do_not_send(text: str) -> None:
    with pytest.raises(SocketError, match="a malformed"):
        session("/").receive(text.encode(), False)


# Events and acknowledgements.


@pytest.mark.parametrize(
    ("text", "name", "arguments", "ack_id"),
    [
        ('2["stickyNotes:note:create",{"text":"hi"}]', "stickyNotes:note:create", ['{"text":"hi"}'], None),
        ('2["a"]', "a", [], None),
        ('2["", null]', "", ["null"], None),
        ('2["message",1,"2",{"3":[true]}]', "message", ["1", '"2"', '{"3":[true]}'], None),
        (
            '2[ "a" , { "x" : 1.50 , "y" : 1234567890123 } ]',
            "a",
            ['{ "x" : 1.50 , "y" : 1234567890123 }'],
            None,
        ),
        ('2456["message-with-ack",1]', "message-with-ack", ["1"], 456),
        ('20["a"]', "a", [], 0),
        ('2["😀\\u0041",  "ж"]', "😀A", ['"ж"'], None),
        ("2[7,1]", "7", ["1"], None),
        ('2["a",{"_placeholder":true,"num":0}]', "a", ['{"_placeholder":true,"num":0}'], None),
        (f'2["a",{",".join("0" * MAX_ARGUMENTS)}]', "a", ["0"] * MAX_ARGUMENTS, None),
    ],
)
def test_receives_an_event(text: str, name: str, arguments: list[str], ack_id: int | None) -> None:
    packet = session("/").receive(text.encode(), False)
    assert isinstance(packet, EventPacket)
    assert (packet.name, args(packet), packet.ack_id, packet.namespace) == (name, arguments, ack_id, "/")


@pytest.mark.parametrize(
    "text",
    [
        "2",
        "2{}",
        "2[]",
        "2[null]",
        "2[true]",
        "2[{}]",
        '2["a"',
        '2["a",]',
        '2["a"]x',
        '2["a",nul]',
        '2abc["message-with-ack",1,"2",{"3":[false]}]',
        '212345678901234567["a"]',
        '2-1["a"]',
        '2["a\\ud800]',
        '2["a",' + "[" * 100_000 + "]" * 100_000 + "]",
        f'2["a",{",".join("0" * (MAX_ARGUMENTS + 1))}]',
        "2[" + "9" * 5000 + "]",
        *(f'2["{name}"]' for name in sorted(RESERVED_EVENTS)),
        '2["connect",1]',
    ],
)
def test_refuses_a_malformed_event(text: str) -> None:
    with pytest.raises(SocketError):
        session("/").receive(text.encode(), False)


def test_refuses_a_name_that_is_not_utf8() -> None:
    with pytest.raises(SocketError, match=r"(?i)utf-8"):
        session("/").receive(b'2["\xff",1]', False)


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (r'"cut \ud83d"', r'"cut \ufffd"'),
        (r'"\uDE00 cut"', r'"\ufffd cut"'),
        (r'["\ud83d\ud83d\ude00"]', r'["\ufffd\ud83d\ude00"]'),
        (r'["\ude00\ud83d", "\\ud83d", "\n\u0416"]', r'["\ufffd\ufffd", "\\ud83d", "\n\u0416"]'),
    ],
)
def test_half_an_emoji_becomes_a_replacement_character(sent: str, received: str) -> None:
    client = session("/")
    assert args(client.receive(f'2["a",{sent}]'.encode(), False)) == [received]
    assert args(client.receive(f"31[1,{sent}]".encode(), False)) == ["1", received]
    packet = client.receive(f'0/custom,{{"a":{sent}}}'.encode(), False)
    assert isinstance(packet, ConnectPacket)
    assert packet.auth == Raw(f'{{"a":{received}}}'.encode())


def test_says_that_json_is_nested_too_deeply() -> None:
    with pytest.raises(SocketError, match="JSON is nested too deeply"):
        session("/").receive(b'2["a",' + b"[" * 100_000, False)


def test_receives_an_acknowledgement() -> None:
    packet = session("/").receive(b'312[1,"2",{"3":[false]}]', False)
    assert isinstance(packet, AckPacket)
    assert (packet.ack_id, args(packet), packet.namespace) == (12, ["1", '"2"', '{"3":[false]}'], "/")
    assert session("/custom").receive(b"3/custom,13[]", False) == AckPacket(13, (), "/custom")


@pytest.mark.parametrize("text", ["3[1]", "312", "312{}", "312null", "312[", "3[]", f"31[{'0,' * MAX_ARGUMENTS}0]"])
def test_refuses_a_malformed_acknowledgement(text: str) -> None:
    with pytest.raises(SocketError):
        session("/").receive(text.encode(), False)


def test_encodes_events() -> None:
    payload = Raw(b'{"text": "\xf0\x9f\x98\x80"}')
    assert wire(encode_event("notes:note:created", payload)) == ('42["notes:note:created",{"text": "😀"}]',)
    assert wire(encode_event("a")) == ('42["a"]',)
    assert wire(encode_event('"\n', b"1", b"2")) == ('42["\\"\\n",1,2]',)
    assert wire(encode_event("a", b"1", ack_id=0, namespace="/custom")) == ('42/custom,0["a",1]',)


def test_encodes_acknowledgements() -> None:
    assert wire(encode_ack(456, b"1", b'"2"', b'{"3":[false]}')) == ('43456[1,"2",{"3":[false]}]',)
    assert wire(encode_ack(13, namespace="/admin")) == ("43/admin,13[]",)


@pytest.mark.parametrize("name", sorted(RESERVED_EVENTS))
def test_encodes_no_event_with_a_reserved_name(name: str) -> None:
    with pytest.raises(ValueError, match="is a reserved event name"):
        encode_event(name, b"1")


# Binary.


def test_receives_a_binary_event() -> None:
    client = session("/")
    text = b'52-["message",{"_placeholder":true,"num":0},{"a":[{ "num" : 1, "_placeholder" : true }], "b": 1.0}]'
    assert client.receive(text, False) is None
    assert client.receive(b"\x01\x02\x03", True) is None
    packet = client.receive(b"\xff\xff\xff", True)
    assert isinstance(packet, EventPacket)
    assert (packet.name, packet.ack_id) == ("message", None)
    assert args(packet) == ['{"_binary":"AQID"}', '{"a":[{"_binary":"////"}], "b": 1.0}']
    assert client.receive(b'2["next"]', False) == EventPacket("next")


def test_receives_a_binary_event_that_wants_an_acknowledgement() -> None:
    client = session("/", "/custom")
    assert client.receive(b'51-/custom,789["a",{"_placeholder":true,"num":0}]', False) is None
    packet = client.receive(b"", True)
    assert isinstance(packet, EventPacket)
    assert (packet.name, packet.ack_id, packet.namespace, args(packet)) == (
        "a",
        789,
        "/custom",
        ['{"_binary":""}'],
    )


def test_receives_a_binary_acknowledgement() -> None:
    client = session("/")
    assert client.receive(b'61-15["bar",{"_placeholder":true,"num":0}]', False) is None
    packet = client.receive(b"\x01\x02\x03\x04", True)
    assert isinstance(packet, AckPacket)
    assert (packet.ack_id, args(packet)) == (15, ['"bar"', '{"_binary":"AQIDBA=="}'])


def test_receives_a_binary_event_without_attachments() -> None:
    client = session("/")
    assert client.receive(b'50-["a",1]', False) == EventPacket("a", (Raw(b"1"),))
    assert client.receive(b'2["next"]', False) == EventPacket("next")


def test_a_string_that_looks_like_a_placeholder_is_a_string() -> None:
    client = session("/")
    looks = msgspec.json.encode('{"_placeholder":true,"num":0}')
    assert client.receive(b'51-["a",%b,{"_placeholder":true,"num":0}]' % looks, False) is None
    assert args(client.receive(b"\x00", True)) == [looks.decode(), '{"_binary":"AA=="}']


@pytest.mark.parametrize(
    "text",
    [
        '51-["a"]',
        '51-["a",{"_placeholder":true,"num":1}]',
        '51-["a",{"_placeholder":true,"num":-1}]',
        '51-["a",{"_placeholder":true,"num":99999}]',
        '51-["a",{"_placeholder":true}]',
        '51-["a",{"_placeholder":false,"num":0}]',
        '51-["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]',
        '52-["a",{"_placeholder":true,"num":0}]',
        '50-["a",{"_placeholder":true,"num":0}]',
        f"5{MAX_ATTACHMENTS + 1}-[{','.join(['0'] * 11)}]",
        '5999999999-["a"]',
        '51-["disconnect",{"_placeholder":true,"num":0}]',
        '51-{"_placeholder":true,"num":0}',
        '61-[{"_placeholder":true,"num":0}]',
        '51-["a",{"_placeholder":true,"num":0}',
    ],
)
def test_refuses_a_malformed_binary_packet(text: str) -> None:
    with pytest.raises(SocketError):
        session("/").receive(text.encode(), False)


def test_refuses_text_where_an_attachment_is_awaited() -> None:
    client = session("/")
    client.receive(b'51-["a",{"_placeholder":true,"num":0}]', False)
    with pytest.raises(SocketError, match="a packet where an attachment was awaited"):
        client.receive(b'2["b"]', False)


def test_refuses_an_attachment_to_nothing() -> None:
    with pytest.raises(SocketError, match="an attachment to nothing"):
        session("/").receive(b"\x00", True)


def test_attachments_have_a_bound_in_number_and_bytes() -> None:
    client = session("/", max_attachment_bytes=4)
    two = b'52-["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
    assert client.receive(two, False) is None
    assert client.receive(b"\x00" * 2, True) is None
    assert isinstance(client.receive(b"\x00" * 2, True), EventPacket)
    client.receive(two, False)
    client.receive(b"\x00" * 2, True)
    with pytest.raises(SocketError, match="attachments are too big"):
        client.receive(b"\x00" * 3, True)
    for number in (MAX_ATTACHMENTS, MAX_ATTACHMENTS + 1):
        places = b"".join(b',{"_placeholder":true,"num":%d}' % place for place in range(number))
        packet = b'5%d-["a"%b]' % (number, places)
        if number == MAX_ATTACHMENTS:
            assert session("/").receive(packet, False) is None
        else:
            with pytest.raises(SocketError, match="11 attachments"):
                session("/").receive(packet, False)


def test_encodes_a_binary_event() -> None:
    payload = rb'{"file": {"_binary": "AQID"}, "n": 1.50, "all": [{"_binary":"\/\/8\u003d"}, {"_binary" : "" }]}'
    one, two, three = (f'{{"_placeholder":true,"num":{number}}}' for number in range(3))
    assert wire(encode_event("a", Raw(payload))) == (
        f'453-["a",{{"file": {one}, "n": 1.50, "all": [{two}, {three}]}}]',
        "010203",
        "ffff",
        "",
    )


def test_encodes_binary_where_the_payload_itself_is_binary() -> None:
    assert wire(encode_event("a", b'{"_binary":"AQ=="}', ack_id=3)) == (
        '451-3["a",{"_placeholder":true,"num":0}]',
        "01",
    )
    assert wire(encode_ack(789, b'{"_binary":"AQ=="}', b"1", namespace="/custom")) == (
        '461-/custom,789[{"_placeholder":true,"num":0},1]',
        "01",
    )


@pytest.mark.parametrize(
    "payload",
    [
        '{"_binary":"not base64"}',
        '{"_binary":"AQ"}',
        '{"_binary":1}',
        '{"_binary":null}',
        '{"_binary":"AQ==","more":1}',
        '{"more":1,"_binary":"AQ=="}',
        '["_binary","AQ=="]',
        '{"x":"_binary"}',
        msgspec.json.encode('{"_binary":"AQ=="}').decode(),
        "[" + ",".join(['{"_binary":"."}', '{"_binary":""}'] * MAX_ATTACHMENTS) + "]",
        # Too many for the reference client.
        "[" + ",".join(['{"_binary":"AQ=="}'] * (MAX_ATTACHMENTS + 1)) + "]",
        # A client would take these placeholders for ours, find no attachment to them, and disconnect.
        '[{"_binary":"AQ=="},{"_placeholder":true,"num":7}]',
        '[{"_binary":"AQ=="},{"\\u005fplaceholder":true,"num":7}]',
        '[{"_binary":"AQ=="},{"_\\u0070laceholder":true,"num":7}]',
    ],
)
def test_what_is_no_attachment_stays_as_it_is(payload: str) -> None:
    assert wire(encode_event("a", payload.encode())) == (f'42["a",{payload}]',)


def test_what_is_not_utf8_is_no_attachment_either() -> None:
    assert encode_event("a", b'{"_binary":"\xff"}').text == b'42["a",{"_binary":"\xff"}]'


def test_escaped_cyrillic_beside_an_attachment_is_no_obstacle() -> None:
    assert wire(encode_event("a", b'["\\u0416",{"_binary":"AQ=="}]')) == (
        '451-["a",["\\u0416",{"_placeholder":true,"num":0}]]',
        "01",
    )


def test_as_many_attachments_as_clients_accept() -> None:
    payload = b"[" + b",".join([b'{"_binary":"AQ=="}'] * MAX_ATTACHMENTS) + b"]"
    assert wire(encode_event("a", payload))[1:] == ("01",) * MAX_ATTACHMENTS


def test_the_sample_session_of_the_protocol() -> None:
    client = session()
    assert client.receive(b"0", False) == ConnectPacket("/")
    client.accept("/", "wZX3oN0bSVIhsaknAAAI")
    assert client.receive(b'2["hello"]', False) == EventPacket("hello")
    assert client.receive(b'2["world"]', False) == EventPacket("world")
    assert wire(encode_event("hey", b'"Jude"')) == ('42["hey","Jude"]',)
    assert client.receive(b"0/custom,", False) == ConnectPacket("/custom")
    client.accept("/custom", "-G5j-67EZFp-q59rADQM")
    assert client.receive(b'2/custom,1["tellme"]', False) == EventPacket("tellme", (), 1, "/custom")
    assert wire(encode_ack(1, b'{"_binary":"AQ=="}', namespace="/custom")) == (
        '461-/custom,1[{"_placeholder":true,"num":0}]',
        "01",
    )
