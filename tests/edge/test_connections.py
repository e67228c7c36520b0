"""How many connections a process accepts, and how many of an address."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.edge.addresses import Addresses
from kraftek.edge.connections import Connections
from kraftek.edge.refusals import LINGERING
from tests.edge.websocket.edge import Edge, RecordingTransport, handshake

GET = b"GET / HTTP/1.1\r\nHost: gateway.test\r\n\r\n"


@implementer(IReadDescriptor)
class FakePort:
    """Notes whether it is read, and accepts as many as wait there, as Twisted's port does."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.numberAccepts = 100
        self.reading = True
        self.waiting = 0

    def fileno(self) -> int:
        return -1

    def logPrefix(self) -> str:
        return ""

    def connectionLost(self, reason: Any) -> None:
        pass

    def stopReading(self) -> None:
        self.reading = False

    def startReading(self) -> None:
        self.reading = True

    def doRead(self) -> None:
        accepted = min(self.numberAccepts, self.waiting)
        self.waiting -= accepted
        for _ in range(accepted):
            self.connections.opened()
        self.numberAccepts = accepted + 20

    def ready(self) -> None:
        """The reactor finds it readable."""
        if self.reading:
            self.doRead()


class World:
    """A process that may have three connections, with two ports."""

    def __init__(self, limit: int = 3) -> None:
        self.clock = MemoryReactorClock()
        self.counters = Counters()
        self.connections = Connections(self.clock, limit, Addresses(0), self.counters)
        self.ports = [FakePort(self.connections), FakePort(self.connections)]
        for port in self.ports:
            self.connections.accept_from(port)


def test_accepting_pauses_at_the_bound_and_goes_on_below_it() -> None:
    world = World()
    one, other = world.ports
    one.waiting, other.waiting = 10, 10
    one.ready()
    assert (world.connections.count, one.waiting) == (3, 7)
    assert (one.reading, other.reading) == (False, False)
    assert world.counters.accepting_paused == 1
    world.connections.closed(None)
    assert (one.reading, other.reading) == (True, True)
    other.ready()
    assert (world.connections.count, other.waiting) == (3, 9)
    assert (one.reading, other.reading) == (False, False)


def test_a_port_that_was_found_readable_before_accepts_nobody() -> None:
    world = World()
    one, other = world.ports
    one.waiting, other.waiting = 3, 1
    one.ready()
    other.doRead()
    assert (world.connections.count, other.waiting) == (3, 1)


def test_what_is_left_is_shared_by_whoever_comes_first() -> None:
    world = World(limit=50)
    one, other = world.ports
    one.waiting = other.waiting = 30
    one.ready()
    other.ready()
    assert (world.connections.count, other.waiting) == (50, 10)


def test_ports_that_no_longer_listen_are_left_alone() -> None:
    world = World(limit=1)
    world.ports[0].waiting = 1
    world.ports[0].ready()
    for port in world.ports:
        world.connections.end(port)
    world.connections.closed(None)
    assert not any(port.reading for port in world.ports)


def test_while_it_is_held_nobody_is_accepted_whoever_goes() -> None:
    world = World()
    world.connections.opened()
    world.connections.hold()
    world.connections.closed(None)
    late = FakePort(world.connections)
    world.connections.accept_from(late)
    assert not any(port.reading for port in (*world.ports, late))
    world.connections.go_on()
    assert all(port.reading for port in (*world.ports, late))


def test_what_another_version_had_accepted_counts() -> None:
    world = World()
    by_address = world.connections.by_address = Addresses(1)
    world.connections.restored("203.0.113.7")
    world.connections.restored(None)
    assert (len(world.connections), by_address.full("203.0.113.7")) == (2, True)
    world.connections.restored(None)
    assert not any(port.reading for port in world.ports)


def test_the_bound_is_logged_once_a_minute() -> None:
    world = World(limit=1)
    with capturedLogs() as logged:
        for _ in range(100):
            world.connections.opened()
            world.connections.closed(None)
    assert len(logged) == 1
    assert "1 connections that this process may have" in (formatEvent(logged[0]) or "")
    assert world.counters.accepting_paused == 100


class Exhausted:
    """A listening socket where the system has no more files."""

    def __init__(self, number: int) -> None:
        self.number = number

    def accept(self) -> Any:
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self) -> int:
        return -1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_a_system_without_files_is_asked_again_after_a_while_and_logged_once(number: int) -> None:
    clock = MemoryReactorClock()
    connections = Connections(clock, 10, Addresses(0), Counters())
    port = Port(0, Factory.forProtocol(Protocol), reactor=clock)
    port.numberAccepts = 100
    port.socket = Exhausted(number)
    connections.accept_from(port)
    port.startReading()
    with capturedLogs() as logged:
        for _ in range(20):
            assert port in clock.getReaders()
            port.doRead()
            assert port not in clock.getReaders()
            clock.advance(1.0)
    assert len(logged) == 1
    assert "could not be accepted" in (formatEvent(logged[0]) or "")


def test_a_port_of_twisted_accepts_no_more_than_there_is_room_for() -> None:
    """The real one: what it is held by is no part of Twisted's interfaces."""
    clock = MemoryReactorClock()
    connections = Connections(clock, 3, Addresses(0), Counters())

    class Counting(Factory):
        noisy = False

        def buildProtocol(self, addr: Any) -> Protocol:
            connections.opened()
            return Protocol()

    port = Port(0, Counting(), interface="127.0.0.1", reactor=clock)
    port.startListening()
    connections.accept_from(port)
    assert port in clock.getReaders()
    clients = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in range(6)]
    try:
        port.doRead()
        assert connections.count == 3
        assert port not in clock.getReaders()
        connections.closed(None)
        assert port in clock.getReaders()
        port.doRead()
        assert connections.count == 3
    finally:
        for client in clients:
            client.close()
        for reader in [reader for reader in clock.getReaders() if reader is not port]:
            reader.connectionLost(Failure(ConnectionDone()))
        port.socket.close()


# Of an address.


def refused_at_once(transport: RecordingTransport) -> bool:
    if not transport.value():
        return False
    assert transport.value().startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert transport.value().endswith(b"\r\n\r\ntoo many connections from this address\n")
    assert transport.disconnecting
    return True


def test_connections_of_an_address_count_from_accept_on() -> None:
    edge = Edge(limits=Limits(connections_per_address=3))
    idle, _ = edge.accept()
    slow, _ = edge.accept()
    slow.dataReceived(b"GET / HT")
    client, transport = edge.accept()
    client.dataReceived(handshake())
    edge.settle()
    assert b"101" in transport.value()
    for _ in range(5):
        _, refused = edge.accept()
        assert refused_at_once(refused)
    assert edge.refused() == {"address": 5}
    assert edge.connections.count == 3
    _, other = edge.accept(IPv4Address("TCP", "192.0.2.1", 50000))
    assert not other.value()
    idle.connectionLost()
    assert not edge.accept()[1].value()
    transport.protocol.connectionLost()
    assert not edge.accept()[1].value()
    assert refused_at_once(edge.accept()[1])


@pytest.mark.parametrize(
    "addresses",
    [
        ("2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"),
        ("fe80::1", "fe80::2%eth0", "fe80::1:2%1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "64:ff9b::192.0.2.1"),
    ],
)
def test_a_network_of_ipv6_is_one_address(addresses: tuple[str, ...]) -> None:
    for one in addresses:
        for another in addresses:
            edge = Edge(limits=Limits(connections_per_address=1))
            edge.accept((IPv6Address if ":" in one else IPv4Address)("TCP", one, 50000))
            assert refused_at_once(edge.accept((IPv6Address if ":" in another else IPv4Address)("TCP", another, 1))[1])


def test_other_networks_are_others() -> None:
    edge = Edge(limits=Limits(connections_per_address=1))
    for address in ("2001:db8::1", "2001:db8:0:1::1", "::1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"):
        _, transport = edge.accept(IPv6Address("TCP", address, 50000))
        assert not transport.value(), address


def test_whoever_comes_by_a_unix_socket_has_one_address() -> None:
    edge = Edge(limits=Limits(connections_per_address=1))
    assert not edge.accept(UNIXAddress("/run/kraftek.sock"))[1].value()
    assert refused_at_once(edge.accept(UNIXAddress("/run/kraftek.sock"))[1])


def test_a_refused_connection_is_not_read_and_does_not_stay() -> None:
    edge = Edge(limits=Limits(connections_per_address=1))
    edge.accept()
    refused, transport = edge.accept()
    refused.dataReceived(GET * 10)
    edge.clock.advance(1.9)
    assert transport.value().count(b"HTTP/1.1") == 1
    assert transport.closed == "lost"
    edge.clock.advance(0.1)
    assert transport.closed == "aborted"


def test_refused_connections_that_linger_are_bounded() -> None:
    edge = Edge(limits=Limits(connections_per_address=1))
    edge.accept()
    transports = [edge.accept()[1] for _ in range(LINGERING + 3)]
    assert [transport.closed for transport in transports] == ["aborted"] * 3 + ["lost"] * LINGERING
    for transport in transports:
        transport.protocol.connectionLost()
        assert refused_at_once(transport)


def test_a_websocket_counts_for_whom_its_connection_was_accepted() -> None:
    """Also where the transport learns of another address later, as behind an endpoint of the PROXY protocol."""
    edge = Edge(limits=Limits(connections_per_address=1))
    transport = RecordingTransport(IPv4Address("TCP", "192.0.2.1", 50000))
    transport.connect(edge.site.buildProtocol(IPv4Address("TCP", "192.0.2.9", 50000)))
    transport.protocol.dataReceived(handshake())
    assert len(edge.connections.by_address) == 1
    transport.protocol.connectionLost()
    assert (edge.connections.count, len(edge.connections.by_address), len(edge.factory.clients)) == (0, 0, 0)


# Behind proxies.


def ask(protocol: Any, address: str, more: bytes = b"\r\n") -> None:
    protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: gateway.test\r\nX-Forwarded-For: %s\r\n" % address.encode() + more)


def test_behind_proxies_an_address_counts_from_the_head_to_the_answer() -> None:
    edge = Edge(limits=Limits(connections_per_address=1), forwarded_for=1)
    slow, slowly = edge.accept()
    ask(slow, "192.0.2.1", b"Content-Length: 0\r\nUpgrade: websocket\r\nConn")
    other, transport = edge.accept()
    ask(other, "192.0.2.1")
    assert transport.value().startswith(b"HTTP/1.1 426")  # and is answered: no more of it counts
    slow.dataReceived(
        b"ection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    edge.settle()
    assert slowly.value().startswith(b"HTTP/1.1 101")
    transport.clear()
    ask(other, "192.0.2.2")
    assert transport.value().startswith(b"HTTP/1.1 426")
    transport.clear()
    ask(other, "192.0.2.1")
    assert transport.value().startswith(b"HTTP/1.1 429")
    assert edge.refused() == {"address": 1}
    assert edge.connections.count == 2
    slowly.protocol.connectionLost()
    transport.protocol.connectionLost()
    assert (edge.connections.count, len(edge.connections.by_address)) == (0, 0)


def test_behind_proxies_idle_connections_count_for_the_process_alone() -> None:
    edge = Edge(limits=Limits(connections_per_address=1), forwarded_for=1)
    channels = [edge.accept()[0] for _ in range(5)]
    assert (edge.connections.count, len(edge.connections.by_address)) == (5, 0)
    for channel in channels:
        ask(channel, "192.0.2.1", b"Content-Length: 5\r\n")
        channel.connectionLost()
    assert (edge.connections.count, len(edge.connections.by_address)) == (0, 0)
