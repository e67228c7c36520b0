"""The connection that listens to Redis passes to another version."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from kraftek.bus.endpoint import Backoff, ConnectionService
from kraftek.bus.moving import BusMove
from kraftek.bus.server import Server


class Subscriber:
    """As of a bus."""

    id = 17
    server = Server(run="abc")

    def __init__(self) -> None:
        self.transport = SimpleNamespace(fileno=lambda: 5)
        self.frozen = False

    def freeze(self) -> bool:
        self.frozen = True
        return True

    def thaw(self) -> None:
        self.frozen = False


def bus(kind: str = "tcp", **parts: Any) -> Any:
    parts = {"subscriber": Subscriber(), "commands": SimpleNamespace(idle=True), "available": True, **parts}
    return SimpleNamespace(address=SimpleNamespace(kind=kind), **parts)


def test_it_is_given_unless_it_speaks_tls() -> None:
    given = BusMove(bus()).give()
    assert given is not None
    assert given[0] == 5
    assert BusMove(bus("tls")).give() is None
    assert BusMove(bus(subscriber=None)).give() is None


def test_it_is_frozen_and_goes_on() -> None:
    found = bus()
    assert BusMove(found).freeze()
    assert found.subscriber.frozen
    BusMove(found).thaw()
    assert not found.subscriber.frozen
    nobody = BusMove(bus(subscriber=None))
    nobody.thaw()
    assert nobody.freeze()


def test_it_is_idle_when_everything_is_answered() -> None:
    assert BusMove(bus()).idle
    assert not BusMove(bus(available=False)).idle
    assert not BusMove(bus(commands=None)).idle
    assert not BusMove(bus(commands=SimpleNamespace(idle=False))).idle


class Reactor:
    """Adopts connections, as long as there are any."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.adopted: list[int] = []

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> Any:
        if self.gone:
            raise OSError("not connected")
        self.adopted.append(family)
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        return SimpleNamespace(protocol=protocol)


class Endpoint:
    """Where a new connection would be made."""

    def __init__(self) -> None:
        self.asked = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        self.asked += 1
        return Deferred()


def take(*, gone: bool) -> tuple[list[object], Reactor, Endpoint]:
    """What the protocol inherits of the connection that is taken."""
    inherited: list[object] = []

    class Heir(Protocol):
        def connectionMade(self) -> None:
            assert self.factory is not None
            inherited.append(self.factory.inherited)

    endpoint, reactor = Endpoint(), Reactor(gone=gone)
    service = ConnectionService(endpoint, Heir, Backoff(1.0, Clock()), Clock(), inherited.append)  # type: ignore[arg-type]
    given = BusMove(bus()).give()
    assert given is not None
    ours, theirs = socket.socketpair()
    with theirs:
        BusMove(bus(listening=service)).take(reactor, ours.detach(), given[1])
        service.startService()
        theirs.settimeout(5.0)
        assert theirs.recv(1) == b"", "the descriptor is left open"
    service.stopService()
    return inherited, reactor, endpoint


def test_another_version_goes_on_with_it() -> None:
    inherited, reactor, endpoint = take(gone=False)
    assert [state.id for state in inherited] == [17]  # type: ignore[attr-defined]
    assert reactor.adopted == [socket.AF_UNIX]
    assert endpoint.asked == 0


def test_one_that_redis_has_closed_is_made_anew() -> None:
    inherited, _, endpoint = take(gone=True)
    assert inherited == []
    assert endpoint.asked == 1
