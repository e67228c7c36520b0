"""Full collections of garbage: after the memory of the process has grown, and not by themselves."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.core.session import Session
from kraftek.daemon.garbage import FEW, GROWN, OFTEN, Garbage, settle
from kraftek.edge.addresses import Addresses
from kraftek.edge.dialects.socketio_client import SocketIOClient
from kraftek.edge.dialects.socketio_packets import SocketSettings
from kraftek.edge.engineio.clients import EngineClient, EngineClients
from kraftek.edge.engineio.connection import EngineSettings
from kraftek.edge.http_server import Request
from kraftek.edge.websocket.protocol import ClientProtocol
from tests.edge.websocket.edge import Edge, Peer
from tests.support.backlogs import make_backlogs
from tests.support.world import House


class Machine:
    """So much memory, and after each full collection so much less. It has so many clients."""

    def __init__(self, resident: int, freed: int = 0, clients: int = FEW + 1, *, incremental: bool = False) -> None:
        self.resident, self.freed, self.clients = resident, freed, range(clients)
        self.collections = self.young = 0
        self.clock = Clock()
        self.garbage = Garbage(
            self.clock,
            self.clients,
            resident=lambda: self.resident,
            collect=self.collected,
            incremental=incremental,
        )

    def collected(self, generation: int) -> None:
        if generation < 2:
            self.young += 1
            return
        self.collections += 1
        self.resident -= self.freed

    def has(self, resident: int, seconds: float = 1.0) -> int:
        """It has so much memory now. How many full collections there were."""
        self.resident = resident
        self.clock.advance(seconds)
        self.garbage.sweep()
        return self.collections


@pytest.fixture
def _collector() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("_collector")
@pytest.mark.parametrize("incremental", [False, True])
def test_there_are_no_full_collections_by_themselves(incremental: bool) -> None:
    others = gc.get_threshold()[1:]
    settle(incremental=incremental)
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold() == (5_000, *(others if incremental else (0, 1 << 30)))


@pytest.mark.parametrize("incremental", [False, True])
def test_what_is_new_is_collected_several_times_a_second(incremental: bool) -> None:
    machine = Machine(1000, incremental=incremental)
    for _ in range(30):
        machine.has(1000, seconds=0.1)
    assert machine.young == 0 if incremental else machine.young >= 26
    assert machine.collections == 0


def test_there_is_one_when_the_memory_has_grown() -> None:
    machine = Machine(1000)
    assert [machine.has(1000), machine.has(999 + GROWN), machine.has(1000 + GROWN)] == [0, 0, 1]
    assert machine.has(1000 + GROWN, seconds=1e6) == 1
    assert [machine.has(999 + 2 * GROWN), machine.has(1000 + 2 * GROWN)] == [1, 2]


def test_what_was_freed_may_be_used_again() -> None:
    machine = Machine(1000, freed=500)
    assert [machine.has(1000 + GROWN), machine.has(400 + 2 * GROWN), machine.has(500 + 2 * GROWN)] == [1, 1, 2]


def test_what_the_process_gave_back_counts_anew() -> None:
    machine = Machine(2 * GROWN)
    assert [machine.has(GROWN), machine.has(2 * GROWN - 1), machine.has(2 * GROWN)] == [0, 0, 1]


@pytest.mark.parametrize(("resident", "clients"), [(1000, FEW), (0, FEW + 1)])
def test_they_come_every_minute_for_few_clients_or_where_the_memory_is_unknown(resident: int, clients: int) -> None:
    machine = Machine(resident, clients=clients)
    assert [machine.has(resident, OFTEN - 1), machine.has(resident)] == [0, 1]
    assert [machine.has(resident, OFTEN - 1), machine.has(resident)] == [1, 2]


def test_it_is_this_process_unless_told_otherwise() -> None:
    Garbage(Clock(), ()).sweep()


# What is freed without it.


def edge_of_a_gateway() -> tuple[Edge, Clock]:
    """For native clients, and for those of Socket.IO; and the time of the latter."""
    house, counters = House(), Counters()
    engine_clients = EngineClients(
        house.clock,
        Iteration(house.clock),
        counters,
        EngineSettings(),
        lambda client: SocketIOClient(client, SocketSettings(), edge.house.gateway.open),
        Addresses(0),
        1000,
        turns=house.gateway.turns,
        backlogs=make_backlogs(house.clock, counters, house.limits),
    )
    # Budgets remember who has gone for a while.
    edge = Edge(engine_clients=engine_clients, limits=Limits(events_per_socket=0, bytes_per_socket=0))
    return edge, house.clock


def come_and_go(edge: Edge, kind: str) -> None:
    """A client is let in, joins, sends, and is gone."""
    said = ('{"type":"authenticate","payload":{"token":"t","roomId":"one"}}', '{"type":"notes:n:1"}')
    if kind == "native":
        peer = Peer(edge, subprotocols=["kraftek.v1.json"])
    else:
        peer = Peer(edge, "/socket.io/?EIO=4&transport=websocket")
        said = ('40{"token":"t","roomId":"one"}', '42["notes:n:1",{}]')
    for text in said:
        peer.send(text)
    edge.house.access.next().yes("alice")
    edge.settle()
    if kind == "Socket.IO, leaving":
        peer.send("41")
        peer.send('40{"token":"t","roomId":"one"}')
        edge.house.access.next().yes("alice")
    peer.lose()


def poll_and_go(edge: Edge) -> None:
    """As a client of Socket.IO that polls."""
    protocol, transport = edge.accept()
    protocol.dataReceived(b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
    edge.settle()
    sid = json.loads(transport.value().partition(b"\r\n\r\n0")[2])["sid"]
    for body in (b'40{"token":"t","roomId":"one"}', b'42["notes:n:1",{}]', b"1"):
        head = f"POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: gateway.test\r\n"
        protocol.dataReceived(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        edge.settle()
        if edge.house.access.questions:
            edge.house.access.next().yes("alice")
    assert transport.value().endswith(b"\r\n\r\nok")
    protocol.connectionLost(Failure(ConnectionDone()))


OURS = (Session, ClientProtocol, EngineClient, SocketIOClient, Request)


@pytest.mark.parametrize("kind", ["native", "Socket.IO", "Socket.IO, leaving", "polling"])
def test_clients_that_are_gone_leave_no_cycles(kind: str) -> None:
    edge, clock = edge_of_a_gateway()
    gc.collect()
    gc.disable()
    try:
        before = sum(type(each) in OURS for each in gc.get_objects())
        for _ in range(3):
            poll_and_go(edge) if kind == "polling" else come_and_go(edge, kind)
            edge.house.bus.published.clear()
        edge.clock.advance(1000.0)
        clock.advance(1000.0)
        assert len(edge.house.roster) == 0
        left = [type(each).__name__ for each in gc.get_objects() if type(each) in OURS]
        assert len(left) <= before, left
    finally:
        gc.enable()
