"""What a client is sent, over a real socket: in order, at once where that can be, and nothing after the end.

What it does on any transport is in test_protocol, through the protocol that owns it.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec import Raw
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from websockets.frames import Frame, Opcode
from zope.interface.verify import verifyObject

from kraftek.contract.interfaces import IClientLink
from kraftek.contract.messages import Delivery, Outgoing
from kraftek.contract.settings import EventPolicy, Limits
from kraftek.edge.websocket.frames import frame
from kraftek.edge.websocket.outbox import Outbox
from kraftek.edge.websocket.unsent import CHUNK
from tests.edge.websocket.edge import Edge, handshake

MANY = 10_000
"""Rounds that are enough for everything here: what is not done by then never is."""

NO_PORT: Any = None
"""What accepted the connection; Twisted keeps it for its own messages."""


def text(data: bytes) -> bytes:
    """A message's frame."""
    return frame(0x81, data)


class Line:
    """A client's socket, its handshake done, and the reactor that its transport asks."""

    def __init__(self, limits: Limits | None = None, *events: EventPolicy) -> None:
        self.edge = Edge(limits=limits, fastpath=True, events=events)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.far = socket.create_connection(server.getsockname())
            near, address = server.accept()
        for end in (near, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.reactor: Any = MemoryReactorClock()
        channel: Any = self.edge.site.buildProtocol(IPv4Address("TCP", *address))
        self.near: Any = Server(near, channel, address, NO_PORT, 0, self.reactor)
        channel.makeConnection(self.near)
        channel.dataReceived(handshake())
        self.outbox: Outbox = self.protocol.outbox

    @property
    def protocol(self) -> Any:
        """What the handshake made of its connection."""
        return self.near.protocol

    def say(self, data: bytes) -> None:
        self.outbox.write(Outgoing(data))

    def arrived(self) -> bytes:
        """What there is to be read by the end of the turn."""
        self.edge.settle()
        data = b""
        try:
            while part := self.far.recv(1 << 20):
                data += part
        except BlockingIOError:
            pass
        return data

    @property
    def copied(self) -> int:
        """Bytes in the transport: its own copy."""
        return len(self.near.dataBuffer) + sum(map(len, self.near._tempDataBuffer))

    @property
    def waits(self) -> bool:
        """Whether the reactor is asked to say when there is room."""
        return self.near in self.reactor.getWriters()

    def drain(self) -> bytes:
        """What arrives when the client reads all there is."""
        data = self.arrived()
        for _ in range(MANY):
            if not self.waits:
                return data
            # A kernel with so small a buffer takes some time in between.
            select.select([self.far], [self.near], [], 10.0)
            self.near.doWrite()
            data += self.arrived()
        raise AssertionError("there is always more to be written")

    def fill(self, full: Callable[[], bool], much: bytes) -> bytes:
        """Say ``much`` until it is full; all that was said, in frames."""
        for number in range(MANY):
            if full():
                return text(much) * number
            self.say(much)
            self.edge.settle()
        raise AssertionError("it is never full")

    def lose(self) -> None:
        """The connection is gone."""
        if self.near.connected:
            self.near.connectionLost(Failure(ConnectionDone()))


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    assert made.arrived().startswith(b"HTTP/1.1 101 ")
    yield made
    made.lose()
    made.far.close()


def test_it_is_a_link_and_a_producer(line: Line) -> None:
    assert verifyObject(IClientLink, line.outbox)
    assert verifyObject(IPushProducer, line.outbox)
    assert line.outbox.peer == line.protocol.peer


def test_the_response_and_the_first_words_are_sent_at_once() -> None:
    line = Line()
    arrived = line.arrived()
    assert arrived.startswith(b"HTTP/1.1 101 ")
    assert arrived.endswith(b'"}}')
    assert not line.waits
    line.lose()
    line.far.close()


def test_what_a_turn_brings_is_sent_at_its_end(line: Line) -> None:
    line.say(b"one")
    line.say(b"two")
    assert line.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    with pytest.raises(BlockingIOError):
        line.far.recv(1)
    assert line.arrived() == text(b"one") + text(b"two")
    assert not line.waits


def test_what_nothing_waits_before_is_sent_at_once_when_the_turn_is_ending(line: Line) -> None:
    iteration = line.edge.factory.iteration
    iteration.ending = True
    line.say(b"one")
    assert line.far.recv(100) == text(b"one")
    iteration.ending = False
    line.say(b"two")
    iteration.ending = True
    line.say(b"three")
    with pytest.raises(BlockingIOError):
        line.far.recv(1)
    assert line.arrived() == text(b"two") + text(b"three")
    iteration.ending = False


def test_a_message_is_sent_without_a_look_at_protocol_and_transport(line: Line) -> None:
    """Which is what it is for."""
    nobody: Any = None
    transport, line.outbox._transport = line.outbox._transport, nobody
    protocol, line.outbox._protocol = line.outbox._protocol, nobody
    line.say(b"x")
    assert line.arrived() == text(b"x")
    line.outbox._transport, line.outbox._protocol = transport, protocol


def test_it_has_no_dictionary(line: Line) -> None:
    assert not hasattr(line.outbox, "__dict__")


def test_what_autobahn_says_keeps_its_place(line: Line) -> None:
    line.say(b"before")
    line.protocol.dataReceived(Frame(Opcode.PING, b"there?").serialize(mask=True))
    line.say(b"after")
    line.protocol.close(4401, "AUTH_FAILED")
    line.say(b"too late")
    goodbye = frame(0x88, (4401).to_bytes(2, "big") + b"AUTH_FAILED")
    assert line.drain() == text(b"before") + frame(0x8A, b"there?") + text(b"after") + goodbye


def test_what_does_not_fit_follows_in_order_and_then_it_is_sent_at_once_again(line: Line) -> None:
    sent = line.fill(lambda: line.waits, os.urandom(60_000))
    line.say(b"more")
    line.edge.settle()
    assert line.drain() == sent + text(b"more")
    line.say(b"again")
    assert line.arrived() == text(b"again")
    assert not line.waits


def test_a_client_that_does_not_read_gets_all_of_it_in_order_once_it_reads(line: Line) -> None:
    sent = line.fill(lambda: line.outbox.blocked, os.urandom(60_000))
    for number in range(10):
        line.say(b"%d" % number)
        sent += text(b"%d" % number)
        line.edge.settle()
    assert line.drain() == sent
    assert not line.outbox.blocked
    line.say(b"again")
    assert line.arrived() == text(b"again")


def test_a_goodbye_follows_what_waits(line: Line) -> None:
    sent = line.fill(lambda: line.outbox.blocked, os.urandom(60_000))
    line.say(b"last")
    line.outbox.close(1001, "")
    line.say(b"too late")
    assert line.drain() == sent + text(b"last") + frame(0x88, b"\x03\xe9")


def test_past_the_bound_the_last_word_follows_what_was_sent() -> None:
    line = Line(Limits(unsent_bytes=1000))
    line.arrived()
    line.fill(lambda: line.outbox.blocked, b"x" * 60_000)
    line.say(b"y" * 990)
    line.say(b"z" * 990)
    arrived = line.drain()
    assert b"yy" not in arrived
    assert b"zz" not in arrived
    assert arrived.endswith(frame(0x88, (4413).to_bytes(2, "big") + b"SLOW_CONSUMER"))
    assert line.edge.counters.slow_consumers == 1
    line.lose()
    line.far.close()


LARGE = os.urandom(1_100_000)


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_large_message_gets_through_in_order_and_is_copied_in_pieces(line: Line, ending: bool, before: int) -> None:
    line.edge.factory.iteration.ending = ending
    for _ in range(before):
        line.say(b"before")
    line.say(LARGE)
    line.edge.factory.iteration.ending = False
    line.say(b"behind")
    line.edge.settle()
    assert line.outbox.blocked
    assert line.copied <= 3 * CHUNK
    line.say(b"after")
    assert len(line.edge.backlogs) == 1
    assert line.drain() == text(b"before") * before + text(LARGE) + text(b"behind") + text(b"after")
    assert len(line.edge.backlogs) == 0
    assert line.edge.backlogs.accounts.unsent == 0
    line.say(b"again")
    assert line.arrived() == text(b"again")


def test_a_large_message_behind_others_gets_through(line: Line) -> None:
    sent = line.fill(lambda: line.outbox.blocked, os.urandom(60_000))
    line.say(LARGE)
    line.say(b"after")
    assert line.copied <= 3 * CHUNK
    assert line.drain() == sent + text(LARGE) + text(b"after")


def test_a_ping_waits_for_the_end_of_a_message_that_was_begun(line: Line) -> None:
    line.say(LARGE)
    line.edge.settle()
    line.say(b"after")
    line.protocol.heard = False
    line.protocol.ping()
    assert line.drain() == text(LARGE) + frame(0x89, b"") + text(b"after")
    assert line.protocol.heard  # it took more of it


def test_a_goodbye_follows_a_message_that_was_begun(line: Line) -> None:
    line.say(LARGE)
    line.edge.settle()
    line.say(b"after")
    line.outbox.close(1001, "")
    line.say(b"too late")
    assert line.drain() == text(LARGE) + text(b"after") + frame(0x88, b"\x03\xe9")
    assert line.edge.backlogs.accounts.unsent == 0


def test_who_takes_nothing_of_a_large_message_is_cut_off(line: Line) -> None:
    line.say(LARGE * 3)
    line.edge.settle()
    line.edge.clock.advance(line.edge.limits.ping_timeout)
    line.edge.backlogs.sweep()
    assert line.waits
    line.edge.clock.advance(1)
    line.edge.backlogs.sweep()
    assert not line.waits
    line.say(b"late")
    line.reactor.advance(0)
    assert not line.near.connected
    assert line.edge.counters.slow_consumers == 1
    assert line.edge.backlogs.accounts.unsent == 0
    line.edge.settle()
    assert len(line.edge.house.roster) == 0


def test_who_takes_nothing_of_a_smaller_message_is_not(line: Line) -> None:
    line.say(LARGE[:500_000])
    line.edge.settle()
    assert line.outbox.blocked
    line.edge.clock.advance(line.edge.limits.ping_timeout + 1)
    line.edge.backlogs.sweep()
    assert line.drain() == text(LARGE[:500_000])


def test_the_last_word_follows_the_rest_of_what_was_begun() -> None:
    line = Line(Limits(unsent_bytes=4 * CHUNK))
    line.arrived()
    begun, other = os.urandom(4 * CHUNK), os.urandom(2 * CHUNK)
    line.say(begun)
    line.edge.settle()
    for _ in range(3):
        line.say(other)
    line.edge.settle()
    arrived = line.drain()
    assert arrived.startswith(text(begun) + b"\x81")
    assert arrived.endswith(frame(0x88, (4413).to_bytes(2, "big") + b"SLOW_CONSUMER"))
    assert other not in arrived
    line.lose()
    line.far.close()


def test_what_a_client_missed_is_told_when_it_reads_again() -> None:
    line = Line(
        None,
        EventPolicy(pattern="typing:*:*", policy="drop"),
        EventPolicy(pattern="cursors:*:*", policy="latest", key="who"),
    )
    line.arrived()
    sent = line.fill(lambda: line.outbox.blocked, os.urandom(60_000))

    def say(type: str, payload: bytes) -> Outgoing:
        outgoing = Outgoing(type.encode() + payload, about=Delivery(type, Raw(payload), "r"))
        line.outbox.write(outgoing)
        return outgoing

    for _ in range(3):
        say("typing:user:begun", b"{}")
        say("cursors:user:moved", b'{"who":1}')
    say("notes:note:made", b"{}")
    gap = text(b'{"type":"gap","payload":{"rooms":{"r":{"typing:*:*":3}}}}')
    told = text(b'cursors:user:moved{"who":1}') + text(b"notes:note:made{}")
    assert line.drain() == sent + gap + told
    say("typing:user:begun", b"{}")
    assert line.arrived() == text(b"typing:user:begun{}")
    line.lose()
    line.far.close()


def test_a_client_that_is_gone_is_twisteds_to_find(line: Line) -> None:
    line.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    line.far.close()
    line.say(b"lost")
    line.edge.settle()
    assert line.waits
    assert isinstance(line.near.doWrite(), Exception)


def test_nothing_is_sent_once_the_connection_is_lost(line: Line) -> None:
    line.say(b"in the turn of its end")
    line.lose()
    line.say(b"late")
    line.outbox.close(1000, "")
    line.outbox.pause()
    line.outbox.resume()
    line.edge.settle()
    assert not line.waits
    assert line.far.recv(100) == b""


def test_a_connection_that_is_gone_is_freed_at_once() -> None:
    """It refers to its outbox and the other way round; a storm of clients must not wait for the collector of cycles."""
    line = Line()
    gone = weakref.ref(line.protocol)
    gc.disable()
    try:
        line.lose()
        line.edge.settle()
        line.far.close()
        del line
        assert gone() is None
    finally:
        gc.enable()
