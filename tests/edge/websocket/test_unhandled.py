"""What of a connection was read and is not handled yet: whose turn it is, why it is not read, and how it ends."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IClientLink
from kraftek.contract.turns import Turns
from tests.edge.websocket.edge import Edge, Peer
from tests.support.iterations import Iterations

TEXT, BINARY, CONT, CLOSE, PING, PONG = Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.CLOSE, Opcode.PING, Opcode.PONG

A_MESSAGE = 0.0001
"""Seconds that the handling of one takes."""


def frame(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame."""
    return Frame(opcode, payload, fin).serialize(mask=True)


A_SLICE = 256 // len(frame(TEXT, b"0")) + 1
"""Messages that a step has at most: those of a slice for Autobahn, or ``STEP``."""

AN_ITERATION = 0.004 + A_SLICE * A_MESSAGE
"""Seconds that all who wait have at most: their share, and the end of a step."""


def texts(count: int, first: int = 0) -> bytes:
    """So many messages, numbered."""
    return b"".join(frame(TEXT, b"%d" % number) for number in range(first, first + count))


class Hearer:
    """A session that takes its time for each message. ``on_message`` is called with each."""

    def __init__(self, link: IClientLink, clock: Iterations) -> None:
        self.link, self.clock = link, clock
        self.heard: list[bytes] = []
        self.charged: list[int] = []
        self.ended = 0
        self.on_message: Callable[[bytes], object] = lambda _: None

    def receive(self, data: bytes, binary: bool = False) -> None:
        self.clock.take(A_MESSAGE)
        self.heard.append(data)
        self.on_message(data)

    def charge(self, events: int, size: int) -> None:
        self.charged.append(size)
        assert events == 1

    def lost(self) -> None:
        self.ended += 1

    def overrun(self) -> None:
        return None


class World:
    """Connections that share their turns."""

    def __init__(self, fastpath: bool, compression: bool = False) -> None:
        self.clock, self.accounts = Iterations(), Accounts()
        self.edge = Edge(fastpath=fastpath, compression=compression)
        self.edge.factory.turns = Turns(self.clock, self.accounts)
        self.edge.factory.open_session = lambda link, *_: Hearer(link, self.clock)  # type: ignore[assignment]
        self._extensions = [ClientPerMessageDeflateFactory()] if compression else None

    def connect(self) -> tuple[Any, Hearer, Peer]:
        peer = Peer(self.edge, extensions=self._extensions)
        return peer.protocol, peer.protocol.session, peer

    def iterate_all(self) -> None:
        for _ in range(10_000):
            if not self.clock.getDelayedCalls():
                assert self.accounts.unhandled == 0
                return
            self.clock.iterate()
        raise AssertionError("there is always more to be done")


@pytest.fixture(params=[True, False], ids=["fastpath", "plain"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def paused(peer: Peer) -> bool:
    return bool(peer.transport.producerState == "paused")


def test_a_read_of_many_messages_is_handled_in_turns(world: World) -> None:
    protocol, session, peer = world.connect()
    began = world.clock.seconds()
    protocol.dataReceived(texts(500))
    assert 0 < len(session.heard) < 500
    assert paused(peer)
    assert world.clock.seconds() - began <= AN_ITERATION
    while len(session.heard) < 500:
        began = world.clock.seconds()
        world.clock.iterate()
        assert 0 < world.clock.seconds() - began <= AN_ITERATION
    assert session.heard == [b"%d" % number for number in range(500)]
    assert not paused(peer)
    world.iterate_all()
    assert protocol.unhandled is None


def test_a_few_are_handled_at_once(world: World) -> None:
    protocol, session, peer = world.connect()
    protocol.dataReceived(texts(2) + frame(PING) + texts(1, first=2))
    assert session.heard == [b"0", b"1", b"2"]
    assert protocol.unhandled is None
    assert not paused(peer)


def test_the_next_read_of_who_had_much_waits_for_its_turn(world: World) -> None:
    protocol, session, peer = world.connect()
    protocol.dataReceived(texts(100))
    while paused(peer):
        world.clock.iterate()
    protocol.dataReceived(texts(100))
    assert len(session.heard) == 100
    assert paused(peer)
    world.iterate_all()
    assert len(session.heard) == 200


def test_many_share_an_iteration(world: World) -> None:
    connections = [world.connect() for _ in range(3)]
    for protocol, _, _ in connections:
        protocol.dataReceived(texts(300))
    before = [len(session.heard) for _, session, _ in connections]
    began = world.clock.seconds()
    for _ in range(10):
        world.clock.iterate()
    assert world.clock.seconds() - began <= 10 * AN_ITERATION
    gone_on = [len(session.heard) - count for (_, session, _), count in zip(connections, before, strict=True)]
    assert max(gone_on) - min(gone_on) <= 2 * A_SLICE


def test_a_short_read_does_not_wait_for_them(world: World) -> None:
    flooder, _, _ = world.connect()
    flooder.dataReceived(texts(1000))
    protocol, session, _ = world.connect()
    protocol.dataReceived(texts(1))
    assert session.heard == [b"0"]


def test_what_tls_still_delivers_joins_what_waits(world: World) -> None:
    protocol, session, _ = world.connect()
    data = texts(300)
    protocol.dataReceived(data[:1001])
    for at in range(1001, len(data), 500):
        protocol.dataReceived(data[at : at + 500])
    world.iterate_all()
    assert session.heard == [b"%d" % number for number in range(300)]


@pytest.mark.parametrize(
    ("data", "longest", "pieces"),
    [(frame(PING) * 1000, 256, 24), (frame(BINARY, b"x" * 60_000), 16_384, 5), (frame(BINARY) * 1000, 256, 24)],
    ids=["pings", "one long frame", "empty messages"],
)
def test_autobahn_is_given_a_little_at_a_time(
    world: World, data: bytes, longest: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, _, _ = world.connect()
    sizes: list[int] = []
    received = WebSocketServerProtocol.dataReceived

    def noted(self: Any, piece: bytes) -> None:
        sizes.append(len(piece))
        received(self, piece)

    monkeypatch.setattr(WebSocketServerProtocol, "dataReceived", noted)
    protocol.dataReceived(data)
    world.iterate_all()
    assert sum(sizes) == len(data)
    assert max(sizes) <= longest
    assert len(sizes) == pieces


def test_what_is_kept_counts_and_is_given_up_where_memory_is_short(world: World) -> None:
    connections = []
    for size in (100, 300, 200):
        protocol, session, peer = world.connect()
        session.link.pause()
        protocol.dataReceived(data := texts(size))
        connections.append((protocol, peer, len(data)))
    sizes = [size for _, _, size in connections]
    assert world.accounts.unhandled == sum(sizes)
    assert world.edge.factory.turns.shed(sizes[1] + 1) == sizes[1] + sizes[2]
    assert [peer.transport.closed for _, peer, _ in connections] == [None, "aborted", "aborted"]
    connections[0][0].connectionLost()
    assert world.accounts.unhandled == 0


# Why it is not read.


def test_it_is_read_again_when_the_last_reason_is_gone(world: World) -> None:
    protocol, session, peer = world.connect()
    session.link.pause()
    session.link.slow(0.5)
    session.link.resume()
    assert paused(peer)
    world.clock.advance(0.5)
    assert not paused(peer)
    assert protocol.unhandled is None
    session.link.slow(0.25)
    session.link.pause()
    world.clock.advance(0.25)
    assert paused(peer)
    session.link.resume()
    assert not paused(peer)


def test_what_was_read_is_not_handled_while_the_session_holds(world: World) -> None:
    protocol, session, peer = world.connect()
    session.on_message = lambda data: session.link.pause() if data == b"50" else None
    protocol.dataReceived(texts(300))
    for _ in range(5):
        world.clock.iterate()
    held = len(session.heard)
    assert 50 < held <= 50 + A_SLICE
    protocol.dataReceived(texts(10, first=300))
    for _ in range(5):
        world.clock.iterate()
    assert len(session.heard) == held
    session.link.resume()
    assert paused(peer)
    world.iterate_all()
    assert session.heard == [b"%d" % number for number in range(310)]
    assert not paused(peer)


def test_who_is_slowed_within_its_turn_goes_on_later(world: World) -> None:
    protocol, session, peer = world.connect()
    session.on_message = lambda data: session.link.slow(1.0) if data == b"50" else None
    protocol.dataReceived(texts(100))
    for _ in range(20):
        world.clock.iterate()
    assert 50 < len(session.heard) < 100
    assert paused(peer)
    world.clock.advance(1.0)
    world.iterate_all()
    assert len(session.heard) == 100


def test_a_session_may_hold_and_go_on_within_a_step(world: World) -> None:
    protocol, session, peer = world.connect()

    def hold_and_go_on(_: bytes) -> None:
        session.link.pause()
        session.link.resume()

    session.on_message = hold_and_go_on
    protocol.dataReceived(texts(100))
    world.iterate_all()
    assert len(session.heard) == 100
    assert not paused(peer)
    assert protocol.unhandled is None


# How it ends.


def test_a_close_of_ours_is_answered_behind_what_was_read(world: World) -> None:
    protocol, session, peer = world.connect()
    session.link.pause()
    protocol.dataReceived(texts(300) + frame(CLOSE, b"\x03\xe8"))
    session.link.close(4401, "AUTH_FAILED")
    world.iterate_all()
    assert session.heard == []
    assert protocol.wasClean
    assert peer.transport.closed == "lost"


def test_a_close_of_ours_is_answered_by_who_was_not_read(world: World) -> None:
    protocol, session, peer = world.connect()
    session.link.pause()
    session.link.slow(1.0)
    session.link.close(4401, "AUTH_FAILED")
    assert not paused(peer)
    protocol.dataReceived(frame(CLOSE, b"\x03\xe8"))
    assert protocol.wasClean


def test_a_close_of_the_clients_comes_after_what_it_said(world: World) -> None:
    protocol, session, peer = world.connect()
    protocol.dataReceived(texts(300) + frame(CLOSE, b"\x03\xe8") + texts(300))
    assert not protocol.wasClean
    world.iterate_all()
    assert len(session.heard) == 300
    assert protocol.wasClean
    assert not paused(peer)


@pytest.mark.parametrize("reads", [1, 2])
def test_what_comes_behind_a_close_of_the_clients_is_not_heard(world: World, reads: int) -> None:
    protocol, session, _ = world.connect()
    said = [texts(1) + frame(CLOSE, b"\x03\xe8"), texts(3, first=1)]
    for data in said if reads == 2 else [b"".join(said)]:
        protocol.dataReceived(data)
    world.iterate_all()
    assert session.heard == [b"0"]


def test_the_end_of_the_stream_comes_after_what_was_read(world: World) -> None:
    protocol, session, peer = world.connect()
    protocol.dataReceived(texts(300))
    peer.transport.connected = False
    protocol.connectionLost(Failure(ConnectionDone()))
    assert (len(session.heard) < 300, session.ended) == (True, 0)
    protocol.ping()
    session.link.slow(1.0)
    session.link.close(4401, "AUTH_FAILED")
    world.iterate_all()
    assert (len(session.heard), session.ended) == (300, 1)
    assert world.edge.connections.count == 0


def test_who_was_slowed_is_heard_to_the_end(world: World) -> None:
    protocol, session, _ = world.connect()
    session.link.slow(1.0)
    protocol.dataReceived(texts(100))
    protocol.connectionLost(Failure(ConnectionLost()))
    for _ in range(20):
        world.clock.iterate()
    assert (len(session.heard), session.ended) == (100, 1)


def test_what_comes_after_held_messages_goes_with_them(world: World) -> None:
    protocol, session, _ = world.connect()
    session.link.pause()
    protocol.dataReceived(texts(100))
    protocol.connectionLost(Failure(ConnectionLost()))
    assert (session.heard, session.ended) == ([], 1)
    world.iterate_all()
    assert session.heard == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_violation_drops_the_rest(world: World, lost: bool) -> None:
    protocol, session, peer = world.connect()
    protocol.dataReceived(texts(100) + frame(TEXT, b"\xff") + texts(100))
    if lost:
        peer.transport.connected = False
        protocol.connectionLost(Failure(ConnectionLost()))
    writes = len(peer.transport.writes)
    world.iterate_all()
    assert len(session.heard) == 100
    if lost:
        assert (session.ended, len(peer.transport.writes)) == (1, writes)
    else:
        assert [code for code, _ in peer.read()] == [1007]
        protocol.dataReceived(texts(1))
        assert not paused(peer)
        protocol.connectionLost()
    assert world.edge.connections.count == 0


@pytest.mark.parametrize("lost", [False, True])
def test_a_fault_of_ours_ends_the_connection(world: World, lost: bool) -> None:
    protocol, session, peer = world.connect()

    def fail(data: bytes) -> None:
        if data == b"100":
            raise ZeroDivisionError

    session.on_message = fail
    protocol.dataReceived(texts(200))
    if lost:
        protocol.connectionLost(Failure(ConnectionLost()))
    with capturedLogs() as logged:
        world.iterate_all()
    assert [event["log_failure"].type for event in logged if "log_failure" in event] == [ZeroDivisionError]
    assert len(session.heard) == 101
    if lost:
        assert session.ended == 1
    else:
        assert peer.transport.closed == "aborted"


# What is charged.


def rsv1(data: bytes) -> bytes:
    """The frame, as one whose message is compressed."""
    return bytes((data[0] | 0x40,)) + data[1:]


LONG = b"x" * 60_000


@pytest.mark.parametrize(
    ("reads", "charged"),
    [
        ([frame(PING)], [0]),
        ([frame(PING, b"four"), frame(PONG, b"five!")], [4, 5]),
        ([frame(TEXT, b"x")], []),
        ([frame(TEXT, b"x", fin=False) + frame(CONT, b"y", fin=False) + frame(CONT, b"z")], [0, 0]),
        ([bytes((byte,)) for byte in frame(TEXT, b"xyz")], [0] * 8),
        ([frame(BINARY, LONG)], []),
        ([frame(BINARY, LONG)[:30_000], frame(BINARY, LONG)[30_000:]], []),
    ],
    ids=["ping", "payloads", "message", "fragments", "byte by byte", "long", "two reads"],
)
def test_what_is_no_message_is_charged(world: World, reads: list[bytes], charged: list[int]) -> None:
    protocol, session, _ = world.connect()
    for data in reads:
        protocol.dataReceived(data)
    assert session.charged == charged


def test_an_answer_to_our_ping_is_not_charged_and_another_is() -> None:
    protocol, session, _ = World(fastpath=True).connect()
    protocol.heard = False
    protocol.dataReceived(frame(PONG))
    assert session.charged == []
    protocol.dataReceived(frame(PONG))
    assert session.charged == [0]


def test_a_compressed_message_counts_as_it_is_inflated() -> None:
    protocol, session, _ = World(fastpath=True, compression=True).connect()
    deflate = zlib.compressobj(9, wbits=-15)
    data = (deflate.compress(LONG) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    protocol.dataReceived(rsv1(frame(TEXT, data)))
    assert session.heard == [LONG]
    assert session.charged == []
