"""The images of this process: what this one takes over from the version before, and how the next one does from it.

Made by :mod:`kraftek.daemon.lifecycle`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger

from kraftek.bus import RedisBus
from kraftek.bus.moving import BusMove
from kraftek.contract.interfaces import IMovableLink
from kraftek.contract.iteration import Iteration
from kraftek.contract.settings import Config
from kraftek.daemon.assembly import Core, Edge
from kraftek.daemon.image import Command, Inheritance
from kraftek.daemon.listening import Certificates, server_endpoint
from kraftek.daemon.state import State, read_state
from kraftek.daemon.sweeps import Sweeps
from kraftek.daemon.upgrade import Upgrade

__all__ = ["Succession"]


class Succession:
    """``command``: how this process was started, unless it cannot be upgraded. ``inheritance``: what another version
    gave.
    """

    _log = Logger()

    def __init__(self, reactor: Any, command: Command | None, inheritance: Inheritance | None) -> None:
        self._reactor = reactor
        self._command = command
        self._inheritance = inheritance
        self._state: State | None = None
        self._upgrade: Upgrade | None = None

    # From the version before.

    def endpoints(self, descriptions: Sequence[str], certificates: Certificates) -> list[IStreamServerEndpoint]:
        """As :func:`kraftek.daemon.listening.server_endpoint` for each: where another version listened it goes on.
        Raises ``ValueError``, too, when what that gave cannot be read.
        """
        if self._inheritance is not None:
            self._state = read_state(self._inheritance)
        taken = {} if self._state is None else dict(self._state.listeners)
        return [server_endpoint(self._reactor, each, certificates, taken.pop(each, None)) for each in descriptions]

    @property
    def gateway_id(self) -> str:
        """That of the version before, if there was one: the ids of its sockets carry it."""
        return "" if self._state is None else self._state.gateway_id

    def take_over(self, core: Core, edge: Edge, bus: RedisBus) -> list[IMovableLink]:
        """Go on with everything that another version gave, before the bus is started. Nothing is read or written: the
        links to clients are frozen.
        """
        state = self._state
        if state is None or self._inheritance is None:
            return []
        links = []
        for descriptor, connection, session in state.sockets:
            links.append(edge.move.restore(descriptor, connection, partial(core.move.take_session, session)))
        core.move.take(state.core)
        if state.subscriber is not None:
            BusMove(bus).take(self._reactor, *state.subscriber)
        for _, descriptor in state.listeners:
            os.close(descriptor)  # endpoints have copies
        for descriptor in state.connected:
            os.set_inheritable(descriptor, False)
        self._inheritance.taken()
        text = "Took over {number} sockets of version {version}"
        self._log.info(text, number=len(links), version=state.version)
        return links

    def failed(self, reasons: Sequence[str]) -> None:
        """The start failed, for these reasons. The version before goes on, unless this one had taken over already."""
        for reason in reasons:
            self._log.critical("Cannot start: {reason}", reason=reason)
        if self._inheritance is not None:
            self._inheritance.go_back()

    # To the next version.

    def prepare(
        self,
        config: Config,
        core: Core,
        edge: Edge,
        bus: RedisBus,
        iteration: Iteration,
        sweeps: Sweeps,
        ports: Sequence[IListeningPort],
        others: Sequence[IListeningPort],
    ) -> None:
        """From now on the gateway can be upgraded. ``ports``: where clients connect; ``others``: where the operator
        does.
        """
        if self._command is None:
            return
        places = *config.listen, *config.operator.listen
        self._upgrade = Upgrade(
            self._reactor,
            self._command,
            core,
            edge,
            BusMove(bus),
            iteration,
            sweeps=sweeps,
            ports=[*zip(places, (*ports, *others), strict=True)],
            others=others,
        )

    def end(self) -> None:
        """The gateway stops."""
        if self._upgrade is not None:
            self._upgrade.stop()
            self._upgrade = None

    def begin(self) -> None:
        """Have the version go on that is installed now, if nothing is in the way."""
        if self._upgrade is None or self._upgrade.running:
            why = "the gateway starts, stops, is being upgraded, or runs without --nodaemon or with a Redis of its own"
            self._log.warn("Not upgraded: {why}", why=why)
            return
        upgrading = Deferred.fromCoroutine(self._upgrade.run())
        upgrading.addErrback(lambda failure: self._log.failure("The upgrade failed", failure=failure))
