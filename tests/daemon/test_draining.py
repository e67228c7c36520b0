"""What a stop does first, and in which order: what balancers, new clients and those that are there see of it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from kraftek.contract.readiness import Readiness
from kraftek.contract.settings import Config, Drain
from kraftek.daemon.draining import Draining
from tests.support.fakes import FakeBus
from tests.support.world import House


class Port:
    """One that listens until ``ended`` fires."""

    def __init__(self) -> None:
        self.stopped = False
        self.ended: Deferred[None] = Deferred()

    def stopListening(self) -> Deferred[None]:
        self.stopped = True
        return self.ended


class Site:
    """What new clients get."""

    text = ""

    def turn_away(self, text: str) -> None:
        self.text = text


class Edge:
    """The edge of a gateway, as far as a stop is concerned."""

    def __init__(self) -> None:
        self.site = Site()
        self.connections: Any = self
        self.ended: list[Any] = []

    def end(self, port: Any) -> None:
        """Connections of that port are no more."""
        self.ended.append(port)


class Stop:
    """A gateway with a client and two ports, of which the second is shared."""

    def __init__(self, lead: float = 0.0, clients: int = 1) -> None:
        self.house = House()
        self.clients = [self.house.connect() for _ in range(clients)]
        self.readiness = Readiness(FakeBus())
        self.edge: Any = Edge()
        self.own, self.shared = self.ports = [Port(), Port()]
        listen = ("tcp:3001", "reuseport:3002")
        self.clock: Clock = self.house.clock
        self.draining = Draining(self.clock, Config(listen=listen, drain=Drain(lead=lead, seconds=4.0)))
        self.over = False

    def begin(self, *, made: bool = True) -> None:
        """It begins. ``made``: the start was over."""
        core: Any = self.house
        core.requests = self.house.requests
        parts: tuple[Any, Any, Any] = (self.readiness, core, self.edge) if made else (None, None, None)
        ports: Any = self.ports
        Deferred.fromCoroutine(self.draining.drain(ports, *parts)).addCallback(self._over)

    def _over(self, _: None) -> None:
        self.over = True

    @property
    def closed(self) -> int:
        """How many clients were closed."""
        return sum(client.link.closed is not None for client in self.clients)


def test_new_clients_are_turned_away_and_then_all_are_closed() -> None:
    stop = Stop()
    stop.begin()
    assert not stop.readiness.ready
    assert stop.edge.site.text == "the gateway stops"
    assert (stop.own.stopped, stop.shared.stopped) == (True, False)
    assert stop.edge.ended == [stop.own]
    assert stop.closed == 0
    stop.own.ended.callback(None)
    stop.clock.advance(0.05)
    assert stop.closed == 1
    assert stop.over


def test_balancers_have_time_to_see_it() -> None:
    stop = Stop(lead=7.0)
    stop.begin()
    stop.clock.advance(6.9)
    assert not stop.readiness.ready
    assert not stop.own.stopped
    assert stop.edge.site.text == ""
    stop.clock.advance(0.1)
    assert stop.own.stopped


def test_a_hurry_ends_the_lead_and_closes_all() -> None:
    stop = Stop(lead=7.0, clients=500)
    stop.begin()
    stop.draining.hurry()
    stop.own.ended.callback(None)
    assert stop.closed == 500
    assert stop.over


def test_a_hurry_before_the_stop_leaves_no_lead() -> None:
    stop = Stop(lead=7.0, clients=500)
    stop.draining.hurry()
    stop.draining.hurry()
    stop.begin()
    stop.own.ended.callback(None)
    assert stop.closed == 500


def test_a_hurry_while_clients_are_closed_closes_the_others() -> None:
    stop = Stop(clients=500)
    stop.begin()
    stop.own.ended.callback(None)
    stop.clock.advance(0.05)
    assert 0 < stop.closed < 20
    stop.draining.hurry()
    assert stop.closed == 500
    assert stop.over


def test_what_was_not_yet_made_is_no_hindrance() -> None:
    stop = Stop()
    stop.begin(made=False)
    assert stop.own.stopped
    assert stop.shared.stopped
    assert not stop.over
    for port in stop.ports:
        port.ended.callback(None)
    assert stop.over
