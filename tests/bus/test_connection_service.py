"""A connection that is kept up, and is stopped while it is being made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.bus.endpoint import ConnectionService


class Closing(Protocol):
    """Knows why it was given up."""

    why = ""

    def give_up(self, reason: str) -> None:
        self.why = reason


@implementer(IStreamClientEndpoint)
class Stubborn:
    """Goes on when it is cancelled, as one that has another address to try: ``connected`` when the test says so."""

    def __init__(self) -> None:
        self.attempts = 0
        self.protocol: Any = None
        self._answer: Deferred[None] = Deferred()

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        self.attempts += 1
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        try:
            await self._answer
        except CancelledError:
            self._answer = Deferred()
            await self._answer
        self.protocol = factory.buildProtocol(UNIXAddress("/redis.sock"))
        self.protocol.makeConnection(object())
        return self.protocol  # type: ignore[no-any-return]

    def connected(self) -> None:
        answer, self._answer = self._answer, Deferred()
        answer.callback(None)


def service(endpoint: Stubborn) -> tuple[ConnectionService, list[Closing]]:
    """It runs, and its connections."""
    made: list[Closing] = []

    def make() -> Closing:
        made.append(Closing())
        return made[-1]

    failed: Callable[[str], None] = pytest.fail
    found = ConnectionService(endpoint, make, lambda _: 1.0, Clock(), failed)
    found.startService()
    return found, made


def test_a_connection_that_is_made_although_it_was_stopped_is_closed() -> None:
    endpoint = Stubborn()
    found, made = service(endpoint)
    stopped = found.stopService()
    endpoint.connected()
    assert made[0].why == "it was stopped meanwhile"
    assert not stopped.called
    endpoint.protocol.connectionLost(Failure(ConnectionError()))
    assert stopped.called
    assert endpoint.attempts == 1


def test_and_made_anew_if_it_was_started_again() -> None:
    endpoint = Stubborn()
    found, made = service(endpoint)
    found.stopService()
    found.startService()
    endpoint.connected()
    endpoint.protocol.connectionLost(Failure(ConnectionError()))
    endpoint.connected()
    assert [connection.why for connection in made] == ["it was stopped meanwhile", ""]
