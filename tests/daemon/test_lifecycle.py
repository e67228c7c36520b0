"""How long a start waits for Redis, and for which."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from kraftek.bus.server import UnsuitableServer
from kraftek.contract.interfaces import IBusListener
from kraftek.daemon.first_contact import FirstContact

REPLICA = UnsuitableServer("it is a replica", lasting=False)
OLD = UnsuitableServer("it is old", lasting=True)


class Start:
    """A start that waits for Redis at ``r``. ``end``: how it ended, once it has."""

    def __init__(self, *, sentinel: bool = False) -> None:
        self.clock = Clock()
        self.contact = FirstContact(self.clock, replica_for_ever=sentinel)
        self.end: str | None = None
        waiting = Deferred.fromCoroutine(self.contact.made("r"))
        waiting.addCallbacks(lambda _: "goes on", lambda failure: failure.getErrorMessage())
        waiting.addCallback(lambda end: setattr(self, "end", end))

    def after(self, seconds: float) -> str | None:
        """How it has ended by then."""
        self.clock.advance(seconds)
        if self.end is not None:
            assert self.clock.getDelayedCalls() == []
        return self.end


def test_it_listens() -> None:
    verifyObject(IBusListener, FirstContact(Clock(), replica_for_ever=False))


def test_it_goes_on_when_redis_is_available() -> None:
    start = Start()
    start.contact.bus_up()
    assert start.after(0) == "goes on"


def test_it_goes_on_without_redis_after_a_while() -> None:
    start = Start()
    assert start.after(4.9) is None
    assert start.after(0.2) == "goes on"


def test_a_replica_has_half_a_minute_to_become_the_primary() -> None:
    start = Start()
    start.contact.unsuitable(REPLICA)
    assert start.after(6) is None
    assert start.after(23) is None
    start.contact.bus_up()
    assert start.after(0) == "goes on"


def test_a_replica_for_longer_ends_it() -> None:
    start = Start()
    start.contact.unsuitable(REPLICA)
    assert start.after(6) is None
    start.contact.unsuitable(REPLICA)
    assert start.after(24) == "r: it is a replica"


def test_sentinel_will_name_the_primary() -> None:
    start = Start(sentinel=True)
    start.contact.unsuitable(REPLICA)
    assert start.after(4.9) is None
    assert start.after(0.2) == "goes on"


@pytest.mark.parametrize("sentinel", [False, True])
def test_what_will_never_be_right_ends_it_at_once(sentinel: bool) -> None:
    start = Start(sentinel=sentinel)
    start.contact.unsuitable(OLD)
    assert start.after(0) == "r: it is old"


def test_once_it_has_begun_nothing_ends_it() -> None:
    start = Start()
    start.contact.bus_up()
    start.contact.unsuitable(OLD)
    start.contact.bus_down()
    start.contact.unsuitable(REPLICA)
    start.contact.bus_up()
    assert start.after(60) == "goes on"
