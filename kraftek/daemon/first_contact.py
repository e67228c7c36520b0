"""The start waits for Redis. Made by :mod:`kraftek.daemon.lifecycle`."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from kraftek.bus.server import UnsuitableServer
from kraftek.contract.interfaces import IBusListener

__all__ = ["FirstContact"]

_REDIS_PATIENCE = 5.0
"""Seconds to wait for Redis before clients are accepted without it."""

_FAIL_OVER_PATIENCE = 30.0
"""Seconds to wait for a primary where a replica answers: a fail-over under way takes less. Who waits longer has a wrong
address."""


@implementer(IBusListener)
class FirstContact:
    """The start waits for Redis. ``replica_for_ever``: a replica is no reason to end, as Sentinel will name another
    server.
    """

    def __init__(self, reactor: Any, *, replica_for_ever: bool) -> None:
        self._reactor = reactor
        self._replica_for_ever = replica_for_ever
        self._wrong: UnsuitableServer | None = None
        self._over: Deferred[None] = Deferred()

    async def made(self, name: str) -> None:
        """Return when Redis is available, or after a time-out: clients then get ``SERVICE_UNAVAILABLE``.

        Raises ``UnsuitableServer`` when one answers that will not be suitable, or is not in time.
        """
        timers = [
            self._reactor.callLater(_REDIS_PATIENCE, self._late),
            self._reactor.callLater(_FAIL_OVER_PATIENCE, self._too_late),
        ]
        try:
            await self._over
        except UnsuitableServer as error:
            raise UnsuitableServer(f"{name}: {error}", lasting=error.lasting) from error
        finally:
            for timer in timers:
                if timer.active():
                    timer.cancel()

    def unsuitable(self, error: UnsuitableServer) -> None:
        """A server answered that cannot be used."""
        self._wrong = error
        if error.lasting:
            self._too_late()

    def bus_up(self) -> None:
        self._wrong = None
        self._late()

    def bus_down(self) -> None:
        pass

    def epoch_changed(self) -> None:
        pass

    def _late(self) -> None:
        if not self._over.called and (self._wrong is None or self._replica_for_ever):
            self._over.callback(None)

    def _too_late(self) -> None:
        if not self._over.called and self._wrong is not None:
            self._over.errback(self._wrong)
