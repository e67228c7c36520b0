"""The first part of a stop: balancers, new clients, and those that are there.

Called by :mod:`kraftek.daemon.lifecycle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from kraftek.contract.readiness import Readiness
from kraftek.contract.settings import Config
from kraftek.core.client_drain import ClientDrain
from kraftek.daemon.assembly import Core, Edge
from kraftek.daemon.listening import is_shared

__all__ = ["Draining", "end"]

_STOPS = "the gateway stops"
"""The reason that clients get then, with 1012 or 503."""


class Draining:
    """Whoever is refused on a port that others share finds one of these when it tries again; behind a port that is
    closed a balancer sees that at once.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: Config) -> None:
        self._reactor = reactor
        self._config = config
        self._hurried = False
        self._lead: Deferred[None] = Deferred()
        self._clients: ClientDrain | None = None

    async def drain(
        self, ports: Sequence[IListeningPort], readiness: Readiness | None, core: Core | None, edge: Edge | None
    ) -> None:
        """Return when all clients were told. ``ports``: those for clients; what is ``None`` was not yet made."""
        if core is None or edge is None or readiness is None:
            await end(ports)
            return
        readiness.stops = True
        drain = self._config.drain
        if drain.lead and ports and not self._hurried:
            self._log.info("Stopping in {seconds:g} s: /health says so", seconds=drain.lead)
            with suppress(defer.TimeoutError):
                await self._lead.addTimeout(drain.lead, self._reactor)
        own = [port for port, place in zip(ports, self._config.listen, strict=False) if not is_shared(place)]
        for port in own:
            edge.connections.end(port)
        edge.site.turn_away(_STOPS)
        await end(own)
        self._clients = ClientDrain(core.roster, core.requests, self._reactor)
        await self._clients.begin(0.0 if self._hurried else drain.seconds, _STOPS)

    def hurry(self) -> None:
        """Be done as fast as is possible without leaving anything behind."""
        self._hurried = True
        if not self._lead.called:
            self._lead.callback(None)
        if self._clients is not None:
            self._clients.hurry()


async def end(ports: Sequence[IListeningPort]) -> None:
    """Return when none of these listens any more."""
    await DeferredList([maybeDeferred(port.stopListening) for port in ports])
