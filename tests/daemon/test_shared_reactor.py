"""The reactor of another program: monotonic, and otherwise as it is."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.daemon.hostnames import HostnameResolver
from kraftek.daemon.shared_reactor import SharedReactor


@implementer(IReactorFromThreads)
class Reactor(Clock):
    """A reactor whose wall clock is set."""

    def callFromThread(self, callable: Any, *args: object, **kwargs: object) -> None:
        callable(*args)


def test_it_is_what_the_reactor_is() -> None:
    reactor, called = Reactor(), list[str]()
    shared = SharedReactor(reactor)
    verifyObject(IReactorTime, shared)
    assert IReactorFromThreads.providedBy(shared)
    shared.callFromThread(called.append, "called")
    assert called == ["called"]
    assert isinstance(shared.nameResolver, HostnameResolver)
    assert not hasattr(reactor, "nameResolver")


def test_its_time_is_its_own() -> None:
    reactor, called = Reactor(), list[str]()
    shared = SharedReactor(reactor)
    now = 0.0
    shared.seconds = lambda: now
    shared.callLater(0, called.append, "soon")
    shared.callLater(10, called.append, "later")
    reactor.advance(3600)  # the wall clock is set forward
    assert called == ["soon"]
    now = 10.0
    reactor.advance(10)
    assert called == ["soon", "later"]
