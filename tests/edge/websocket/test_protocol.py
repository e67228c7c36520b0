"""One connection: messages in and out, its end, its bounds, and what it hands over to plain HTTP."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from typing import Any

import pytest
from autobahn.twisted.websocket import WebSocketServerProtocol
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode

from kraftek.contract.messages import Outbound, Outgoing
from kraftek.contract.names import SUBPROTOCOL
from kraftek.contract.settings import Limits
from kraftek.core.session import Session, SessionState
from kraftek.edge.dialects.native import NativeDialect
from kraftek.edge.websocket.outbox import Outbox
from tests.edge.websocket.edge import TOKEN, WRONG, Edge, Peer, RecordingTransport, handshake

EVENT = '{"type":"notes:n:1"}'


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bool = True) -> bytes:
    """A client's frame."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=mask)


def admitted(edge: Edge) -> Peer:
    """A client that is let in, to the room ``room``."""
    peer = Peer(edge, "/?token=t&roomId=room")
    edge.house.access.next().yes("alice")
    peer.read()
    return peer


def codes(messages: list[Any]) -> list[Any]:
    """The codes of the errors among these, everything else as it is."""
    return [json.loads(m)["payload"]["code"] if isinstance(m, str) and '"error"' in m else m for m in messages]


def test_a_connection_talks_without_delay_and_knows_its_peer() -> None:
    peer = Peer(Edge())
    assert peer.transport.no_delay
    assert peer.protocol.outbox.peer == "127.0.0.1"


def test_a_conversation() -> None:
    edge = Edge()
    peer = Peer(edge)
    [connected] = peer.greeting
    assert json.loads(connected)["type"] == "connected"
    peer.send('{"type":"authenticate","payload":{"token":"t","roomId":"room"},"id":1}')
    edge.house.access.next().yes("alice")
    assert peer.read() == [
        '{"type":"authenticated","payload":{"success":true,"userId":"alice","roomId":"room"},"id":1}'
    ]
    peer.send('{"type":"notes:n:1","id":2,"payload":"жé📝"}')
    edge.house.bus.answer(1)
    assert peer.read() == ['{"type":"ack","payload":{"receivers":1},"id":2}']
    edge.house.broadcast(type="notes:n:2", roomId="room", payload="x")
    assert peer.read() == ['{"type":"notes:n:2","payload":"x","roomId":"room"}']
    peer.lose()
    assert len(edge.house.roster) == 0
    edge.done()


# The handshake. What it decides is in test_factory.


@pytest.mark.parametrize("piece", [1, 1000, 100_000])
def test_a_head_without_an_end_is_refused(piece: int) -> None:
    edge = Edge()
    protocol, transport = edge.accept()
    data = b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000
    for at in range(0, len(data), piece):
        if transport.closed is None:
            protocol.dataReceived(data[at : at + piece])
    assert transport.value().startswith(b"HTTP/1.1 431 ")
    assert transport.closed == "lost"
    protocol.connectionLost()
    edge.done()


@pytest.mark.parametrize(("size", "status"), [(15_000, b"101"), (17_000, b"431"), (60_000, b"431")])
def test_a_whole_head_is_bounded_too(size: int, status: bytes) -> None:
    edge = Edge()
    protocol, transport = edge.accept()
    protocol.dataReceived(Peer(edge).request.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * size + b"\r\n\r\n"))
    edge.settle()
    assert transport.value().split(b" ")[1] == status


@pytest.mark.parametrize(("request_", "status"), WRONG)
def test_a_malformed_handshake_is_refused_without_repeating_what_was_said(request_: bytes, status: int | None) -> None:
    edge = Edge()
    protocol, transport = edge.accept()
    with capturedLogs() as logged:
        protocol.dataReceived(request_)
        edge.settle()
    answer = transport.value()
    assert int(answer.split(b" ")[1]) == status or (status is None and answer.startswith(b"HTTP/1.1 4"))
    assert TOKEN.encode() not in answer
    assert TOKEN not in repr(logged)
    assert (transport.closed is None) == (status in {101, 426} and b"Connection: close" not in answer)
    protocol.connectionLost()
    assert edge.connections.count == 0


def test_another_version_is_told_which_one_there_is() -> None:
    protocol, transport = Edge().accept()
    protocol.dataReceived(handshake(Sec_WebSocket_Version="8"))
    assert b"\r\nsec-websocket-version: 13\r\n" in transport.value().lower()


def test_our_own_fault_in_a_handshake_is_logged_and_told_as_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Edge()

    def broken(*_: object, engine: bool) -> None:
        raise RuntimeError("the cause")

    monkeypatch.setattr(edge.factory, "accept", broken)
    with capturedLogs() as logged:
        peer = Peer(edge)
    assert peer.status == 500
    assert b"the cause" not in b"".join(peer.transport.writes)
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]


# What arrives.


STREAM = [EVENT, '{"type":"notes:n:2","payload":"' + "ж" * 2000 + '"}', "{", EVENT.replace("1", "3")]


def received(edge: Edge) -> list[str]:
    return [published.event["eventType"] for published in edge.house.bus.published]


@pytest.mark.parametrize("piece", [1, 2, 7, 126, 1000, 100_000])
def test_messages_are_the_same_however_the_network_cuts_them(piece: int) -> None:
    edge = Edge()
    peer = admitted(edge)
    data = b"".join(frame(Opcode.TEXT, text.encode()) for text in STREAM)
    for at in range(0, len(data), piece):
        peer.protocol.dataReceived(data[at : at + piece])
    assert received(edge) == ["notes:n:1", "notes:n:2", "notes:n:3"]
    assert codes(peer.read()) == ["INVALID_MESSAGE"]


@given(st.lists(st.integers(1, 200), max_size=20), st.lists(st.booleans(), max_size=20))
def test_messages_are_the_same_in_fragments_with_pings_between(cuts: list[int], pings: list[bool]) -> None:
    edge = Edge()
    peer = admitted(edge)
    text = ('{"type":"notes:n:1","payload":"' + "жé📝" * 100 + '"}').encode()
    pieces = []
    rest = text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces.append(rest)
    data = b""
    for number, piece in enumerate(pieces):
        opcode = Opcode.CONT if number else Opcode.TEXT
        data += frame(opcode, piece, fin=number == len(pieces) - 1)
        if number < len(pings) and pings[number]:
            data += frame(Opcode.PING, b"?")
    peer.protocol.dataReceived(data + frame(Opcode.TEXT, EVENT.encode()))
    assert received(edge) == ["notes:n:1", "notes:n:1"]
    assert {event.opcode for event in peer.read()} <= {Opcode.PONG}


def test_a_message_that_comes_with_the_handshake_refuses_it() -> None:
    """A client waits for the answer (RFC 6455, section 4.1): whoever does not speaks to somebody else."""
    edge = Edge()
    protocol, transport = edge.accept()
    protocol.dataReceived(Peer(edge).request + frame(Opcode.TEXT, EVENT.encode()))
    edge.settle()
    assert transport.value().startswith(b"HTTP/1.1 400 ")
    assert transport.closed == "lost"
    assert edge.refused() == {"handshake": 1}


def test_a_message_may_be_as_big_as_the_limit_and_no_bigger() -> None:
    edge = Edge(limits=Limits(message_bytes=1000))
    peer = admitted(edge)
    head, tail = '{"type":"notes:n:1","payload":"', '"}'
    peer.send(head + "x" * (1000 - len(head) - len(tail)) + tail)
    assert received(edge) == ["notes:n:1"]
    peer.send(head + "x" * (1001 - len(head) - len(tail)) + tail)
    [(code, _)] = peer.read()
    assert code == 1009
    assert received(edge) == ["notes:n:1"]


def test_fragments_are_no_way_around_the_limit() -> None:
    peer = admitted(Edge(limits=Limits(message_bytes=1000)))
    peer.protocol.dataReceived(frame(Opcode.TEXT, b"x" * 600, fin=False))
    assert peer.read() == []
    peer.protocol.dataReceived(frame(Opcode.CONT, b"x" * 600, fin=False))
    [(code, _)] = peer.read()
    assert code == 1009


def test_a_size_that_is_only_announced_is_refused_at_once() -> None:
    peer = admitted(Edge())
    peer.protocol.dataReceived(b"\x81\xff" + (2**40).to_bytes(8, "big") + b"mask")
    [(code, _)] = peer.read()
    assert code == 1009


@pytest.mark.parametrize(
    "payload", [b"\xff", b'{"type":"notes:n:1","payload":"\xc3"}', b'"\xed\xa0\x80"', b'"' + b"\xf5" * 2000 + b'"']
)
@pytest.mark.parametrize("fragments", [False, True])
def test_text_that_is_not_utf8_closes(payload: bytes, fragments: bool) -> None:
    edge = Edge()
    peer = admitted(edge)
    if fragments:
        peer.protocol.dataReceived(frame(Opcode.TEXT, payload, fin=False) + frame(Opcode.CONT, b""))
    else:
        peer.protocol.dataReceived(frame(Opcode.TEXT, EVENT.encode()) + frame(Opcode.TEXT, payload))
    [(code, _)] = peer.read()
    assert code == 1007
    assert received(edge) == ([] if fragments else ["notes:n:1"])


def test_a_binary_message_is_an_invalid_message() -> None:
    edge = Edge()
    peer = admitted(edge)
    peer.protocol.dataReceived(frame(Opcode.BINARY, EVENT.encode()))
    assert codes(peer.read()) == ["INVALID_MESSAGE"]
    peer.send(EVENT)
    assert received(edge) == ["notes:n:1"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(Opcode.TEXT, b"{}", mask=False), id="no mask"),
        pytest.param(b"\xc1\x80mask", id="a bit of an extension that nobody offered"),
        pytest.param(b"\x83\x80mask", id="an opcode that there is not"),
        pytest.param(b"\x09\x80mask", id="a ping in fragments"),
        pytest.param(frame(Opcode.CONT, b"{}"), id="a continuation of nothing"),
        pytest.param(frame(Opcode.TEXT, b"{", fin=False) + frame(Opcode.TEXT, b"}"), id="a message within another"),
        pytest.param(b"\x88\x81mask1", id="a close with half a code"),
    ],
)
def test_a_violation_of_the_protocol_closes(data: bytes) -> None:
    edge = Edge()
    peer = admitted(edge)
    peer.protocol.dataReceived(frame(Opcode.TEXT, EVENT.encode()) + data)
    assert received(edge) == ["notes:n:1"]
    code, _ = peer.read()[0]
    assert code == 1002


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes_after_the_handshake_are_survived(pieces: list[bytes]) -> None:
    edge = Edge()
    peer = Peer(edge)
    with capturedLogs() as logged:
        for piece in pieces:
            peer.protocol.dataReceived(piece)
            edge.settle()
        edge.clock.advance(3)
        peer.lose()
    assert logged == []
    assert len(edge.house.roster) == 0
    edge.done()


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"GET / HTTP/1.1", b"\r\n", b"\r\n\r\n", b":"]), max_size=8))
def test_any_bytes_instead_of_a_handshake_are_survived(pieces: list[bytes]) -> None:
    edge = Edge()
    protocol, transport = edge.accept()
    with capturedLogs() as logged:
        for piece in pieces:
            if transport.closed is None:
                protocol.dataReceived(piece)
        edge.clock.advance(7)
        protocol.connectionLost()
    assert logged == []
    assert edge.connections.count == 0
    edge.done()


# What is written.


def outgoing(text: str) -> Outgoing:
    return Outgoing(text.encode())


def test_all_writes_of_a_turn_are_one_write_in_order() -> None:
    edge = Edge()
    peer = Peer(edge)
    before = len(peer.transport.writes)
    for number in range(10):
        peer.protocol.outbox.write(outgoing(f'"{number}"'))
    assert len(peer.transport.writes) == before
    assert peer.read() == [f'"{number}"' for number in range(10)]
    assert len(peer.transport.writes) == before + 1
    peer.protocol.outbox.write(outgoing('"again"'))
    assert peer.read() == ['"again"']
    assert len(peer.transport.writes) == before + 2


def test_attachments_follow_their_message() -> None:
    peer = Peer(Edge())
    peer.protocol.outbox.write(Outgoing(b"text", (b"one", b"two")))
    text, one, two = peer.read()
    assert (text, one.opcode, bytes(one.data), bytes(two.data)) == ("text", Opcode.BINARY, b"one", b"two")


def test_many_connections_cost_one_call_a_turn() -> None:
    edge = Edge()
    peers = [Peer(edge) for _ in range(10)]
    edge.settle()
    message = outgoing("same")
    before = len(edge.clock.getDelayedCalls())
    for peer in peers:
        peer.protocol.outbox.write(message)
    assert len(edge.clock.getDelayedCalls()) == before + 1
    assert [peer.read() for peer in peers] == [["same"]] * 10


# Its end.


def test_closing_sends_what_was_said_and_then_the_code() -> None:
    peer = Peer(Edge())
    peer.protocol.outbox.write(outgoing("last"))
    peer.protocol.close(4401, "AUTH_FAILED")
    peer.protocol.outbox.write(outgoing("too late"))
    peer.protocol.close(1011, "INTERNAL")
    assert peer.read() == ["last", (4401, "AUTH_FAILED")]


@pytest.mark.parametrize("code", [1001, 1011, 4400, 4499])
def test_every_code_of_ours_can_be_sent(code: int) -> None:
    peer = Peer(Edge())
    peer.protocol.close(code, "because")
    assert peer.read() == [(code, "because")]


def test_a_client_that_answers_the_close_is_gone_at_once() -> None:
    edge = Edge()
    peer = admitted(edge)
    peer.protocol.close(4403, "ACCESS_REVOKED")
    peer.read()
    peer.flush()  # its answer
    assert peer.transport.closed == "lost"  # not reset, which a page is told as unclean
    peer.lose()
    edge.done()


@pytest.mark.parametrize("started", [100.0, 100.5, 100.99])
def test_a_client_that_does_not_answer_the_close_has_a_second_or_two(started: float) -> None:
    edge = Edge(started=started)
    peer = admitted(edge)
    peer.protocol.close(4403, "ACCESS_REVOKED")
    edge.clock.advance(0.95)
    assert peer.transport.closed is None
    edge.clock.advance(1.1)
    assert peer.transport.closed == "aborted"
    peer.lose()
    edge.done()


def test_a_client_that_closes_gets_what_was_said_before_the_answer() -> None:
    edge = Edge()
    peer = admitted(edge)
    peer.send('{"type":"nobody:knows:this"}')  # its error is said at the end of this turn
    peer.client.send_close(1000)
    peer.protocol.outbox.write(outgoing("said"))
    peer.flush()
    *said, close = peer.read()
    assert codes(said)[-1] == "said"
    assert close[0] == 1000
    assert peer.transport.closed == "lost"
    peer.lose()
    assert len(edge.house.roster) == 0
    edge.done()


def test_a_client_that_is_failed_gets_what_was_said_before() -> None:
    peer = admitted(Edge())
    data = frame(Opcode.TEXT, b'{"type":"nobody:knows:this"}') + frame(Opcode.TEXT, b"\xff")
    peer.protocol.dataReceived(data)
    error, close = peer.read()
    assert codes([error]) == ["INVALID_EVENT"]
    assert close[0] == 1007


def test_nothing_is_received_after_the_goodbye() -> None:
    edge = Edge(limits=Limits(unsent_bytes=10))
    peer = admitted(edge)
    peer.protocol.outbox.pauseProducing()
    for _ in range(2):
        peer.protocol.outbox.write(outgoing("x" * 100))
    peer.protocol.dataReceived(frame(Opcode.TEXT, EVENT.encode()) * 2)
    peer.protocol.dataReceived(frame(Opcode.TEXT, b"", fin=False) + frame(Opcode.CONT, EVENT.encode()))
    assert received(edge) == []


def test_a_lost_connection_ends_its_session_once() -> None:
    edge = Edge()
    peer = admitted(edge)
    session = peer.protocol.session
    assert isinstance(session, Session)
    peer.lose()
    assert session.state is SessionState.CLOSED
    assert edge.house.rooms.entries == {}
    session.close(1001, "later")
    peer.protocol.outbox.write(outgoing("later"))
    peer.protocol.resume()
    assert edge.connections.count == 0
    edge.done()


def test_a_connection_may_be_lost_before_its_handshake() -> None:
    edge = Edge()
    protocol, _ = edge.accept()
    protocol.connectionLost()
    assert edge.connections.count == 0
    edge.done()


def test_what_was_said_to_a_connection_that_is_lost_in_the_same_turn_is_dropped() -> None:
    edge = Edge()
    peer = admitted(edge)
    writes = len(peer.transport.writes)
    peer.protocol.outbox.write(outgoing("x"))
    peer.lose()
    edge.done()
    assert len(peer.transport.writes) == writes


def test_our_own_fault_while_opening_closes_with_1011() -> None:
    edge = Edge()

    def broken(*args: object) -> Any:
        raise RuntimeError("the cause")

    edge.factory.open_session = broken
    with capturedLogs() as logged:
        peer = Peer(edge)
        peer.protocol.dataReceived(frame(Opcode.TEXT, EVENT.encode()))
    assert peer.greeting == [(1011, "INTERNAL")]
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]
    peer.lose()
    assert edge.connections.count == 0
    edge.clock.advance(3)  # Autobahn still waits for the answer to the close, and finds that nobody is there
    edge.done()


def test_a_connection_that_nobody_wants_is_closed() -> None:
    edge = Edge()
    edge.factory.opened = lambda protocol: None  # type: ignore[method-assign]
    peer = Peer(edge)
    assert peer.greeting == [(1000, "")]


# Pings.


def test_a_ping_is_answered() -> None:
    peer = Peer(Edge())
    peer.client.send_ping(b"there?")
    peer.flush()
    [pong] = peer.read()
    assert (pong.opcode, bytes(pong.data)) == (Opcode.PONG, b"there?")


def run(edge: Edge, seconds: float) -> None:
    for _ in range(round(seconds * 4)):
        edge.clock.advance(0.25)
        edge.factory.heartbeat.sweep()


def test_the_answer_to_a_ping_of_ours_takes_no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(Edge(fastpath=True))
    peer.protocol.ping()
    [ping] = peer.read()
    assert (ping.opcode, bytes(ping.data)) == (Opcode.PING, b"")
    parsed: list[bytes] = []
    monkeypatch.setattr(WebSocketServerProtocol, "dataReceived", lambda _, data: parsed.append(data))
    peer.protocol.heard = False
    peer.flush()  # its pong
    assert peer.protocol.heard
    assert parsed == []
    for other in (frame(Opcode.PONG, b"x"), frame(Opcode.PONG, b"", mask=False), frame(Opcode.PING, b"")):
        peer.protocol.dataReceived(other)
    assert len(parsed) == 3


def test_a_pong_within_a_frame_is_part_of_it() -> None:
    peer = admitted(Edge())
    head = frame(Opcode.TEXT, b"", mask=True)[:1] + b"\x86" + bytes(4)  # six bytes are to come
    peer.protocol.dataReceived(head)
    peer.protocol.dataReceived(b"\x8a\x80mask")
    [(code, _)] = peer.read()
    assert code == 1007


@pytest.mark.parametrize("sign", ["pong", "ping", "text", "fragments", "nothing"])
def test_a_client_is_pinged_and_must_let_hear_of_itself(sign: str) -> None:
    edge = Edge(limits=Limits(ping_interval=25, ping_timeout=20))
    peer = Peer(edge)
    run(edge, 26)
    [ping] = peer.read()
    assert ping.opcode is Opcode.PING
    pong = b"".join(peer.client.data_to_send())
    said = {
        "pong": pong,
        "ping": frame(Opcode.PING, b""),
        "text": frame(Opcode.TEXT, EVENT.encode()),
        "fragments": frame(Opcode.TEXT, b"{", fin=False) + frame(Opcode.CONT, b"}"),
        "nothing": b"",
    }[sign]
    if said:
        peer.protocol.dataReceived(said)
    run(edge, 22)
    assert peer.transport.closed == ("aborted" if sign == "nothing" else None)
    assert edge.counters.ping_timeouts == (sign == "nothing")
    peer.lose()
    edge.done()


def test_a_client_that_is_gone_is_not_pinged() -> None:
    edge = Edge()
    peer = Peer(edge)
    peer.lose()
    writes = len(peer.transport.writes)
    run(edge, 60)
    assert len(peer.transport.writes) == writes
    assert edge.counters.ping_timeouts == 0


def test_a_client_that_is_being_closed_is_not_pinged() -> None:
    edge = Edge(limits=Limits(ping_interval=1.0))
    peer = Peer(edge)
    peer.protocol.close(4401, "AUTH_FAILED")
    writes = len(peer.transport.writes)
    peer.protocol.ping()
    assert len(peer.transport.writes) == writes


def test_a_client_that_closed_and_never_reads_the_rest_is_aborted() -> None:
    edge = Edge()
    peer = admitted(edge)
    peer.client.send_close(1000)
    peer.flush()
    assert peer.transport.closed == "lost"  # once all is sent; but it does not read
    run(edge, 50)
    assert peer.transport.closed == "aborted"


# A client that is not read.


def test_a_session_stops_and_goes_on_reading() -> None:
    edge = Edge(limits=Limits(held_messages=2))
    peer = Peer(edge, "/?token=t")
    for _ in range(2):
        peer.send(EVENT)
    assert peer.transport.producerState == "paused"
    edge.house.access.next().yes("alice")
    edge.settle()
    assert peer.transport.producerState == "producing"
    assert len(edge.house.bus.published) == 2


def test_a_client_that_is_not_read_is_not_blamed_for_its_silence() -> None:
    edge = Edge(limits=Limits(held_messages=1))
    peer = Peer(edge, "/?token=t")
    run(edge, 26)
    assert not peer.protocol.heard
    peer.send(EVENT)
    assert peer.transport.producerState == "paused"
    peer.protocol.heard = False  # its answer to the ping waits to be read
    run(edge, 22)
    assert not edge.counters.ping_timeouts
    edge.house.access.next().yes("alice")
    edge.settle()
    assert peer.protocol.heard  # and has the time to be
    peer.protocol.heard = False
    run(edge, 50)
    assert peer.transport.closed == "aborted"


# A client that does not read.


def test_what_cannot_be_sent_waits_and_leaves_in_one_write() -> None:
    peer = Peer(Edge())
    peer.protocol.outbox.pauseProducing()
    for number in range(3):
        peer.protocol.outbox.write(outgoing(f'"{number}"'))
    assert peer.read() == []
    writes = len(peer.transport.writes)
    peer.protocol.outbox.resumeProducing()
    assert peer.read() == ['"0"', '"1"', '"2"']
    assert len(peer.transport.writes) == writes + 1
    peer.protocol.outbox.write(outgoing('"3"'))
    assert peer.read() == ['"3"']


def test_what_was_said_in_the_turn_of_the_pause_waits_too() -> None:
    peer = Peer(Edge())
    peer.protocol.outbox.write(outgoing('"before"'))
    peer.protocol.outbox.pauseProducing()
    peer.protocol.outbox.write(outgoing('"after"'))
    assert peer.read() == []
    peer.protocol.outbox.resumeProducing()
    assert peer.read() == ['"before"', '"after"']


def test_past_the_bound_it_is_closed_and_told_why() -> None:
    edge = Edge(limits=Limits(unsent_bytes=1000))
    peer = admitted(edge)
    session = peer.protocol.session
    assert isinstance(session, Session)
    peer.protocol.outbox.pauseProducing()
    for _ in range(100):
        edge.house.broadcast(type="t", roomId="room", payload="x" * 100)
    assert len(edge.house.roster) == 1  # which was in the middle of telling everybody
    messages = peer.read()
    assert codes(messages) == ["SLOW_CONSUMER", (4413, "SLOW_CONSUMER")]
    assert json.loads(messages[0])["payload"]["retryAfter"] == 1.0
    assert session.state is SessionState.CLOSED
    assert edge.counters.slow_consumers == 1
    assert len(edge.house.roster) == 0
    edge.clock.advance(3)
    assert peer.transport.closed == "aborted"
    peer.lose()
    edge.done()


def test_up_to_the_bound_it_is_not() -> None:
    # Half of so small a limit is the transport's, and a message counts as 16 bytes more than its text.
    edge = Edge(limits=Limits(unsent_bytes=2 * 10 * (98 + 16)))
    peer = Peer(edge)
    peer.protocol.outbox.pauseProducing()
    for _ in range(10):
        peer.protocol.outbox.write(outgoing("x" * 98))
    peer.protocol.outbox.resumeProducing()
    assert len(peer.read()) == 10
    peer.protocol.outbox.pauseProducing()
    for _ in range(10):
        peer.protocol.outbox.write(outgoing("x" * 98))
    assert edge.counters.slow_consumers == 0


def test_a_client_that_is_too_slow_for_its_first_words_is_closed_like_any_other() -> None:
    edge = Edge(limits=Limits(unsent_bytes=1))

    class Full(RecordingTransport):
        def registerProducer(self, producer: Any, streaming: bool) -> None:
            super().registerProducer(producer, streaming)
            if isinstance(producer, Outbox):
                producer.pauseProducing()

    transport = Full()
    transport.connect(edge.site.buildProtocol(None))
    transport.protocol.dataReceived(handshake())
    transport.protocol.dataReceived(frame(Opcode.TEXT, EVENT.encode()))
    edge.settle()
    assert transport.value().endswith(frame(Opcode.CLOSE, (4413).to_bytes(2, "big") + b"SLOW_CONSUMER", mask=False))
    transport.protocol.connectionLost()
    assert len(edge.house.roster) == 0


def test_a_dialect_may_have_no_last_word() -> None:
    class Speechless(NativeDialect):
        def encode(self, message: Outbound) -> Outgoing | None:
            return None

    edge = Edge(limits=Limits(unsent_bytes=1), dialects={SUBPROTOCOL: Speechless})
    peer = Peer(edge)
    peer.protocol.outbox.pauseProducing()
    for _ in range(2):
        peer.protocol.outbox.write(outgoing("x"))
    assert peer.read() == [(4413, "SLOW_CONSUMER")]


def test_others_in_the_room_get_what_the_slow_one_does_not_read() -> None:
    edge = Edge(limits=Limits(unsent_bytes=10))
    edge.house.membership._single = False
    slow, quick = admitted(edge), admitted(edge)
    slow.protocol.outbox.pauseProducing()
    for _ in range(2):
        edge.house.broadcast(type="t", roomId="room")
    assert len(quick.read()) == 2
    assert codes(slow.read())[0] == "SLOW_CONSUMER"


def test_a_ping_overtakes_what_a_slow_client_has_not_read() -> None:
    peer = Peer(Edge())
    peer.protocol.outbox.pauseProducing()
    peer.protocol.outbox.write(outgoing("waits"))
    peer.protocol.ping()
    [ping] = peer.read()
    assert ping.opcode is Opcode.PING
    peer.protocol.outbox.resumeProducing()
    assert peer.read() == ["waits"]


def test_pongs_do_not_pile_up_for_who_does_not_read() -> None:
    peer = Peer(Edge())
    peer.protocol.outbox.pauseProducing()
    for _ in range(1000):
        peer.protocol.dataReceived(frame(Opcode.PING, b"x" * 125))
    assert peer.read() == []
    peer.protocol.outbox.resumeProducing()
    peer.protocol.dataReceived(frame(Opcode.PING, b"again"))
    [pong] = peer.read()
    assert bytes(pong.data) == b"again"


def test_a_transport_that_ends_its_producer_wants_nothing_more() -> None:
    peer = Peer(Edge())
    peer.protocol.outbox.write(outgoing("x"))
    peer.protocol.outbox.stopProducing()
    assert peer.read() == []


def test_it_is_its_transports_producer_from_the_handshake_on() -> None:
    peer = Peer(Edge())
    assert peer.transport.producer is peer.protocol.outbox
    assert peer.transport.streaming


# Compressed messages (RFC 7692).


def rsv1(data: bytes) -> bytes:
    """The frame, as one whose message is compressed."""
    return bytes((data[0] | 0x40,)) + data[1:]


def compressed(limits: Limits | None = None, *, compression: bool = True) -> Peer:
    """A client that would compress, let in."""
    edge = Edge(limits=limits, compression=compression)
    peer = Peer(edge, "/?token=t&roomId=room", extensions=[ClientPerMessageDeflateFactory()])
    edge.house.access.next().yes("alice")
    peer.read()
    return peer


def test_messages_are_compressed_when_the_operator_wants_it() -> None:
    peer = compressed()
    assert peer.response_headers["Sec-WebSocket-Extensions"] == "permessage-deflate; client_no_context_takeover"
    peer.send('{"type":"notes:n:1","payload":"' + "x" * 10_000 + '"}')
    assert received(peer.edge) == ["notes:n:1"]
    peer.edge.house.broadcast(type="notes:n:2", roomId="room", payload="x" * 10_000)
    peer.edge.settle()
    assert len(peer.transport.writes[-1]) < 200
    [text] = peer.read()
    assert json.loads(text)["payload"] == "x" * 10_000
    peer.edge.house.broadcast(type="notes:n:2", roomId="room", payload="short")
    peer.edge.settle()
    assert b"short" in peer.transport.writes[-1]


@pytest.mark.parametrize("bits", [9, 15])
def test_messages_fit_the_clients_window(bits: int) -> None:
    edge = Edge(compression=True)
    offer = ClientPerMessageDeflateFactory(server_no_context_takeover=True, server_max_window_bits=bits)
    peer = Peer(edge, "/?token=t&roomId=room", extensions=[offer])
    edge.house.access.next().yes("alice")
    peer.read()
    payload = "".join(f"{number * number:x}" for number in range(2000)) * 2
    edge.house.broadcast(type="notes:n:2", roomId="room", payload=payload)
    [text] = peer.read()
    assert json.loads(text)["payload"] == payload


def test_a_message_is_compressed_once_and_framed_once_for_a_whole_room() -> None:
    edge = Edge(compression=True)
    offers = [[ClientPerMessageDeflateFactory()], [ClientPerMessageDeflateFactory()], None]
    peers = [Peer(edge, "/?token=t&roomId=room", extensions=offer) for offer in offers]
    for number, peer in enumerate(peers):
        edge.house.access.next().yes(f"user{number}")
        peer.read()
    edge.house.broadcast(type="notes:n:2", roomId="room", payload="x" * 1000)
    edge.settle()
    first, second, plain = (peer.transport.writes[-1] for peer in peers)
    assert first is second
    assert len(first) < 100
    assert len(plain) > 1000
    assert len({tuple(peer.read()) for peer in peers}) == 1


def test_messages_are_not_compressed_unless() -> None:
    peer = compressed(compression=False)
    assert "Sec-WebSocket-Extensions" not in peer.response_headers
    peer.send(EVENT)
    assert received(peer.edge) == ["notes:n:1"]


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_limit_is_that_of_the_message_once_decompressed(pieces: int) -> None:
    """10 MB of the same byte are 10 kB compressed."""
    peer = compressed(Limits(message_bytes=20_000))
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = (deflate.compress(b"x" * 10_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(bomb) < 20_000
    size = len(bomb) // pieces + 1
    tracemalloc.start()
    try:
        for number in range(pieces):
            piece = bomb[number * size : (number + 1) * size]
            opcode = Opcode.CONT if number else Opcode.TEXT
            data = frame(opcode, piece, fin=number == pieces - 1)
            peer.protocol.dataReceived(data if number else rsv1(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    [(code, _)] = peer.read()
    assert code == 1009
    assert received(peer.edge) == []


def test_what_cannot_be_decompressed_is_not_utf8_either() -> None:
    peer = compressed()
    peer.protocol.dataReceived(rsv1(frame(Opcode.TEXT, b"\xff\xff\xff")))
    [(code, _)] = peer.read()
    assert code == 1007
