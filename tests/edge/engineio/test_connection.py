"""Engine.IO by itself: packets, payloads, and the lives of sessions as transcripts of both transports.

In a transcript, ``>`` is what reaches the session, ``:`` what the application does, ``<`` what the session
answers, ``^`` what it hands up, ``!`` the error it raises (HTTP status and protocol code), ``=`` the state it
is in. ``␞`` is the record separator.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraftek.contract.messages import Outgoing
from kraftek.edge.engineio.connection import ConnectionState, EngineSession, EngineSettings, Reason
from kraftek.edge.engineio.packets import (
    EngineError,
    ErrorCode,
    Message,
    Packet,
    PacketKind,
    decode_packet,
    decode_payload,
    encode_binary,
    encode_message,
    encode_payload,
    read_request,
)

SETTINGS = EngineSettings(max_payload=100)


def polling(settings: EngineSettings = SETTINGS) -> EngineSession:
    """A session that has had its handshake over polling, at time 0."""
    session = EngineSession("secret", settings, 0.0, websocket=False)
    session.poll()
    session.payload()
    return session


def websocket(settings: EngineSettings = SETTINGS) -> EngineSession:
    """A session that has had its handshake over a WebSocket, at time 0."""
    session = EngineSession("secret", settings, 0.0, websocket=True)
    session.frames()
    return session


def text(data: bytes) -> str:
    return data.decode().replace("\x1e", "␞")


def posted(session: EngineSession, body: bytes) -> list[Message | EngineError]:
    """What a POST hands up, and the error that ends it."""
    messages: list[Message | EngineError] = []
    session.post()
    try:
        messages.extend(message for message in session.receive_payload(body) if message is not None)
    except EngineError as error:
        messages.append(error)
    session.posted()
    return messages


def reach(session: EngineSession, line: str) -> Sequence[Message | EngineError | None]:
    """Do what a line of a transcript says; returns what is handed up."""
    what, _, rest = line.partition(" ")
    data = rest.replace("␞", "\x1e").encode()
    match what:
        case "GET":
            session.poll()
        case "POST":
            return posted(session, data)
        case "TEXT":
            return [session.receive_frame(data, False)]
        case "BINARY":
            return [session.receive_frame(bytes.fromhex(rest), True)]
        case "OFFER":
            session.offer(float(rest))
        case "LOST":
            {"poll": session.poll_lost, "post": session.post_lost, "websocket": session.websocket_lost}[rest]()
        case "POSTING":
            session.post()
        case "AT":
            session.tick(float(rest))
        case "send":
            session.send(encode_message(data))
        case "send-binary":
            session.send(encode_binary(bytes.fromhex(rest)))
        case _:
            assert what == "close"
            session.close(0.0)
    return []


def act(session: EngineSession, line: str) -> list[str]:
    """What the session makes of a line of a transcript."""
    try:
        messages = reach(session, line[2:])
    except EngineError as error:
        return [seen(error)]
    return [seen(message) for message in messages if message]


def seen(message: Message | EngineError) -> str:
    if isinstance(message, EngineError):
        return f"! {message.status} {message.code}"
    data, binary = message
    return f"^ {data.hex() if binary else text(data)}".rstrip()


def settle(session: EngineSession) -> list[str]:
    """What a shell does after every call: answer the poll, write the frames."""
    body = session.payload()
    answers = [] if body is None else [f"< GET {text(body)}"]
    for packet in session.frames():
        if packet.text:
            answers.append(f"< TEXT {text(packet.text)}")
        answers += [f"< BINARY {data.hex()}" for data in packet.attachments]
    return answers


def play(session: EngineSession, transcript: str) -> None:
    """Check that the session lives by the transcript."""
    expected = [line.strip() for line in transcript.strip().splitlines()]
    actual = []
    for line in expected:
        if line[0] in ">:":
            actual += [line, *act(session, line), *settle(session)]
        elif line[0] == "=":
            actual.append(f"= {session.state.name}")
    assert actual == expected


# Requests.


@pytest.mark.parametrize(
    ("method", "query", "by_websocket", "code"),
    [
        ("GET", {"EIO": "4"}, False, ErrorCode.UNKNOWN_TRANSPORT),
        ("GET", {"EIO": "4", "transport": "abc"}, False, ErrorCode.UNKNOWN_TRANSPORT),
        ("GET", {"EIO": "4", "transport": "webtransport"}, True, ErrorCode.UNKNOWN_TRANSPORT),
        ("GET", {"transport": "polling"}, False, ErrorCode.UNSUPPORTED_PROTOCOL_VERSION),
        ("GET", {"EIO": "3", "transport": "polling"}, False, ErrorCode.UNSUPPORTED_PROTOCOL_VERSION),
        ("GET", {"EIO": "abc", "transport": "websocket"}, True, ErrorCode.UNSUPPORTED_PROTOCOL_VERSION),
        ("POST", {"EIO": "4", "transport": "polling"}, False, ErrorCode.BAD_HANDSHAKE_METHOD),
        ("PUT", {"EIO": "4", "transport": "polling", "sid": ""}, False, ErrorCode.BAD_HANDSHAKE_METHOD),
        ("PUT", {"EIO": "4", "transport": "polling", "sid": "x"}, False, ErrorCode.BAD_REQUEST),
        ("GET", {"EIO": "4", "transport": "websocket"}, False, ErrorCode.BAD_REQUEST),
        ("GET", {"EIO": "4", "transport": "polling"}, True, ErrorCode.BAD_REQUEST),
    ],
)
def test_refuses_a_request(method: str, query: dict[str, str], by_websocket: bool, code: ErrorCode) -> None:
    with pytest.raises(EngineError) as caught:
        read_request(method, query, websocket=by_websocket)
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize(
    ("method", "query", "by_websocket", "sid"),
    [
        ("GET", {"EIO": "4", "transport": "polling"}, False, None),
        ("GET", {"EIO": "4", "transport": "polling", "sid": ""}, False, None),
        ("GET", {"EIO": "4", "transport": "websocket"}, True, None),
        ("GET", {"EIO": "4", "transport": "polling", "sid": "x", "t": "burst"}, False, "x"),
        ("POST", {"EIO": "4", "transport": "polling", "sid": "x"}, False, "x"),
        ("GET", {"EIO": "4", "transport": "websocket", "sid": "x"}, True, "x"),
    ],
)
def test_reads_a_request(method: str, query: dict[str, str], by_websocket: bool, sid: str | None) -> None:
    assert read_request(method, query, websocket=by_websocket) == sid


def test_an_error_is_worded_as_the_reference_server_words_it() -> None:
    said = [json.loads(EngineError(code, "why").body) for code in ErrorCode]
    assert said == [
        {"code": 0, "message": "Transport unknown"},
        {"code": 1, "message": "Session ID unknown"},
        {"code": 2, "message": "Bad handshake method"},
        {"code": 3, "message": "Bad request"},
        {"code": 4, "message": "why"},
        {"code": 5, "message": "Unsupported protocol version"},
    ]
    assert [EngineError(code, "").status for code in ErrorCode] == [400, 400, 400, 400, 403, 400]


# Packets and payloads.


@pytest.mark.parametrize(
    ("encoded", "packet"),
    [
        (b"0{}", Packet(PacketKind.OPEN, b"{}")),
        (b"1", Packet(PacketKind.CLOSE)),
        (b"2", Packet(PacketKind.PING)),
        (b"3probe", Packet(PacketKind.PONG, b"probe")),
        (b"4", Packet(PacketKind.MESSAGE)),
        ("4€".encode(), Packet(PacketKind.MESSAGE, "€".encode())),
        (b"5", Packet(PacketKind.UPGRADE)),
        (b"6", Packet(PacketKind.NOOP)),
        (b"bAQIDBA==", Packet(PacketKind.MESSAGE, b"\x01\x02\x03\x04", True)),
        (b"b", Packet(PacketKind.MESSAGE, b"", True)),
    ],
)
def test_decodes_a_packet(encoded: bytes, packet: Packet) -> None:
    assert decode_packet(encoded) == packet


@pytest.mark.parametrize(
    "encoded", [b"", b"7", b"abc", b"\xff", b"bAQIDBA", b"bAQ=", b"bA*==", b"bAQ==\n", b"b=", b"bA_=="]
)
def test_refuses_a_packet(encoded: bytes) -> None:
    with pytest.raises(EngineError):
        decode_packet(encoded)


def test_decodes_a_payload() -> None:
    assert [*decode_payload("4€\x1ebAQ==\x1e1".encode())] == [
        Packet(PacketKind.MESSAGE, "€".encode()),
        Packet(PacketKind.MESSAGE, b"\x01", True),
        Packet(PacketKind.CLOSE),
    ]


@pytest.mark.parametrize("body", [b"", b"4a\x1e", b"\x1e4a", b"4a\x1e\x1e4b", b"4\xff"])
def test_refuses_a_payload(body: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        [*decode_payload(body)]
    assert (caught.value.status, caught.value.code) == (400, ErrorCode.BAD_REQUEST)


def test_encodes_a_payload() -> None:
    packets = [
        encode_message(b"hello"),
        encode_binary(b"\x01\x02\x03\x04"),
        encode_message(b"x", (b"\x05", b"")),
    ]
    assert encode_payload(packets) == b"4hello\x1ebAQIDBA==\x1e4x\x1ebBQ==\x1eb"


MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.text().filter(lambda t: "\x1e" not in t).map(str.encode), st.just(False)),
        st.tuples(st.binary(), st.just(True)),
    ),
    min_size=1,
    max_size=20,
)


@given(MESSAGES)
def test_payloads_come_back_as_they_were(messages: list[tuple[bytes, bool]]) -> None:
    body = encode_payload(encode_binary(data) if binary else encode_message(data) for data, binary in messages)
    assert [*decode_payload(body)] == [Packet(PacketKind.MESSAGE, *message) for message in messages]


PIECES = st.binary(max_size=8) | st.sampled_from(
    [b"0", b"1", b"2", b"3", b"4x", b"5", b"6", b"bAQ==", b"b", b"2probe", b""]
)
BODIES = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=8).map(b"\x1e".join))


@given(BODIES)
def test_any_payload_gives_packets_or_an_error(body: bytes) -> None:
    try:
        packets = [*decode_payload(body)]
    except EngineError:
        return
    assert packets
    assert sum(len(packet.data) for packet in packets) <= len(body)


# Sessions.


def test_handshake_over_polling() -> None:
    session = EngineSession("secret", EngineSettings(ping_interval=0.3, ping_timeout=0.2), 7.0, websocket=False)
    assert session.state is ConnectionState.POLLING
    assert session.deadline == 7.3
    assert session.frames() == []
    session.poll()
    body = session.payload()
    assert body is not None
    assert body[:1] == b"0"
    assert json.loads(body[1:]) == {
        "sid": "secret",
        "upgrades": ["websocket"],
        "pingInterval": 300,
        "pingTimeout": 200,
        "maxPayload": 1_000_000,
    }
    assert session.payload() is None


def test_handshake_over_a_websocket() -> None:
    session = EngineSession("secret", EngineSettings(), 0.0, websocket=True)
    assert session.state is ConnectionState.WEBSOCKET
    assert session.payload() is None
    (packet,) = session.frames()
    assert packet.text[:1] == b"0"
    assert json.loads(packet.text[1:]) == {
        "sid": "secret",
        "upgrades": [],
        "pingInterval": 25_000,
        "pingTimeout": 20_000,
        "maxPayload": 1_000_000,
    }
    assert session.frames() == []


def test_polling_carries_messages_both_ways() -> None:
    play(
        polling(),
        """
        > POST 4hello␞bAQIDBA==␞4€
        ^ hello
        ^ 01020304
        ^ €
        > GET
        : send hello
        < GET 4hello
        : send one
        : send-binary 01020304
        : send three
        > GET
        < GET 4one␞bAQIDBA==␞4three
        > GET
        = POLLING
        """,
    )


def test_a_websocket_carries_messages_both_ways() -> None:
    play(
        websocket(),
        """
        > TEXT 4hello
        ^ hello
        > TEXT 4
        ^
        > BINARY 01020304
        ^ 01020304
        > TEXT bAQIDBA==
        ^ 01020304
        : send hello
        < TEXT 4hello
        : send-binary 01020304
        < BINARY 01020304
        > TEXT 6
        = WEBSOCKET
        """,
    )


def test_upgrade() -> None:
    play(
        polling(),
        """
        > GET
        > OFFER 1
        = OFFERED
        > TEXT 2probe
        < GET 6
        < TEXT 3probe
        = PROVEN
        : send one
        : send-binary 02
        > POST 4last
        ^ last
        > TEXT 5
        < TEXT 4one
        < BINARY 02
        = WEBSOCKET
        : send three
        < TEXT 4three
        > TEXT 4hello
        ^ hello
        > GET
        ! 400 3
        > POST 4late
        ! 400 3
        > OFFER 2
        ! 400 3
        > LOST poll
        = WEBSOCKET
        > LOST websocket
        = CLOSED
        """,
    )


def test_polls_are_released_while_the_client_changes_over() -> None:
    play(
        polling(),
        """
        > OFFER 1
        > GET
        : send before
        < GET 4before
        > TEXT 2probe
        < TEXT 3probe
        > GET
        < GET 6
        : send during
        > GET
        < GET 4during
        > TEXT 2probe
        < TEXT 3probe
        > TEXT 5
        = WEBSOCKET
        """,
    )


def test_a_poll_still_held_at_the_upgrade_is_released_without_messages() -> None:
    session = polling()
    for line in ("> OFFER 0", "> TEXT 2probe", "> GET", "> TEXT 5", ": send one"):
        assert act(session, line) == []
    assert settle(session) == ["< GET 6", "< TEXT 4one"]


@pytest.mark.parametrize(
    "frame", ["TEXT 5", "TEXT 4hello", "TEXT 2", "TEXT 3probe", "TEXT", "TEXT abc", "BINARY 35", "BINARY"]
)
def test_a_websocket_that_does_not_probe_is_given_up(frame: str) -> None:
    session = polling()
    play(session, f"> OFFER 0\n> {frame}\n! 400 3\n= POLLING\n> TEXT 2probe\n! 400 3")
    play(session, ": send a\n> GET\n< GET 4a")
    play(session, "> OFFER 0\n> TEXT 2probe\n< TEXT 3probe\n> TEXT 5\n= WEBSOCKET")


def test_an_offered_websocket_may_go_away() -> None:
    play(
        polling(),
        """
        > OFFER 0
        > OFFER 0
        ! 400 3
        = OFFERED
        > LOST websocket
        = POLLING
        > OFFER 0
        > TEXT 2probe
        < TEXT 3probe
        : send a
        > LOST websocket
        = POLLING
        > GET
        < GET 4a
        > LOST websocket
        = POLLING
        """,
    )


def test_an_upgrade_has_until_its_deadline() -> None:
    session = polling()
    play(session, "> OFFER 1\n> TEXT 2probe\n< TEXT 3probe")
    assert session.deadline == 11.0
    play(session, "> AT 10.9\n= PROVEN\n> AT 11\n= POLLING\n> TEXT 5\n! 400 3")
    assert session.deadline == 25.0


def test_a_second_poll_closes_the_session() -> None:
    session = polling()
    play(session, "> GET\n> GET\n! 400 3\n< GET 1\n= CLOSED")
    play(session, "> GET\n! 400 1\n> POST 4a\n! 400 1\n> OFFER 0\n! 400 3")
    assert session.reason is Reason.MALFORMED


@pytest.mark.parametrize("body", ["abc", "", "2", "0{}", "5", "bA", "7␞4a"])
def test_a_malformed_post_closes_the_session(body: str) -> None:
    session = polling()
    play(session, f": send a\n> POST {body}\n! 400 3\n= CLOSED\n> GET\n! 400 1")
    assert session.reason is Reason.MALFORMED
    session = polling()
    play(session, f"> GET\n> POST {body}\n! 400 3\n< GET 1\n= CLOSED")


def test_a_post_has_a_bound() -> None:
    play(polling(), f"> POST 4{'x' * 99}\n^ {'x' * 99}\n> POST 4{'x' * 100}\n! 413 3\n= CLOSED")


@pytest.mark.parametrize("frame", ["abc", "", "2", "2probe", "0{}", "5", "7", "bA"])
def test_a_malformed_frame_closes_the_session(frame: str) -> None:
    session = websocket()
    play(session, f"> TEXT {frame}\n! 400 3\n= CLOSED\n> TEXT 4late\n> BINARY 00")
    assert session.reason is Reason.MALFORMED


def test_the_client_closes() -> None:
    session = polling()
    play(session, ": send a\n> POST 4last␞1␞4never\n^ last\n= CLOSED\n> GET\n! 400 1")
    assert session.reason is Reason.CLIENT
    play(polling(), "> GET\n> POST 1\n< GET 6\n= CLOSED")
    session = websocket()
    play(session, "> TEXT 1\n= CLOSED")
    assert session.reason is Reason.CLIENT
    session.close(0.0)
    assert session.reason is Reason.CLIENT


def test_we_close() -> None:
    session = polling()
    play(
        session,
        """
        : send last
        : close
        = CLOSING
        : close
        : send never
        > POST 4late␞3
        > GET
        < GET 4last
        = CLOSING
        > GET
        < GET 1
        = CLOSED
        > GET
        ! 400 1
        : send never
        : close
        > LOST poll
        > LOST websocket
        = CLOSED
        """,
    )
    assert session.reason is Reason.SERVER
    play(polling(), "> GET\n: close\n< GET 1\n= CLOSED")
    session = polling()
    for line in ("> GET", ": send last", ": close"):
        assert act(session, line) == []
    assert settle(session) == ["< GET 4last"]
    play(session, "= CLOSING\n> POST 1\n= CLOSED")
    assert session.reason is Reason.SERVER
    play(polling(), ": close\n> POST 7\n! 400 3\n= CLOSED")
    session = websocket()
    session.send(encode_message(b"last"))
    play(session, ": close\n< TEXT 4last\n= CLOSED\n: send never")
    assert session.reason is Reason.SERVER
    assert session.deadline == inf


def test_we_close_while_the_client_changes_over() -> None:
    play(
        polling(),
        """
        > OFFER 0
        > TEXT 2probe
        < TEXT 3probe
        : send last
        : close
        = CLOSING
        > BINARY 35
        ! 400 3
        > TEXT 2probe
        ! 400 3
        = CLOSING
        > TEXT 5
        < TEXT 4last
        = CLOSED
        """,
    )
    session = polling()
    play(session, "> OFFER 0\n> TEXT 2probe\n< TEXT 3probe\n: send last\n: close")
    play(session, "> GET\n< GET 4last\n> GET\n< GET 1\n= CLOSED")


def test_what_is_left_when_we_close_is_fetched_in_time_or_dropped() -> None:
    session = polling()
    play(session, ": send a\n: close\n> AT 4.9\n= CLOSING\n> AT 5\n= CLOSED")
    assert session.reason is Reason.SERVER
    assert session.frames() == []


@pytest.mark.parametrize("before", ["", "> OFFER 0", "> OFFER 0\n> TEXT 2probe\n< TEXT 3probe"])
def test_a_lost_poll_closes_the_session(before: str) -> None:
    session = polling()
    play(session, f"{before}\n> LOST poll\n= CLOSED".strip())
    assert session.reason is Reason.LOST
    assert session.payload() is None
    assert session.frames() == []


def test_a_lost_poll_was_perhaps_the_last_of_a_session_that_had_upgraded() -> None:
    session = polling()
    for line in ("> GET", "> OFFER 0", "> TEXT 2probe", "> TEXT 5", "> LOST poll", ": send a"):
        assert act(session, line) == []
    assert settle(session) == ["< TEXT 4a"]


def test_heartbeat_over_polling() -> None:
    session = polling()
    assert session.deadline == 25.0
    play(session, "> GET\n> AT 24.9\n> AT 25\n< GET 2")
    assert session.deadline == 45.0
    play(session, "> POST 3")
    assert session.deadline == 50.0
    play(session, "> POST 3\n> AT 49.9\n> AT 50\n> GET\n< GET 2\n> AT 69.9\n= POLLING")
    play(session, "> GET\n> AT 70\n< GET 1\n= CLOSED")
    assert session.reason is Reason.PING_TIMEOUT
    assert session.deadline == inf
    play(session, "> AT 1000\n= CLOSED")


def test_heartbeat_over_a_websocket() -> None:
    session = websocket()
    play(
        session,
        "> AT 25\n< TEXT 2\n> TEXT 3\n> AT 50\n< TEXT 2\n> TEXT 4no pong\n^ no pong\n> AT 70\n= CLOSED",
    )
    assert session.reason is Reason.PING_TIMEOUT


def test_heartbeat_goes_on_through_an_upgrade() -> None:
    session = polling()
    play(session, "> OFFER 20\n> TEXT 2probe\n< TEXT 3probe\n> AT 25\n> TEXT 5\n< TEXT 2")
    play(session, "> TEXT 3\n> AT 50\n< TEXT 2")
    session = polling()
    play(session, "> OFFER 20\n> AT 25")
    assert session.deadline == 30.0
    play(session, "> AT 45\n= CLOSED")


def test_a_pong_has_all_of_its_time_after_a_stall_too() -> None:
    session = websocket()
    play(session, "> AT 60\n< TEXT 2")
    assert session.deadline == 80.0


def test_the_time_out_may_be_longer_than_the_interval() -> None:
    session = EngineSession("secret", EngineSettings(ping_interval=25, ping_timeout=60), 0.0, websocket=True)
    settle(session)
    play(session, "> AT 25\n< TEXT 2\n> AT 80\n> TEXT 3\n> AT 80\n< TEXT 2\n> AT 139\n= WEBSOCKET\n> TEXT 3")
    play(session, "> AT 140\n< TEXT 2\n> AT 199\n= WEBSOCKET\n> AT 200\n= CLOSED")


def test_what_came_before_a_malformed_packet_counts() -> None:
    for body in ("4a␞", "4a␞7", "4a␞7␞4b"):
        session = polling()
        play(session, f"> GET\n> POST {body}\n^ a\n! 400 3\n< GET 1\n= CLOSED")


def test_one_post_at_a_time() -> None:
    session = polling()
    play(session, "> POSTING\n> POSTING\n! 400 3\n= CLOSED")
    assert session.reason is Reason.MALFORMED
    session = polling()
    play(session, "> GET\n> POSTING\n> POST 4a\n! 400 3\n< GET 1\n= CLOSED")
    session = polling()
    play(session, "> POST 4a\n^ a\n> POST 4b\n^ b\n= POLLING")


def test_a_post_that_breaks_off_ends_the_session() -> None:
    session = polling()
    play(session, "> GET\n> POSTING\n> LOST post\n< GET 1\n= CLOSED")
    assert session.reason is Reason.LOST


def test_a_poll_before_the_last_answer_is_read_ends_the_session() -> None:
    session = polling()
    with pytest.raises(EngineError) as caught:
        session.poll(read=False)
    assert str(caught.value) == "a poll before the last answer was read"
    assert (session.state, session.reason) == (ConnectionState.CLOSED, Reason.MALFORMED)
    assert session.payload() is None


@pytest.mark.parametrize("offered", [True, False])
def test_it_awaits_a_poll_unless_one_is_held_or_it_is_over(offered: bool) -> None:
    session = polling()
    if offered:
        session.offer(0.0)
    assert session.awaits_poll
    session.poll()
    assert not session.awaits_poll
    session.send(Outgoing(b"4"))
    assert session.payload() == b"4"
    assert session.awaits_poll
    session.close(0.0)
    assert not session.awaits_poll


def test_what_was_fetched_is_sent_although_the_session_closes() -> None:
    session = polling()
    session.close(0.0)
    session.send(Outgoing(b"4late"))
    session.fetch([Outgoing(b"4before")])
    play(session, "> GET\n< GET 4before\n= CLOSING\n> GET\n< GET 1\n= CLOSED")


# Every input in every state, and where it leads: the table of EngineSession.

REACH: dict[ConnectionState, str] = {
    ConnectionState.POLLING: "",
    ConnectionState.OFFERED: "> OFFER 0",
    ConnectionState.PROBED: "> OFFER 0|> TEXT 2probe",
    ConnectionState.PROVEN: "> OFFER 0|> TEXT 2probe|frames",
    ConnectionState.WEBSOCKET: "> OFFER 0|> TEXT 2probe|frames|> TEXT 5",
    ConnectionState.CLOSING: ": close",
    ConnectionState.CLOSED: "> POST 1",
}
STATES = list(REACH)
E = "error"
TABLE = {
    #                  POLLING      OFFERED       PROBED        PROVEN        WEBSOCKET   CLOSING     CLOSED
    "> GET":          ("POLLING",   "OFFERED",    "PROBED",     "PROVEN",     E,          "CLOSED",   E),
    "> LOST poll":    ("CLOSED",    "CLOSED",     "CLOSED",     "CLOSED",     "",         "",         ""),
    "> POST 4a":      ("",          "",           "",           "",           E,          "",         E),
    "> POST 7":       (E + "CLOSED", E + "CLOSED", E + "CLOSED", E + "CLOSED", E,      E + "CLOSED", E),
    "> POSTING":      ("",          "",           "",           "",           E,          "",         E),
    "> LOST post":    ("CLOSED",    "CLOSED",     "CLOSED",     "CLOSED",     "",         "",         ""),
    "> POST 1":       ("CLOSED",    "CLOSED",     "CLOSED",     "CLOSED",     E,          "CLOSED",   E),
    "> OFFER 0":      ("OFFERED",   E,            E,            E,            E,          E,          E),
    "> TEXT 2probe":  (E,           "PROBED",     "PROBED",     "PROBED",     E + "CLOSED", E,        ""),
    "frames":         ("",          "",           "PROVEN",     "",           "",         "",         ""),
    "> TEXT 5":       (E,           E + "POLLING", "WEBSOCKET", "WEBSOCKET",  E + "CLOSED", "CLOSED", ""),
    "> TEXT 4a":      (E,           E + "POLLING", E + "POLLING", E + "POLLING", "",      E,          ""),
    "> TEXT 7":       (E,           E + "POLLING", E + "POLLING", E + "POLLING", E + "CLOSED", E,     ""),
    "> TEXT 1":       (E,           E + "POLLING", E + "POLLING", E + "POLLING", "CLOSED", E,         ""),
    "> LOST websocket": ("",        "POLLING",    "POLLING",    "POLLING",    "CLOSED",   "",         ""),
    ": send a":       ("",          "",           "",           "",           "",         "",         ""),
    ": close":        ("CLOSING",   "CLOSING",    "CLOSING",    "CLOSING",    "CLOSED",   "",         ""),
    "> AT 10":        ("",          "POLLING",    "POLLING",    "POLLING",    "",         "CLOSED",   ""),
    "> AT 25":        ("",          "POLLING",    "POLLING",    "POLLING",    "",         "CLOSED",   ""),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("line", TABLE)
def test_table_of_states(line: str, state: ConnectionState) -> None:
    session = polling()
    do: Callable[[str], list[str]] = lambda line: (
        [f"< {packet.text!r}" for packet in session.frames()] if line == "frames" else act(session, line)
    )
    for step in REACH[state].split("|"):
        if step:
            do(step)
    assert session.state is state
    expected = TABLE[line][STATES.index(state)]
    answer = do(line)
    assert bool(answer and answer[0].startswith("! 400")) is expected.startswith(E)
    assert session.state.name == (expected.removeprefix(E) or state.name)


# Whatever a client that keeps to the protocol does, and whenever, it gets every message once and in order.


class HonestClient:
    """Both ends: the session, and a client that takes the steps which the protocol allows it."""

    def __init__(self) -> None:
        self.session = EngineSession("secret", EngineSettings(), 0.0, websocket=False)
        self.sent = 0
        self.got: list[bytes] = []
        self.held = False  # it waits for the answer to a poll
        self.changing = False  # it has seen the probe answered, and polls no more

    def send(self) -> None:
        self.session.send(encode_message(b"%d" % self.sent))
        self.sent += 1

    def poll(self) -> None:
        if not self.held and not self.changing and self.session.state is not ConnectionState.WEBSOCKET:
            self.session.poll()
            self.held = True

    def offer(self) -> None:
        if self.session.state is ConnectionState.POLLING:
            self.session.offer(0.0)

    def probe(self) -> None:
        if self.session.state is ConnectionState.OFFERED:
            self.session.receive_frame(b"2probe", False)

    def upgrade(self) -> None:
        if self.changing and not self.held:
            self.session.receive_frame(b"5", False)
            self.changing = False

    def drop(self) -> None:
        if self.session.state in (ConnectionState.OFFERED, ConnectionState.PROVEN):
            self.session.websocket_lost()
            self.changing = False

    def wait(self) -> None:
        self.session.tick(self.session.deadline)
        if self.session.state is ConnectionState.POLLING:
            self.changing = False
        self.take()
        if self.session.state is ConnectionState.WEBSOCKET:
            self.session.receive_frame(b"3", False)
        else:
            reach(self.session, "POST 3")

    def take(self) -> None:
        body = self.session.payload()
        if body is not None:
            assert self.held
            self.held = False
            packets = decode_payload(body)
            self.got += [packet.data for packet in packets if packet.kind is PacketKind.MESSAGE]
        for packet in self.session.frames():
            self.changing |= packet.text == b"3probe"
            self.got += [packet.text[1:]] if packet.text.startswith(b"4") else []


STEPS = st.sampled_from(
    [getattr(HonestClient, step) for step in ("send", "poll", "offer", "probe", "upgrade", "drop", "wait")]
)


@given(st.lists(STEPS, max_size=60))
def test_messages_arrive_once_and_in_order(steps: list[Callable[[HonestClient], None]]) -> None:
    client = HonestClient()
    for step in [*steps, HonestClient.upgrade, HonestClient.poll]:
        step(client)
        client.take()
    assert client.got == [b"%d" % number for number in range(client.sent)]


FRAMES = st.tuples(st.one_of(st.binary(max_size=20), PIECES), st.booleans())


LINES = st.sampled_from(["> GET", "> LOST poll", "> OFFER 0", "> LOST websocket", ": send a", ": close", "> AT 99"])


@given(st.lists(FRAMES | BODIES | LINES, max_size=30), st.booleans())
def test_nothing_but_a_protocol_error_comes_of_any_input(
    inputs: list[str | bytes | tuple[bytes, bool]], over_websocket: bool
) -> None:
    session = EngineSession("secret", SETTINGS, 0.0, websocket=over_websocket)
    for arrived in inputs:
        with suppress(EngineError):
            match arrived:
                case str():
                    act(session, arrived)
                case bytes():
                    session.post()
                    [*session.receive_payload(arrived)]
                    session.posted()
                case (data, binary):
                    session.receive_frame(data, binary)
        settle(session)
        assert (session.state is ConnectionState.CLOSED) <= (session.deadline == inf)
        assert (session.state is ConnectionState.CLOSED) <= (session.reason is not None)
