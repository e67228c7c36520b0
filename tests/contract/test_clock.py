"""The clock of those who run on somebody else's reactor, whose own clock is set while calls wait."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.application.internet import ClientService
from twisted.internet import defer
from twisted.internet.error import AlreadyCalled, AlreadyCancelled, ConnectError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from kraftek.contract.clock import MonotonicClock


class Machine:
    """A wall clock, which the reactor goes by, and a monotonic one. ``called`` has when calls came, by the latter."""

    def __init__(self) -> None:
        self.wall = Clock()
        self.passed = 0.0
        self.clock = MonotonicClock(self.wall, lambda: self.passed)
        self.called: list[tuple[float, str]] = []

    def call(self, name: str = "") -> None:
        self.called.append((self.passed, name))

    def go(self, seconds: float) -> None:
        """Time passes."""
        self.passed += seconds
        self.wall.advance(seconds)

    def set(self, seconds: float) -> None:
        """The wall clock is set, and nothing else."""
        if seconds > 0:
            self.wall.advance(seconds)
        else:
            self.wall.rightNow += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_on_time(machine: Machine) -> None:
    machine.clock.callLater(2.0, machine.call, name="a")
    machine.clock.callLater(1.0, machine.call, "b")
    machine.go(1.0)
    machine.go(1.0)
    assert machine.called == [(1.0, "b"), (2.0, "a")]
    assert machine.wall.getDelayedCalls() == []


def test_set_forward_nothing_comes_early(machine: Machine) -> None:
    timer = machine.clock.callLater(2.0, machine.call)
    machine.go(0.5)
    machine.set(3600)
    assert machine.called == []
    assert timer.active()
    machine.go(1.0)
    machine.set(3600)
    assert machine.called == []
    machine.go(0.5)
    assert machine.called == [(2.0, "")]
    assert not timer.active()


def test_set_back_it_may_come_late(machine: Machine) -> None:
    machine.clock.callLater(2.0, machine.call)
    machine.set(-30)
    machine.clock.callLater(3.0, machine.call, "begun after it")
    machine.go(3.0)
    assert machine.called == [(3.0, "begun after it")]
    machine.go(29.0)
    assert machine.called[1:] == [(32.0, "")]


def test_a_microsecond_is_not_early(machine: Machine) -> None:
    machine.clock.callLater(2.0, machine.call)
    machine.go(1.0)
    machine.set(0.000_001)
    machine.go(0.999_999)
    assert machine.called
    assert machine.wall.getDelayedCalls() == []


def test_cancelled_also_after_it_was_postponed(machine: Machine) -> None:
    timer = machine.clock.callLater(2.0, machine.call)
    machine.set(3600)
    timer.cancel()
    assert not timer.active()
    with pytest.raises(AlreadyCancelled):
        timer.cancel()
    machine.go(10)
    assert machine.called == []
    assert machine.wall.getDelayedCalls() == []


def test_cancelled_too_late(machine: Machine) -> None:
    timer = machine.clock.callLater(0, machine.call)
    machine.go(0)
    with pytest.raises(AlreadyCalled):
        timer.cancel()


def test_they_are_what_twisted_asks_for(machine: Machine) -> None:
    timer = machine.clock.callLater(1.0, machine.call)
    assert verifyObject(IReactorTime, machine.clock)
    assert verifyObject(IDelayedCall, timer)
    assert len(machine.clock.getDelayedCalls()) == 1


def test_moved(machine: Machine) -> None:
    timer = machine.clock.callLater(2.0, machine.call)
    timer.delay(1.0)
    assert timer.getTime() == 3.0
    machine.go(2.0)
    assert machine.called == []
    timer.reset(0.5)
    machine.go(0.5)
    assert machine.called == [(2.5, "")]


class Nowhere:
    """An endpoint where nobody listens."""

    def connect(self, factory: object) -> Any:
        return defer.fail(ConnectError())


def test_a_client_service_waits_by_it_and_stops(machine: Machine) -> None:
    service = ClientService(Nowhere(), Factory.forProtocol(Protocol), clock=machine.clock)  # type: ignore[arg-type]
    service.startService()
    assert len(machine.wall.getDelayedCalls()) == 1
    stopped: list[object] = []
    service.stopService().addBoth(stopped.append)
    assert stopped == [None]
    assert machine.wall.getDelayedCalls() == []
